"""YAML files + `key=value` overrides -> typed Config; errors name file:line and the dotted key."""

import argparse
import difflib
import math
import re
import types
import typing
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from lib.config.schema import Config
from lib.errors import InputError
from lib.files import write_whole

ConfigType = TypeVar("ConfigType", bound=Config)
Key = tuple[str | int, ...]
MOST_VALUES = 20_000  # that a file may hold, aliases counted as often as they are used: ten lines of aliases can stand for 10^9
ALIKE = 0.74  # of names: less is no typo (difflib's ratio)
FOREIGN = 2  # unknown sections and keys at the top, from which on the file is likely another script's
SHOWN = 200  # characters of a wrong value in a message


@dataclass(frozen=True)
class Arguments:
    """What the command line of every script holds."""

    path: Path
    overrides: tuple[str, ...]
    further: tuple[Path, ...] = ()  # files whose keys replace those of `path` and of one another, in this order
    profile: bool = False


class _Written(float):
    """A number that knows how it was written: where a name is expected, `1.10` and `3e2` are names."""

    def __new__(cls, text: str | float) -> "_Written":
        number = super().__new__(cls, text)
        number.text = str(text)
        return number

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__


class _Loader(yaml.SafeLoader):
    """YAML with numbers as people write them: `1e-3` is a float; names such as `0010`, `1_2` or `2024-05-01` stay strings."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _written(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    value = loader.construct_yaml_float(node)
    return _Written(node.value) if math.isfinite(value) else value


_Loader.add_constructor("tag:yaml.org,2002:float", _written)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the strings that `_Loader` would not read as strings."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def parse_arguments(description: str | None, training: bool = False) -> Arguments:
    """Command line `--config FILE [--config FILE ...] [key=value ...]` of a script whose docstring is `description`; `--profile` where it trains."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", action="append",
                        help="YAML file of this stage (see config/); given again, the keys of a later file replace those of earlier ones")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replaces one key, e.g. recorder.name=second")
    if training:
        parser.add_argument("--profile", action="store_true", help="measures some steps and writes what they consist of to <result_path>/<name>/")
    arguments = parser.parse_intermixed_args()
    return Arguments(arguments.config[0], tuple(arguments.overrides), tuple(arguments.config[1:]), training and arguments.profile)


def read_config(arguments: Arguments, schema: type[ConfigType]) -> ConfigType:
    """Reads, overrides and validates.

    Raises InputError naming `file:line: dotted.key: what is wrong` for a missing file, broken YAML, an unknown key
    (with the nearest match) or a value of the wrong type.
    """
    values, places = _read(arguments.path)
    for path in arguments.further:
        later, later_places = _read(path)
        values = _merged(values, later)
        places |= later_places
    for override in arguments.overrides:
        _apply_override(values, override, places)
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")  # a typo first, then what it left missing
        lines = [_explain(problem, schema, places, str(arguments.path)) for problem in problems]
        unknown = Counter(places.get(problem["loc"], "").rpartition(":")[0] for problem in problems
                          if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1)
        lines += [f"{count} keys that this script does not know: is {path} the YAML of another one?" for path, count in unknown.items()
                  if path and count >= FOREIGN]
        raise InputError("\n".join(lines)) from error


def write_config(config: Config, path: Path) -> None:
    """Writes the resolved configuration as YAML that `read_config` reads back."""
    write_whole(path, yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False))


def yaml_value(value: Any) -> str:
    """Plain data as YAML (lists on one line, or some where they are long) that `read_config` reads back as the same."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=True, width=110).removesuffix("\n").removesuffix("\n...")


def _read(path: Path) -> tuple[dict[str, Any], dict[Key, str]]:
    """What a file holds, and where: dotted key -> "file:line"."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the configuration ({error.strerror}); give an existing YAML file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file ({error}); is it a YAML file?") from error
    places: dict[Key, str] = {}
    try:
        values = _construct(text, str(path), places)
    except _BROKEN as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        if mark is None:
            raise InputError(f"{path}: not valid YAML: {_reason(error)}") from error
        raise InputError(f"{path}:{mark.line + 1}: not valid YAML: {' '.join(filter(None, (error.context, error.problem)))}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected `key: value` lines, found a {type(values).__name__}")
    odd = [key for key in values if not isinstance(key, str)]
    if odd:
        raise InputError(f"{path}: expected keys that are names, found {odd[0]!r}")
    return values, places


# What PyYAML raises, for odd tags and dates too.
_BROKEN = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())


def _construct(text: str, path: str, places: dict[Key, str]) -> Any:
    """The value of a YAML document; fills `places`. Raises one of _BROKEN."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _locate(node, (), path, places)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _merged(values: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """`later` over `values`, section by section; a list is replaced as a whole."""
    merged = dict(values)
    for key, value in later.items():
        before = values.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _locate(node: yaml.Node, key: Key, path: str, places: dict[Key, str]) -> None:
    """Fills `places`: dotted key -> "file:line"; a key written twice is an error, as one of the two would be lost.

    Goes where aliases lead, as often as they do: more than MOST_VALUES, or a value that holds itself, is an error.
    """
    if len(places) > MOST_VALUES:
        raise yaml.YAMLError(f"more than {MOST_VALUES} values, with aliases counted as often as they are used")
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            inner = (*key, str(name.value))
            if inner in places:
                line = name.start_mark.line + 1
                raise InputError(f"{path}:{line}: {_dotted(inner)}: key given twice (first at {places[inner]}); remove one")
            places[inner] = f"{path}:{name.start_mark.line + 1}"
            _locate(value, inner, path, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[(*key, index)] = f"{path}:{value.start_mark.line + 1}"
            _locate(value, (*key, index), path, places)


def _apply_override(values: dict[str, Any], override: str, places: dict[Key, str]) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"command line: '{override}': expected key=value, e.g. trainer.steps=2000")
    keys = tuple(name.split("."))
    section = values
    for position, key in enumerate(keys[:-1]):
        if section.get(key) is None:
            section[key] = {}
        elif isinstance(section[key], dict):
            section[key] = dict(section[key])  # another section may be an alias of it
        section = section[key]
        if not isinstance(section, dict):
            raise InputError(f"command line: {name}: '{'.'.join(keys[:position + 1])}' is not a section")
    try:
        section[keys[-1]] = _construct(text, "command line", {})
    except _BROKEN as error:
        raise InputError(f"command line: {name}: not a YAML value: '{text[:SHOWN]}' ({_reason(error)})") from error
    for position in range(1, len(keys) + 1):
        places[keys[:position]] = "command line"


def _explain(problem: Any, schema: type[BaseModel], places: dict[Key, str], path: str) -> str:
    key = tuple(problem["loc"])
    place = next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), path)
    prefix = f"{place}: {_dotted(key)}" if key else place
    if problem["type"] == "extra_forbidden":
        return f"{prefix}: unknown key{_suggest(str(key[-1]), key[:-1], schema)}"
    if problem["type"] == "missing":
        return f"{prefix}: required key is missing"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{prefix}: {message}"
    found = repr(problem["input"])
    return f"{prefix}: {message[0].lower()}{message[1:]}, found {found if len(found) <= SHOWN else found[:SHOWN] + ' ...'}"


def _suggest(name: str, section: Key, schema: type[BaseModel]) -> str:
    model = schema
    for key in section:
        field = model.model_fields.get(str(key))
        inner = _model_of(field.annotation) if field is not None else None
        if inner is None:
            return ""
        model = inner
    cutoff = min(ALIKE, 1.0 - 1.01 / max(2, len(name)))  # one letter of three is a typo too
    matches = difflib.get_close_matches(name, model.model_fields, n=1, cutoff=cutoff)
    return f"; did you mean '{matches[0]}'?" if matches else f"; known here: {', '.join(sorted(model.model_fields))}"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((model for part in typing.get_args(annotation) if (model := _model_of(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _dotted(key: Key) -> str:
    return ".".join(str(part) for part in key)
