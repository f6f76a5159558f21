"""The base class of every configuration section."""

import os
import typing
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator

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

    @field_validator("*", mode="before")
    @classmethod
    def _folders_of_digits(cls, value: Any, info: Any) -> Any:
        """A file or folder may be called 031, 31 or 1.10, as a name may; ~ is the home folder."""
        if not _holds_path(cls.model_fields[info.field_name].annotation):
            return value
        return [_as_path(one) for one in value] if isinstance(value, list) else _as_path(value)


def _holds_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_holds_path, typing.get_args(annotation)))


def _as_path(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("~"):  # in a YAML no shell does this, nor after key=
        return os.path.expanduser(value)  # noqa: PTH111 (which leaves somebody unknown as he is)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
