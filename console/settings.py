"""Builds a command's config from its options and settings file. `meld config show` stops the
command at that point and shows where each setting comes from."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.options import merge_with_file
from pipeline.settings import build_config, describe_config, flatten, list_keys, merge_settings

log = logging.getLogger(__name__)

Config = TypeVar("Config")
# "run": inherited from the run that a command continues from.
Origin = Literal["option", "file", "run", "default"]


@dataclass(frozen=True, kw_only=True)
class Said:
    """The settings that a command was given, not yet checked.

    in_file, by_options: settings by key, tables within; options win
    not_in_files: keys that a settings file may not have
    """

    in_file: Mapping[str, Any]
    by_options: Mapping[str, Any]
    not_in_files: tuple[str, ...] = ()

    def build(self, kind: type[Config]) -> Config:
        """The config, by `kind.from_mapping` where there is one.

        Raises what that raises: UsageError for an unknown key or a wrong value.
        """
        build: Callable[[dict[str, Any]], Config] = getattr(
            kind, "from_mapping", lambda values: build_config(kind, values)
        )
        config = build(merge_settings(self.in_file, self.by_options))
        if _only_settings.get():
            raise SettingsResolved(kind, config, self)
        for setting in find_origins(config, self):
            if setting.origin != "default":
                log.info("%s = %s (%s)", setting.name, setting.value, setting.origin)
        return config


def read_settings(
    file: Path | None,
    options: Mapping[str, Any],
    *,
    always_given: Sequence[str] = (),
    refused: Sequence[str] = (),
    **tables: Mapping[str, Any],
) -> Said:
    """always_given: as in `merge_with_file`; refused: keys that the config itself refuses.

    Raises UsageError, as `merge_with_file`.
    """
    nothing: dict[str, dict[str, Any]] = {name: {} for name in tables}
    return Said(
        in_file=merge_with_file(file, {}, always_given=always_given, **nothing),
        by_options={**options, **{name: table for name, table in tables.items() if table}},
        not_in_files=(*always_given, *refused),
    )


# ------------------------------------------------------------------------- of `meld config show`


@dataclass(frozen=True, kw_only=True)
class Setting:
    """name: with its tables, "fit.epochs"; value: as `json.dumps` takes it, None where it is not
    set"""

    name: str
    value: Any
    origin: Origin


class SettingsResolved(BaseException):
    """Not an error: raised to end a command when only its settings are wanted."""

    def __init__(self, kind: type, config: Any, said: Said) -> None:
        super().__init__(kind.__name__)
        self.kind, self.config, self.said = kind, config, said


_only_settings: ContextVar[bool] = ContextVar("_only_settings", default=False)


@contextmanager
def only_settings() -> Iterator[None]:
    """A command that runs within raises SettingsResolved as soon as it has its config."""
    token = _only_settings.set(True)
    try:
        yield
    finally:
        _only_settings.reset(token)


def find_origins(config: Any, said: Said) -> list[Setting]:
    """Every setting of `config`, in the order of a settings file."""
    in_file, by_options = flatten(said.in_file), flatten(said.by_options)
    values = flatten(describe_config(config))
    settings = []
    for key in list_keys(type(config)):
        origin: Origin = "default" if values[key.name] == key.default else "run"
        if key.name in in_file:
            origin = "file"
        if key.name in by_options:
            origin = "option"
        settings.append(Setting(name=key.name, value=values[key.name], origin=origin))
    return settings
