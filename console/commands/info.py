"""`meld info`: shows what a cache holds or how a run was trained."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import AsJson
from pipeline.errors import UsageError

EPILOG = (
    "Examples: `meld info features/train.h5 --verify`   "
    "`meld info features/train.h5 --failures`   `meld info runs/first`"
)


@reports_errors
def info(
    file: Annotated[Path, typer.Argument(help="A feature cache, or the folder of a trained run.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify the checksum of every chunk.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Corpus whose clips are compared with the cache by name, size and time.  "
            "[default: data, if it exists]"
        ),
    ] = None,
    failures: Annotated[
        bool, typer.Option("--failures", help="List every failure with its clip and reason.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a cache holds and which rows are stale, or what a run was trained with.

    Of a cache: rows, presence, failures, recipe and labels. Of a run: its settings, its best epoch,
    its evaluations and the commands that make it again.
    """
    if file.is_dir():
        if (file / "train.h5").is_file():
            raise UsageError(f"{file}: a folder of caches; name one: {file / 'train.h5'}")
        if verify or failures or data is not None:
            raise UsageError(f"{file} is a folder; --verify, --failures and --data need a cache")
        from console.show.run import show_run
        from fusion.reporting.run_info import describe_run

        show_run(describe_run(file), as_json)
        return
    from console.show.info import show_info
    from pipeline.cache.info import describe
    from pipeline.errors import CacheCorrupt

    described = describe(file, check=verify, data=data or _default_corpus())
    if data is not None and described.stale is None:
        raise UsageError(
            f"--data {data}: {file} was made without reading clips, so there are none to compare; "
            "leave the option out"
        )
    show_info(described, as_json, failures=failures)
    if described.damaged:
        raise CacheCorrupt(
            f"{file}: checksums do not hold in {', '.join(described.damaged)}; "
            "delete the file and extract again"
        )


def _default_corpus() -> Path | None:
    data = Path("data")
    return data if data.is_dir() else None
