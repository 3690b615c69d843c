"""`meld config`: which settings a command has, and which it would run with."""

from typing import Annotated

import typer

from console.arguments import resolve
from console.edge import reports_errors
from console.options import AsJson
from console.settings import find_origins
from pipeline.settings import list_keys

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

    The command's own options and --config follow its name. The output is a settings file. A value
    is the config's default, or comes from the file, from an option, or from the run that the
    command continues from. The command is not run.
    """
    from console.show.settings import show_settings

    found, was_whole = resolve(context, command, context.args)
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
    """List every key of a command's settings file with its type, default and meaning."""
    from console.show.settings import show_keys

    found, _ = resolve(context, command, [])
    listed = [each for each in list_keys(found.kind) if each.name not in found.said.not_in_files]
    show_keys(command, listed, as_json=as_json)
