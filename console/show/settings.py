"""The settings of a command: as a settings file with each value's origin, and as a list of keys."""

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from console.printing import print_json
from console.settings import Said, Setting
from pipeline.settings import Key, toml_value

_WIDEST = 100


def show_settings(
    command: str, settings: Sequence[Setting], said: Said, *, as_json: bool = False
) -> None:
    if as_json:
        told = [{"key": each.name, "value": each.value, "origin": each.origin} for each in settings]
        print_json({"command": command, "settings": told})
        return
    print("\n".join(_settings_file(command, settings, said)))


def show_keys(command: str, keys: Sequence[Key], *, as_json: bool = False) -> None:
    if as_json:
        told = [
            {
                "key": key.name,
                "type": key.type,
                "default": key.default,
                "required": key.is_required,
                "meaning": key.meaning,
            }
            for key in keys
        ]
        print_json({"command": command, "keys": told})
        return
    print("\n".join(_key_list(command, keys)))


def _settings_file(command: str, settings: Sequence[Setting], said: Said) -> Iterator[str]:
    """TOML for --config. Unset keys, and those that only an option can set, are comments."""
    yield f"# {command}"
    for table, inside in groupby(settings, key=lambda each: _split(each.name)[0]):
        if table:
            yield ""
            yield f"[{table}]"
        lines = []
        for each in inside:
            key = _split(each.name)[1]
            line = f"{key} = {toml_value(each.value)}"
            if each.value is None:
                line = f"# {key} is not set"
            elif each.name in said.not_in_files:
                line = f"# {line}"
            lines.append((line, each.origin))
        width = min(40, max(len(line) for line, _ in lines))
        for line, origin in lines:
            yield f"{line:<{width}}  # {origin}"


def _key_list(command: str, keys: Sequence[Key]) -> Iterator[str]:
    width = min(_WIDEST, shutil.get_terminal_size().columns)
    yield f"# {command}: keys of its settings file; None is a key that is left out"
    for table, inside in groupby(keys, key=lambda key: _split(key.name)[0]):
        yield ""
        if table:
            yield f"[{table}]"
        for key in inside:
            default = "required" if key.is_required else f"default {toml_value(key.default)}"
            yield f"{_split(key.name)[1]}: {key.type}; {default}"
            yield textwrap.fill(key.meaning, width, initial_indent="    ", subsequent_indent="    ")


def _split(name: str) -> tuple[str, str]:
    """ "fit.loss.label_smoothing" -> "fit.loss", "label_smoothing" """
    table, _, key = name.rpartition(".")
    return table, key
