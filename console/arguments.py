"""A command's arguments: the config that they give, and what an unknown option could have meant.

The commands that take `--config` have more settings than options. If such a setting is typed as an
option, the error names its key in the settings file.
"""

import difflib
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand

from console.settings import SettingsResolved, only_settings
from pipeline.errors import UsageError
from pipeline.settings import list_keys

# A command's required parameter, and arguments that replace it here. They decide no setting.
_PLACEHOLDERS = {
    "extract": ("split", ["--split", "all"]),
    "finetune": ("end_to_end", ["--end-to-end"]),
    "predict": ("media", ["MEDIA"]),
}


def has_settings_file(command: Any) -> bool:
    return any(parameter.name == "config" for parameter in command.params)


def resolve(
    context: typer.Context, name: str, arguments: list[str]
) -> tuple[SettingsResolved, bool]:
    """The settings that `meld NAME ARGUMENTS` would run with, found by the command's own code; and
    whether no placeholder was needed for a required argument.

    Raises UsageError for an unknown command or one without a settings file. Mistakes in `arguments`
    raise what the command itself raises.
    """
    root = context.find_root()
    group: Any = root.command
    configurable = [each for each, command in group.commands.items() if has_settings_file(command)]
    if name in group.commands and name not in configurable:
        raise UsageError(
            f"meld {name} has no settings file; its options are all there is: meld {name} --help"
        )
    if name not in configurable:
        near = difflib.get_close_matches(name, configurable, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(configurable)}"
        raise UsageError(f"{name} is no command with a settings file; {hint}")
    command = group.commands[name]
    typed = len(arguments)
    if name in _PLACEHOLDERS:
        parameter, placeholder = _PLACEHOLDERS[name]
        parsed = command.make_context(name, [*arguments], parent=root, resilient_parsing=True)
        if not parsed.params.get(parameter):
            arguments = [*arguments, *placeholder]
    try:
        with only_settings(), command.make_context(name, [*arguments], parent=root) as own:
            command.invoke(own)
    except SettingsResolved as found:
        return found, len(arguments) == typed
    raise AssertionError(f"meld {name} has --config and builds no config")


class Command(TyperCommand):
    """A command that names the TOML key where an unknown option is one.

    Typer names options that are spelt alike; a setting that no option sets is not among them.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            # Only the error of an unknown option has both.
            option, near = (getattr(error, each, None) for each in ("option_name", "possibilities"))
            known = getattr(ctx.find_root().command, "commands", {})
            is_command = self.name in known and has_settings_file(self)
            if not option or near is None or not is_command:
                raise
            found, _ = resolve(ctx, str(self.name), [])
            names = [key.name for key in list_keys(found.kind)]
            keys = [name for name in names if name not in found.said.not_in_files]
            told = list(_keys_meant(option, keys, near))
            if told:
                error.message += (
                    f". It is a TOML key: write {' or '.join(told)} into a file for --config; "
                    f"meld config keys {self.name} lists all keys."
                )
                error.possibilities = []  # type: ignore[attr-defined]
            raise


def _keys_meant(option: str, keys: list[str], near_options: list[str]) -> Iterator[str]:
    """ "--dropout" -> "dropout = ... under [model]"; a misspelt key only if no option is near."""
    typed = option.lstrip("-").replace("-", "_")
    leaves = {name.rpartition(".")[2] for name in keys}
    near = () if near_options else difflib.get_close_matches(typed, leaves, n=1, cutoff=0.75)
    wanted = typed if typed in leaves or typed in keys else next(iter(near), None)
    for name in keys:
        table, _, leaf = name.rpartition(".")
        if wanted in (name, leaf):
            yield f"{leaf} = ..." + (f" under [{table}]" if table else "")
