"""`meld train-fusion`: feature caches -> a trained run."""

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
    Ensemble,
    Features,
    FusionOption,
    FutureOption,
    InputKindOption,
    ModalityNames,
    MostEpochs,
    OverwriteRun,
    Seed,
    Teacher,
    TrackerOption,
)
from console.progress import progress
from console.settings import read_settings
from pipeline.options import given, modalities_in

EPILOG = (
    "Examples: `meld train-fusion`   "
    "`meld train-fusion --modalities text --out runs/text --seed 1`   "
    "`meld train-fusion --features features-tuned --start runs/tuned`"
)


@reports_errors
def train_fusion(
    features: Features = None,
    modalities: ModalityNames = None,
    input_kind: InputKindOption = None,
    fusion: FusionOption = None,
    context: ContextOption = None,
    future: FutureOption = False,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Warm start: train on from this run, on features made with the same recipe. The "
            "run is kept as it is if no epoch is better on dev."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run.  [default: a new one under runs/]")
    ] = None,
    seed: Seed = None,
    ensemble: Ensemble = None,
    distil: Teacher = None,
    epochs: MostEpochs = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Batch size in rows.  [default: 256, or less if train has few rows]"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak learning rate of AdamW.  [default: 0.001; 0.0003 with --start]"),
    ] = None,
    dev_share: DevShare = None,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Without a dev cache: train again on all of train, the dialogues that were held "
            "out too, for all epochs. Scores on dev stay those of the training without them.",
        ),
    ] = False,
    device: DeviceOption = None,
    tracker: TrackerOption = None,
    config: ConfigFile = None,
    overwrite: OverwriteRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a fusion model on cached features; the epoch is chosen on dev.

    Without a dev cache, a share of train's dialogues is held out as dev. They are the same for
    every seed, and the run records them.
    """
    options = given(
        features=features,
        modalities=modalities_in(modalities),
        input=input_kind,
        start=start,
        out=out,
        seed=seed,
        ensemble=ensemble,
        distil=distil,
        dev_share=dev_share,
        refit=refit,
        device=device,
        tracker=tracker,
        overwrite=overwrite,
    )
    said = read_settings(
        config,
        options,
        model=given(fusion=fusion, context=context, future=future),
        fit=given(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate),
    )

    from console.show.training import show_training
    from fusion.training.config import TrainConfig
    from fusion.training.train import train_fusion as run_training

    train_config = said.build(TrainConfig)
    with progress("training") as advance:
        result = run_training(
            train_config, lambda epoch: advance(epoch.epoch, train_config.fit.epochs)
        )
    show_training(result, train_config.features, as_json)
