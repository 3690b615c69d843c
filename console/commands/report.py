"""`meld report`: runs -> one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import AsJson, EvaluationSplit, MeasuredOn
from console.progress import progress
from pipeline.options import given

EPILOG = (
    "Examples: `meld report runs/first`   "
    "`meld report runs/first runs/second --split dev --data data --out compared.html`"
)


@reports_errors
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of trained runs.")],
    split: MeasuredOn = EvaluationSplit.test,
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write.  [default: report.html]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Corpus folder, for a frame of each clip that the page shows; fine-tuned runs "
            "are measured on it."
        ),
    ] = None,
    ablation: Annotated[
        Path | None,
        typer.Option(help="ablation.json of meld ablate, to show as a table.", dir_okay=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure runs and write one self-contained HTML page about them."""
    from console.show.page import show_page
    from fusion.reporting.html import HtmlReportConfig, write_html_report
    from pipeline.settings import build_config

    options = given(runs=tuple(runs), split=split, out=out, data=data, ablation=ablation)
    config = build_config(HtmlReportConfig, options)
    with progress("measuring", note="failures") as advance:
        reports = write_html_report(config, advance)
    show_page(reports, config, as_json)
