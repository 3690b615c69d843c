"""`meld search`: a search for the settings of train-fusion."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import (
    AsJson,
    ConfigFile,
    DeviceOption,
    DevShare,
    Features,
    InputKindOption,
    ModalityNames,
)
from console.progress import progress
from console.settings import read_settings
from pipeline.options import given, modalities_in

EPILOG = (
    "Examples: `meld search --modalities text --trials 27`   "
    "`meld train-fusion --config runs/search/best.toml`"
)


@reports_errors
def search(
    features: Features = None,
    modalities: ModalityNames = None,
    input_kind: InputKindOption = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Number of settings to draw, the defaults among them.  [default: 27]"),
    ] = None,
    fixed: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated settings that keep their values, such as model.fusion; so do "
            "those in --config that differ from the defaults."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of what is drawn.  [default: 0]")
    ] = None,
    dev_share: DevShare = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search.  [default: runs/search]")
    ] = None,
    device: DeviceOption = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Search settings of train-fusion on dev; test is not read.

    Settings are drawn at random, and each draw is trained with one seed; the best third goes on
    with three times as many seeds, and so on. A stopped search is resumed by the same command. It
    ends in a TOML file for `meld train-fusion --config` and in a page that shows what mattered.
    """
    options = given(
        features=features,
        modalities=modalities_in(modalities),
        input=input_kind,
        trials=trials,
        fixed=None if fixed is None else tuple(part.strip() for part in fixed.split(",")),
        seed=seed,
        dev_share=dev_share,
        out=out,
        device=device,
    )
    said = read_settings(config, options)

    from console.show.search import show_search
    from fusion.experiments.search import SearchConfig
    from fusion.experiments.search import search as run_search

    search_config = said.build(SearchConfig)
    with progress("trainings") as advance:
        report = run_search(
            search_config,
            lambda done, total, best: advance(
                done, total, told="" if best is None else f"best so far {best:.4f}"
            ),
        )
    show_search(report, as_json)
