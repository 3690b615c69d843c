"""`meld crossval`: cross-validation on feature caches."""

from pathlib import Path
from typing import Annotated

import typer

from console.edge import reports_errors
from console.options import (
    AsJson,
    ConfigFile,
    ContextOption,
    DeviceOption,
    Features,
    FusionOption,
    FutureOption,
    GroupChoice,
    InputKindOption,
    ModalityNames,
    MostEpochs,
)
from console.progress import progress
from console.settings import read_settings
from pipeline.options import given, modalities_in

EPILOG = (
    "Examples: `meld crossval`   "
    "`meld crossval --modalities text --context dialogue --seeds 5 --out crossval.json`   "
    "`meld crossval --group speaker --folds 10`"
)


@reports_errors
def crossval(
    features: Features = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Number of folds; as many as there are groups is leave-one-out.  [default: 5]"
        ),
    ] = None,
    group: Annotated[
        GroupChoice | None,
        typer.Option(
            help="Group that stays in one fold: dialogue or speaker.  [default: dialogue]"
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds, each trained on every fold.  [default: 5]")
    ] = None,
    modalities: ModalityNames = None,
    input_kind: InputKindOption = None,
    fusion: FusionOption = None,
    context: ContextOption = None,
    future: FutureOption = False,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Random seed of the dialogues that choose the epoch, and of which fold "
            "gets which of several dialogues or speakers with the same labels.  [default: 0]"
        ),
    ] = None,
    epochs: MostEpochs = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.  [default: none]")] = None,
    device: DeviceOption = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Cross-validate on train and, if it exists, dev: folds x seeds, trained as one batched model.

    Every row is predicted by models that were trained without its dialogue or, with --group
    speaker, without what its speaker says. Test is not read.
    """
    options = given(
        features=features,
        folds=folds,
        group=group,
        seeds=seeds,
        modalities=modalities_in(modalities),
        input=input_kind,
        seed=seed,
        out=out,
        device=device,
    )
    said = read_settings(
        config,
        options,
        model=given(fusion=fusion, context=context, future=future),
        fit=given(epochs=epochs),
    )

    from console.show.crossval import show_crossval
    from fusion.experiments.crossval import CrossvalConfig
    from fusion.experiments.crossval import crossval as run_crossval

    crossval_config = said.build(CrossvalConfig)
    with progress("epochs") as advance:
        report = run_crossval(crossval_config, advance)
    show_crossval(report, out, as_json)
