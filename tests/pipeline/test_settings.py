"""Settings as they come out of a TOML file: what cannot be meant is named, never a traceback."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.settings import build_config


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 1.0
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settings:
    folder: Path = Path("here")
    other: Path | None = None
    count: int = 1
    inner: Inner = field(default_factory=Inner)


def test_tables_become_configs_and_numbers_the_type_that_is_wanted() -> None:
    values = {"folder": "there", "count": 2, "inner": {"rate": 3, "layers": [-1]}}
    wanted = Settings(folder=Path("there"), count=2, inner=Inner(rate=3.0, layers=(-1,)))
    assert build_config(Settings, values) == wanted
    assert isinstance(build_config(Settings, values).inner.rate, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"rate": 10**400}}, r"inner\.rate: a number beyond 64 bits"),
        ({"count": -(1 << 63) - 1}, "count: a number beyond 64 bits"),
        ({"count": 1 << 20_000}, "count: a number beyond 64 bits"),  # Python does not print it
        ({"inner": {"layers": [0, 1 << 63]}}, r"inner\.layers: a number beyond 64 bits"),
        ({"folder": "a\0b"}, "folder: no path has the character NUL in it"),
        ({"other": "\0"}, "other: no path has the character NUL in it"),
    ],
)
def test_numbers_and_paths_that_nothing_can_hold_are_named(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        build_config(Settings, values)


def test_a_key_that_stands_outside_its_table_is_reported_where_it_belongs() -> None:
    with pytest.raises(UsageError, match=r"unknown setting rate; did you mean inner\.rate\?"):
        build_config(Settings, {"rate": 1.0})
    with pytest.raises(UsageError, match=r"unknown setting foldr; did you mean folder\?"):
        build_config(Settings, {"foldr": "x"})
