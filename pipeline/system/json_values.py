"""Results as JSON: every result has `to_dict`, and every file of results is written like this."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_values(result: Any) -> Any:
    """A dataclass with all that it holds -> dicts, lists, strings, numbers, None.

    Raises TypeError for what JSON has no word for, an array say: such a field belongs in no result.
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
    if result is None or isinstance(result, str | int | float):
        return result
    raise TypeError(f"{type(result).__name__} is no value of a result")


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Indented, with a line end; keys stay in their order."""
    return json.dumps(values, indent=2).encode() + b"\n"
