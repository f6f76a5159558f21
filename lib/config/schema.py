"""The base class of every configuration section."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable section of a YAML file: unknown keys are refused, every field carries one line of documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, validate_default=True)
