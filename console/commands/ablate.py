"""`meld ablate`: every subset of modalities with every fusion type."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import (
    AsJson,
    ConfigFile,
    ContextOption,
    DeviceOption,
    DevShare,
    Features,
    FutureOption,
    InputKindOption,
    MeasuredSplit,
    ModalityNames,
    MostEpochs,
)
from console.progress import progress
from console.settings import read_settings
from pipeline.options import given, modalities_in

EPILOG = (
    "Examples: `meld ablate --out runs/ablation`   "
    "`meld ablate --fusion late,gated --seeds 3`   "
    "`meld report RUN --ablation runs/ablation/ablation.json`"
)


@reports_errors
def ablate(
    features: Features = None,
    modalities: ModalityNames = None,
    fusion: Annotated[
        str | None, typer.Option(help="Comma-separated fusion types.  [default: all five]")
    ] = None,
    context: ContextOption = None,
    future: FutureOption = False,
    input_kind: InputKindOption = None,
    split: Annotated[
        MeasuredSplit | None,
        typer.Option(
            help="Split to measure on; test counts as one test evaluation.  [default: dev]"
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds per cell of the table.  [default: 5]")
    ] = None,
    epochs: MostEpochs = None,
    dev_share: DevShare = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the results to.  [default: runs/ablation]")
    ] = None,
    device: DeviceOption = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Train every subset of modalities with every fusion type: one table and one plot.

    A stopped ablation is resumed by the same command.
    """
    names = None if fusion is None else tuple(part.strip() for part in fusion.split(","))
    options = given(
        features=features,
        modalities=modalities_in(modalities),
        fusions=names,
        input=input_kind,
        split=split,
        seeds=seeds,
        dev_share=dev_share,
        out=out,
        device=device,
    )
    said = read_settings(
        config,
        options,
        refused=("model.fusion",),
        model=given(context=context, future=future),
        fit=given(epochs=epochs),
    )

    from console.show.ablation import show_ablation
    from fusion.experiments.ablation import AblateConfig
    from fusion.experiments.ablation import ablate as run_ablation

    ablate_config = said.build(AblateConfig)
    with progress("cells") as advance:
        result = run_ablation(ablate_config, advance)
    show_ablation(result, as_json)
