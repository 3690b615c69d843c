"""Results as JSON: `to_dict` of every result, and the form of every file of results."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MALFORMED = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError),  # infinity as an integer; brackets in thousands
)
"""What a file raises that is no JSON or holds other values than those that are read from it."""


def to_values(result: Any) -> Any:
    """Converts a dataclass and its fields to dicts, lists, strings, numbers and None, which stands
    for numbers that are not finite too: JSON has no word for these.

    Raises TypeError for a value that JSON cannot express, such as an array: no result may hold one.
    """
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        names = (field.name for field in dataclasses.fields(result))
        return {name: to_values(getattr(result, name)) for name in names}
    if isinstance(result, Mapping):
        return {str(name): to_values(value) for name, value in result.items()}
    if isinstance(result, list | tuple):
        return [to_values(value) for value in result]
    if isinstance(result, Path):
        return str(result)
    if isinstance(result, float) and not math.isfinite(result):
        return None
    if result is None or isinstance(result, str | int | float):
        return result
    raise TypeError(f"a result must not hold a value of type {type(result).__name__}")


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Indented JSON with a line end; keys keep their order."""
    return json.dumps(values, indent=2).encode() + b"\n"
