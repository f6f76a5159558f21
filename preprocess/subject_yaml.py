"""A configuration as a YAML file for people: every key with its documentation, which comes from where the key is declared."""

import hashlib
import textwrap
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lib.config import Config
from lib.config.reader import yaml_value

WIDTH = 120
SEAL = "# Written by preprocess.new_subject (digest "
HOW_TO_READ = (
    "Every key is below with its documentation. A '#' directly before a key leaves it out, and the line shows what then holds: to set it, remove",
    "that '#' (and the one of its section). 'Here:' says what was measured. Edit freely: new_subject does not overwrite an edited file.",
)


@dataclass(frozen=True)
class Remarks:
    """What a file says beside the documentation. Keys are dotted."""

    header: str
    why: dict[str, str] = field(default_factory=dict)  # reasons of values
    derived: dict[str, object] = field(default_factory=dict)  # what keys that are left out become for this subject
    unused: frozenset[str] = frozenset()  # keys that this stage does not read: not shown
    read_as: dict[str, type[Config]] = field(default_factory=dict)  # sections of which a stage reads the part that this schema declares


def document(config: Config, remarks: Remarks) -> str:
    """YAML text that `read_config` reads back as `config`: its keys that were set, and the others commented out."""
    lines = [*_comment(remarks.header, ""), *_comment(" ".join(HOW_TO_READ), ""), ""]
    return sealed("\n".join(lines + _section(config, type(config), remarks, "", "")) + "\n")


def sealed(text: str) -> str:
    """The text under a line with its digest."""
    return f"{SEAL}{_digest(text)}).\n{text}"


def is_edited(path: Path) -> bool:
    """Whether a file is not as `document` left it."""
    first, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
    return first != f"{SEAL}{_digest(rest)})."


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _section(values: BaseModel, schema: type[BaseModel], remarks: Remarks, prefix: str, indent: str) -> list[str]:
    """Lines of one section, by the keys of `schema`."""
    lines = []
    fields = sorted(schema.model_fields.items(), key=lambda item: isinstance(getattr(values, item[0]), BaseModel))  # sections at the end
    for name, info in fields:
        key = f"{prefix}{name}"
        if key in remarks.unused:
            continue
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            part = remarks.read_as.get(key, type(value))
            inner = _section(value, part, remarks, f"{key}.", indent + "  ")
            head = [*([] if indent else [""]), *_comment(_first_paragraph(part), indent)]
            is_set = any(not line.lstrip().startswith("#") for line in inner)
            # A section of nothing but comments would be read as null.
            lines += [*head, f"{indent}{'' if is_set else '#'}{name}:", *inner]
            continue
        lines += [*_comment(_documentation(info), indent), *(_comment(f"Here: {remarks.why[key]}", indent) if key in remarks.why else [])]
        is_set = name in values.model_fields_set
        shown = remarks.derived[key] if key in remarks.derived and not is_set else values.model_dump(mode="json", include={name})[name]
        first, *rest = yaml_value(shown).split("\n")
        lines += [f"{indent}{'' if is_set else '#'}{name}: {first}"] + [f"{indent}{'' if is_set else '#'}  {line}" for line in rest]
    return lines


def _documentation(info: FieldInfo) -> str:
    text = info.description or ""
    choices = _choices(info.annotation)
    missing = [choice for choice in choices if choice not in text]
    return f"{text} [one of: {', '.join(choices)}]" if missing else text


def _choices(annotation: Any) -> list[str]:
    """The words of a Literal, also of an optional one."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(word) for word in typing.get_args(annotation)]
    return [word for part in typing.get_args(annotation) for word in _choices(part)]


def _first_paragraph(schema: type[BaseModel]) -> str:
    return " ".join((schema.__doc__ or "").strip().split("\n\n")[0].split())


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
