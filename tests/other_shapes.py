"""JSON files of another shape: one value is of another type, missing, or no number that fits."""

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import MeldError

OTHERS = (None, True, -1, 10**30, 0.5, float("inf"), float("nan"), "x", "\ud800", [], [[]], {})
NAMES = ("", "..", "\0", "\ud800")
LONGEST = 2  # rows of a list that are changed; the others are read alike


def other_shapes(content: str) -> Iterator[tuple[str, Callable[[], str]]]:
    """What is changed, and what makes the file's new text."""
    values = json.loads(content)
    for path in _paths(values):
        for other in OTHERS:
            yield f"{list(path)} = {other!r}", partial(_with, values, path, other)
        if path and isinstance(path[-1], str):
            yield f"{list(path)} is missing", partial(_without, values, path)
            for name in NAMES:
                yield f"{list(path)} is called {name!r}", partial(_renamed, values, path, name)
    yield "brackets", lambda: "[" * 100_000
    yield "half", lambda: content[: len(content) // 2]


def check_other_shapes(file: Path, read: Callable[[], object], *, every: int = 1) -> None:
    """Each is read, or refused in one line that names it. No other error leaves `read`.

    file:  is overwritten
    every: more than 1 takes every so many of them alone, where reading takes long
    """
    messages = []
    shapes = other_shapes(file.read_text(encoding="utf-8"))
    for what, text in itertools.islice(shapes, None, None, every):
        file.write_text(text(), encoding="utf-8")
        try:
            read()
        except MeldError as error:
            messages.append((what, str(error)))
        except Exception as error:
            raise AssertionError(f"{file.name}: {what}") from error
    assert messages
    for what, message in messages:
        assert "\n" not in message, what
        assert str(file.parent) in message, what


def _paths(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _paths(value, (*path, name))
    elif isinstance(values, list):
        for row, value in enumerate(values[:LONGEST]):
            yield from _paths(value, (*path, row))


def _with(values: Any, path: tuple[str | int, ...], other: Any) -> str:
    if not path:
        return json.dumps(other)
    changed = copy.deepcopy(values)
    _find(changed, path[:-1])[path[-1]] = other
    return json.dumps(changed)


def _without(values: Any, path: tuple[str | int, ...]) -> str:
    changed = copy.deepcopy(values)
    del _find(changed, path[:-1])[path[-1]]
    return json.dumps(changed)


def _renamed(values: Any, path: tuple[str | int, ...], name: str) -> str:
    changed = copy.deepcopy(values)
    parent = _find(changed, path[:-1])
    parent[name] = parent.pop(path[-1])
    return json.dumps(changed)


def _find(values: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        values = values[step]
    return values
