"""`meld config`: which settings a command has, and which it would run with."""

import difflib
from typing import Annotated, Any

import typer

from console.edge import reports_errors
from console.options import AsJson
from console.settings import SettingsResolved, find_origins, only_settings
from pipeline.errors import UsageError
from pipeline.settings import list_keys

# What a command cannot do without, and what stands in for it here: none of it decides a setting.
_STAND_INS = {
    "extract": ("split", ["--split", "all"]),
    "finetune": ("end_to_end", ["--end-to-end"]),
    "predict": ("media", ["MEDIA"]),
}

Command = Annotated[str, typer.Argument(help="Name of a command that has --config.")]

app = typer.Typer(
    name="config",
    help="Show the settings of a command: what it would run with, and every key of its file.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(
    "show",
    context_settings={"allow_extra_args": True, "allow_interspersed_args": False},
    epilog="Examples: `meld config show train-fusion`   "
    "`meld config show train-fusion --config my.toml --fusion gated`   "
    "`meld config show extract > my.toml` (a file to begin with)",
)
@reports_errors
def show(context: typer.Context, command: Command, as_json: AsJson = False) -> None:
    """Print the settings that a command would run with, and where each comes from.

    The command's own options and --config follow its name. What is printed is a settings file:
    a value is the config's default, or comes from the file, from an option, or from the run that
    the command goes on from. Nothing is run.
    """
    from console.show.settings import show_settings

    found, was_whole = _resolve(context, command, context.args)
    typed = found.said.by_options if was_whole else {}
    settings = [
        each
        for each in find_origins(found.config, found.said)
        if each.name not in found.said.not_in_files or each.name in typed
    ]
    as_json = as_json or "--json" in context.args
    show_settings(command, settings, found.said, as_json=as_json)


@app.command(
    "keys",
    epilog="Examples: `meld config keys extract`   `meld config keys finetune --json`",
)
@reports_errors
def keys(context: typer.Context, command: Command, as_json: AsJson = False) -> None:
    """List every key of a command's settings file: its type, its default, what it means."""
    from console.show.settings import show_keys

    found, _ = _resolve(context, command, [])
    listed = [each for each in list_keys(found.kind) if each.name not in found.said.not_in_files]
    show_keys(command, listed, as_json=as_json)


def _resolve(
    context: typer.Context, name: str, arguments: list[str]
) -> tuple[SettingsResolved, bool]:
    """What `meld NAME ARGUMENTS` comes to as settings, by the command's own code; and whether
    nothing had to stand in for an argument that it cannot do without.

    Raises UsageError for a command that is none or has no settings file; mistakes in `arguments`
    are told as the command tells them.
    """
    group: Any = context.find_root().command
    configurable = [
        each
        for each, command in group.commands.items()
        if any(parameter.name == "config" for parameter in command.params)
    ]
    if name in group.commands and name not in configurable:
        raise UsageError(
            f"meld {name} has no settings file; its options are all there is: meld {name} --help"
        )
    if name not in configurable:
        near = difflib.get_close_matches(name, configurable, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(configurable)}"
        raise UsageError(f"{name} is no command with a settings file; {hint}")
    command = group.commands[name]
    root = context.find_root()
    typed = len(arguments)
    if name in _STAND_INS:
        parameter, stand_in = _STAND_INS[name]
        parsed = command.make_context(name, [*arguments], parent=root, resilient_parsing=True)
        if not parsed.params.get(parameter):
            arguments = [*arguments, *stand_in]
    try:
        with only_settings(), command.make_context(name, [*arguments], parent=root) as own:
            command.invoke(own)
    except SettingsResolved as found:
        return found, len(arguments) == typed
    raise AssertionError(f"meld {name} has --config and builds no config")
