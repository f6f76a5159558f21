"""The base class of every configuration section."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from lib.files import name_fault


def _checked(name: str) -> str:
    fault = name_fault(name)
    if fault is not None:
        raise ValueError(f"expected a name that can be part of a path, found {name!r}: {fault}")
    return name


Name = Annotated[str, AfterValidator(_checked)]  # of a run, a camera, a sequence


class Config(BaseModel):
    """Immutable section of a YAML file: unknown keys are refused, numbers are finite, every field carries one line of documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False, validate_default=True)
