"""A mapping, as read from a TOML file, to a frozen config; every mistake is named."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
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
            raise UsageError(f"unknown setting {prefix}{key}{_nearest(key, hints)}")
    arguments = {
        key: _convert(value, hints[key], f"{prefix}{key}") for key, value in values.items()
    }
    try:
        return kind(**arguments)
    except ValueError as error:
        raise UsageError(f"{table or 'settings'}: {error}") from error


def describe_config(config: Any) -> dict[str, Any]:
    """The other way: what `json.dumps` and `build_config` take."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


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
        return list(value)
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
    # Only `X | None` occurs; of a Literal it is a typing.Union.
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(value, inner[0], name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{name} must be a list, not {value!r}")
        return tuple(_convert(each, inner[0], name) for each in value)
    if origin is Literal:
        if value not in inner:
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
