"""`meld compare`: two runs, measured on the same rows."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import AsJson, EvaluationSplit, MeasuredOn, TrainedRun
from console.progress import progress
from pipeline.options import given

EPILOG = (
    "Examples: `meld compare runs/text runs/all`   "
    "`meld compare runs/first runs/context --split dev --features-b features-context`"
)


@reports_errors
def compare(
    run_a: TrainedRun,
    run_b: Annotated[
        Path, typer.Argument(help="Folder of another trained run, compared with the first.")
    ],
    split: MeasuredOn = EvaluationSplit.test,
    features_a: Annotated[
        Path | None, typer.Option(help="Caches to measure A on.  [default: the run's own]")
    ] = None,
    features_b: Annotated[
        Path | None, typer.Option(help="Caches to measure B on.  [default: the run's own]")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Number of bootstrap samples.  [default: 2000]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of the bootstrap.  [default: 0]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs with a paired bootstrap over the dialogues of a split.

    The runs must be measured on the same rows; all else may differ. On test, this counts as a test
    evaluation of both.
    """
    from console.show.comparison import show_comparison
    from fusion.experiments.compare import CompareConfig
    from fusion.experiments.compare import compare as run_comparison
    from pipeline.settings import build_config

    options = given(
        run_a=run_a,
        run_b=run_b,
        split=split,
        features_a=features_a,
        features_b=features_b,
        samples=samples,
        seed=seed,
    )
    config = build_config(CompareConfig, options)
    with progress("encoding clips", note="failures") as advance:
        comparison = run_comparison(config, advance)
    show_comparison(comparison, as_json)
