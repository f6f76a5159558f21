"""The base class of every configuration section."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Immutable section of a YAML file: unknown keys are refused, numbers are finite, every field carries one line of documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False, validate_default=True)
