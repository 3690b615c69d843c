"""`meld evaluate`: measures a run on a split."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import AsJson, EvaluationSplit, FeaturesOfRun, MeasuredOn, TrainedRun
from console.printing import say
from console.progress import progress

EPILOG = (
    "Examples: `meld evaluate runs/text --split test`   "
    "`meld evaluate runs/text --split dev --errors`   "
    "`meld evaluate runs/tuned` (fine-tuned: measured on raw clips)"
)


@reports_errors
def evaluate(
    run: TrainedRun,
    split: MeasuredOn = EvaluationSplit.test,
    features: FeaturesOfRun = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Corpus to measure a fine-tuned run on.  [default: the one it was fine-tuned on]"
        ),
    ] = None,
    errors: Annotated[
        bool,
        typer.Option("--errors", help="Show an error analysis as well (--json always has it)."),
    ] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="File to write the predictions of every row to; it ends in .csv or .parquet."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run on a split beside the majority baseline; write JSON and plots into the run.

    A fine-tuned run is measured on raw clips, with its own encoders.
    """
    from console.show.evaluation import show_evaluation
    from fusion.evaluation.evaluate import EvaluateConfig
    from fusion.evaluation.evaluate import evaluate as run_evaluation

    config = EvaluateConfig(
        run=run, split=split.value, features=features, data=data, predictions=predictions
    )
    with progress("encoding clips", note="failures") as advance:
        report = run_evaluation(config, advance)
    show_evaluation(report, run, as_json, errors=errors)
    if predictions is not None:
        say(f"written: {predictions}")
