"""Typed YAML configuration."""

from lib.config.reader import parse_arguments, read_config, write_config
from lib.config.schema import Config, Name

__all__ = ["Config", "Name", "parse_arguments", "read_config", "write_config"]
