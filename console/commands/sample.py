"""`meld sample`: generates a corpus in MELD's format."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import needs_extra, reports_errors
from console.options import AsJson
from console.progress import progress
from pipeline.options import given

EPILOG = "Example: `meld sample --out data --dialogues 80 --seed 1`"


@reports_errors
def sample(
    out: Annotated[Path, typer.Option(help="Folder to write the corpus to.")],
    dialogues: Annotated[
        int | None, typer.Option(help="Number of dialogues, of 3 to 8 clips each.  [default: 78]")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Random seed; the same seed gives the same bytes.  [default: 0]"),
    ] = None,
    corrupt: Annotated[
        bool, typer.Option("--corrupt", help="Plant the kinds of defects that the real corpus has.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Number of processes.  [default: one per core]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate a small corpus in MELD's format: spoken sentences and drawn faces, H.264 and AAC."""
    from pipeline.settings import build_config

    with needs_extra("sample"):
        from console.show.sample import show_sample
        from pipeline.sample.corpus import SampleConfig, make_sample

    options = given(out=out, dialogues=dialogues, seed=seed, corrupt=corrupt, workers=workers)
    config = build_config(SampleConfig, options)
    with progress("generating clips") as advance:
        result = make_sample(config, advance)
    show_sample(result, as_json)
