"""Typed YAML configuration."""

from lib.config.reader import parse_arguments, read_config, write_config
from lib.config.schema import Config

__all__ = ["Config", "parse_arguments", "read_config", "write_config"]
