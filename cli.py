"""The `meld` command: the group of all commands, and the end of every run of it.

Each command is one file in console/commands/: options -> one frozen config -> one call -> printed
result, exit status. Defaults live in the configs; an option that was not given is not passed on.
Nothing heavy is imported before a command runs: `meld --help` must be instant.
"""

import errno
import io
import os
import sys
from typing import Annotated, TextIO

import typer
from typer.models import CommandInfo

from console.arguments import Command
from console.commands import (
    ablate,
    compare,
    config,
    convert,
    crossval,
    demo,
    doctor,
    download,
    evaluate,
    export,
    extract,
    finetune,
    import_features,
    info,
    listen,
    predict,
    report,
    sample,
    search,
    serve,
    train_fusion,
)
from console.edge import tell
from console.start import FIRST_STEPS, GROUPS
from pipeline.errors import StorageError
from pipeline.system.threads import ROUNDS, ROUNDS_BESIDE_A_DECODER, wait_briefly

# A full disk behind `meld ... > file`, or a reader that went away.
_STDOUT_FAILS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)

app = typer.Typer(
    name="meld",
    epilog="`meld COMMAND --help` has examples; `meld config keys COMMAND` lists all settings; "
    "`meld --install-completion` lets the shell complete commands and options.",
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the console script."""
    # `meld ... >&-`: nobody wants it, and no file that is opened later shall get what is printed.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths may have bytes that are no characters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            app(prog_name="meld")
        finally:
            sys.stdout.flush()  # at the very end, a failure would have no status of its own
    except OSError as error:
        if error.filename is not None or error.errno not in _STDOUT_FAILS:
            raise
        _drop_what_cannot_be_printed(sys.stdout)
        if isinstance(error, BrokenPipeError):  # `meld ... | head` has seen enough
            sys.exit(1)
        tell(f"meld: error: the output cannot be written: {error.strerror}")
        sys.exit(StorageError.exit_status)
    finally:
        try:
            sys.stderr.flush()  # `tell` leaves in its buffer what it could not write
        except OSError:
            _drop_what_cannot_be_printed(sys.stderr)


def _drop_what_cannot_be_printed(stream: TextIO) -> None:
    """Otherwise Python tries to write it once more when it ends, and ends with status 120."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the versions of meld and of the libraries that decide values."
        ),
    ] = False,
) -> None:
    """Recognise emotions in videos, and train the models that do, on MELD or on your own clips."""
    decodes_beside = context.invoked_subcommand in ("predict", "serve", "listen")
    wait_briefly(ROUNDS_BESIDE_A_DECODER if decodes_beside else ROUNDS)
    if version:
        from console.show.version import show_version

        show_version()
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(FIRST_STEPS)


def _name(command: CommandInfo) -> str:
    return command.name or str(getattr(command.callback, "__name__", ""))


_GROUP_OF = {name: title for title, names in GROUPS.items() for name in names}
app.command(epilog=sample.EPILOG)(sample.sample)
app.command(epilog=download.EPILOG)(download.download)
app.command(epilog=extract.EPILOG)(extract.extract)
app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command(epilog=info.EPILOG)(info.info)
app.command("train-fusion", epilog=train_fusion.EPILOG)(train_fusion.train_fusion)
app.command(epilog=finetune.EPILOG)(finetune.finetune)
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=predict.EPILOG)(predict.predict)
app.command(epilog=compare.EPILOG)(compare.compare)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=crossval.EPILOG)(crossval.crossval)
app.command(epilog=ablate.EPILOG)(ablate.ablate)
app.command(epilog=search.EPILOG)(search.search)
app.command(epilog=demo.EPILOG)(demo.demo)
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=listen.EPILOG)(listen.listen)
app.command("import", epilog=import_features.EPILOG)(import_features.import_features)
app.command(epilog=export.EXPORT_EPILOG)(export.export)
app.command(epilog=export.VERIFY_EPILOG)(export.verify)
app.add_typer(config.app, rich_help_panel=_GROUP_OF["config"])
for each in (*app.registered_commands, *config.app.registered_commands):
    if each.epilog is not None:  # each example gets a line of its own: Markdown joins lines
        each.epilog = each.epilog.replace("Examples: ", "Examples:\n\n* ").replace("   ", "\n* ")
for each in app.registered_commands:
    each.cls = Command
    each.rich_help_panel = _GROUP_OF.get(_name(each))
app.registered_commands.sort(key=lambda each: [*_GROUP_OF].index(_name(each)))

if __name__ == "__main__":
    main()
