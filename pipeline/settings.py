"""Builds frozen configs from mappings, as read from TOML files; every mistake is named in an
error."""

import dataclasses
import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.errors import UsageError

Config = TypeVar("Config")


def build_config(kind: type[Config], values: Mapping[str, Any], *, table: str = "") -> Config:
    """Builds the dataclass `kind`; its dataclass fields are tables of their own.

    Raises UsageError for an unknown key (the nearest one is named), a wrong type, or a value the
    config itself refuses.
    """
    hints = typing.get_type_hints(kind)
    prefix = f"{table}." if table else ""
    for key in values:
        if key not in hints:
            places = [] if table else [name for name in _nested(kind) if _leaf(name) == key]
            where = f"; did you mean {' or '.join(places)}?" if places else _nearest(key, hints)
            raise UsageError(f"unknown setting {prefix}{key}{where}")
    arguments = {
        key: _convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()
    }
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        if each.name not in arguments and _default(each) is dataclasses.MISSING:
            raise UsageError(f"{prefix}{each.name} is needed; name one")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise UsageError(f"{table or 'settings'}: {error}") from error


def describe_config(config: Any) -> dict[str, Any]:
    """The inverse: a mapping that `json.dumps` and `build_config` take."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One setting of a config, as a settings file names it.

    name:    with its tables: "fit.loss.label_smoothing"
    type:    what a file may say: "whole number", or its choices: 'one of "late", "early"'
    default: a value that `json.dumps` takes; None where nothing is set
    is_required: it has no default
    meaning: the config's docstring says it
    """

    name: str
    type: str
    default: Any
    is_required: bool
    meaning: str


def list_keys(kind: type, *, table: str = "") -> Iterator[Key]:
    """Every key that `build_config` takes for the dataclass `kind`, those of its tables last, as a
    TOML file has them."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    tables = [each for each in fields if dataclasses.is_dataclass(hints[each.name])]
    meanings = read_meanings(kind)
    for each in fields:
        if each not in tables:
            is_required = _default(each) is dataclasses.MISSING
            yield Key(
                name=f"{table}{each.name}",
                type=_type_name(hints[each.name]),
                default=None if is_required else _plain(_default(each)),
                is_required=is_required,
                meaning=meanings.get(each.name, ""),
            )
    for each in tables:
        yield from list_keys(hints[each.name], table=f"{table}{each.name}.")


def _nested(kind: type, table: str = "") -> Iterator[str]:
    """The keys of all tables within the config: "fit.epochs"."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _nested(hints[field.name], f"{table}{field.name}.")
        elif table:
            yield f"{table}{field.name}"


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def toml_value(value: Any) -> str:
    """A value as TOML writes it; "None" is for people: TOML has no word for it."""
    if value is None:
        return "None"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    # A JSON string is a TOML string, but for the one control character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def flatten(values: Mapping[str, Any], *, table: str = "") -> dict[str, Any]:
    """{"fit": {"epochs": 3}} -> {"fit.epochs": 3}"""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, table=f"{table}{name}.")
        else:
            flat[f"{table}{name}"] = value
    return flat


def read_meanings(kind: type) -> dict[str, str]:
    """What the docstring of a config says of its fields: lines such as "name, other: meaning" begin
    an entry, which goes on until the next one or an empty line."""
    known = {each.name for each in dataclasses.fields(kind)}
    meanings: dict[str, str] = {}
    current: list[str] = []
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        entry = _ENTRY.fullmatch(line.strip())
        if entry is not None and set(names := entry[1].split(", ")) <= known:
            current = names
            meanings |= dict.fromkeys(names, entry[2])
        elif not line.strip():
            current = []
        else:
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in current}
    return meanings


_ENTRY = re.compile(r"(\w+(?:, \w+)*):\s+(.*)")


def _default(field: "dataclasses.Field[Any]") -> Any:
    """MISSING where the field has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


_TYPE_NAMES: Mapping[Any, str] = {
    Path: "path",
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
}


def _type_name(wanted: Any) -> str:
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(each) for each in inner if each is not types.NoneType)
    if origin is tuple:
        return f"list: {_type_name(inner[0])}"
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    return _TYPE_NAMES[wanted]


def merge_settings(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, table by table; `above` wins."""
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            merged[name] = merge_settings(inner, value)
        else:
            merged[name] = value
    return merged


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return describe_config(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _nearest(key: object, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _convert(value: Any, wanted: Any, name: str) -> Any:
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # more than TOML promises
        raise UsageError(f"{name}: a number beyond 64 bits")
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} is a table of settings, not {value!r}")
        return build_config(typing.cast(type, wanted), value, table=name)
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):  # of a Literal it is a typing.Union
        kinds = [each for each in inner if each is not types.NoneType]
        if value is None:
            return None
        if len(kinds) == 1:
            return _convert(value, kinds[0], name)
        for kind in kinds:
            with suppress(UsageError):
                return _convert(value, kind, name)
        raise UsageError(f"{name} must be {_type_name(wanted)}, not {value!r}")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{name} must be a list, not {value!r}")
        return tuple(_convert(each, inner[0], name) for each in value)
    if origin is Literal:
        # An array compares with each, and has no one answer.
        if not any(isinstance(value, type(each)) and value == each for each in inner):
            raise UsageError(f"{name} must be one of {', '.join(inner)}, not {value!r}")
        return value
    return _convert_scalar(value, wanted, name)


def _convert_scalar(value: Any, wanted: type, name: str) -> Any:
    if wanted is Path and isinstance(value, str | Path):
        if "\0" in str(value):
            raise UsageError(f"{name}: no path has the character NUL in it")
        return Path(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # A bool is an int to Python, but `seed = true` is a mistake.
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise UsageError(f"{name} must be {wanted.__name__}, not {value!r}")
    return value
