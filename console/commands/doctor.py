"""`meld doctor`: checks a corpus and this machine."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import EXIT_SOME_FAILED, reports_errors
from console.options import AsJson, Cores, Corpus, TestClipsChoice, WeightsDir
from console.printing import print_json
from console.progress import progress
from pipeline.errors import MeldError
from pipeline.options import given

EPILOG = "Examples: `meld doctor --data data`   `meld doctor --deep --html checked.html`"


@reports_errors
def doctor(
    data: Corpus = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every clip instead of reading headers only.")
    ] = False,
    test_clips: Annotated[
        TestClipsChoice | None,
        typer.Option(
            help="132 of MELD's test clips exist twice: fixed checks the corrected cuts, legacy "
            "the plain names.  [default: fixed]"
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="HTML file to write.  [default: doctor.html]")
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Folder where caches would be written; its free disk space is checked.  "
            "[default: features]"
        ),
    ] = None,
    weights_dir: WeightsDir = None,
    workers: Cores = None,
    as_json: AsJson = False,
) -> None:
    """Check a corpus and this machine: what is missing, broken or mis-cut, and is it known?

    Exit status 0: no defects, or only those that are published about MELD. 3: there are new ones.
    It writes a page with frames of the clips that have findings, changes nothing else and downloads
    nothing.
    """
    from console.show.doctor import show_checkup, show_machine
    from pipeline.doctor.examine import DoctorConfig, examine, look_around
    from pipeline.settings import build_config

    options = given(
        data=data,
        deep=deep,
        test_clips=test_clips,
        html=html,
        features=features,
        weights_dir=weights_dir,
        workers=workers,
    )
    config = build_config(DoctorConfig, options)
    machine = look_around(config)
    if not as_json:
        show_machine(machine)
    try:
        with progress("checking clips", note="with findings") as advance:
            report = examine(config, machine, advance)
    except MeldError as error:
        if as_json:  # the machine was checked
            print_json({"machine": machine.to_dict(), "error": str(error)})
        raise
    show_checkup(report, as_json)
    if not report.is_healthy:
        raise typer.Exit(EXIT_SOME_FAILED)
