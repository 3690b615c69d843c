"""`meld demo`: the whole pipeline on a generated corpus."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import needs_extra, reports_errors
from console.options import AsJson, Seed
from console.printing import say
from console.progress import progress
from pipeline.options import given

EPILOG = "Example: `meld demo --out demo`"


@reports_errors
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that the demo writes.")] = Path(
        "demo"
    ),
    seed: Seed = None,
    dialogues: Annotated[
        int | None, typer.Option(help="Number of dialogues in the generated corpus.  [default: 44]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole pipeline on a generated corpus and show what fusion gains.

    Nothing is downloaded: text is encoded by the bundled encoder, video with random weights, which
    are marked in every output.
    """
    from pipeline.settings import build_config

    with needs_extra("train,sample,minilm"):
        from console.show.demo import show_demo
        from fusion.experiments.demo import DemoConfig, run_demo

    config = build_config(DemoConfig, given(out=out, seed=seed, dialogues=dialogues))
    with progress("demo") as advance:
        report = run_demo(config, say, advance)
    show_demo(report, as_json)
