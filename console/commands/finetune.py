"""`meld finetune`: a trained run and raw clips -> a run that owns its encoders."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.edge import reports_errors
from console.options import (
    AsJson,
    ClusterAddress,
    ConfigFile,
    DeviceOption,
    DevShare,
    Ensemble,
    FeaturesOfRun,
    ModalityNames,
    OverwriteRun,
    PrecisionChoice,
    Seed,
    Teacher,
    WeightsDir,
)
from console.printing import say
from console.progress import progress
from console.settings import read_settings
from pipeline.errors import UsageError
from pipeline.options import given, learning_rates_in, modalities_in

if TYPE_CHECKING:
    from fusion.finetuning.loop import StepResult

EPILOG = (
    "Examples: `meld finetune --end-to-end --run runs/first`   "
    "`meld finetune --end-to-end --modalities text --epochs 3 --out runs/tuned`   "
    "`meld finetune --end-to-end --resume --out runs/tuned`"
)


@reports_errors
def finetune(
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end", help="Required: the encoders and the fusion model are trained together."
        ),
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(help="Trained run to start from.  [default: train one first]"),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the CSVs and clips.  [default: data]")
    ] = None,
    features: FeaturesOfRun = None,
    modalities: ModalityNames = None,
    unfreeze: Annotated[
        str | None,
        typer.Option(
            help="Modalities whose encoders are trained, comma-separated.  "
            "[default: all that can be]"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Maximum number of epochs.  [default: 3]")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Batch size in rows, over all workers.  [default: 32]"),
    ] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            help="Peak learning rates of text, video, audio and heads, such as "
            "text=1e-5,heads=1e-4.  "
            "[default: text=3e-05, video=0.0001, audio=0.001, heads=0.0003]"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the new run.  [default: a new one under runs/]")
    ] = None,
    seed: Seed = None,
    ensemble: Ensemble = None,
    distil: Teacher = None,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Decay of an average of the weights over steps (EMA), such as 0.99, which the run "
            "then gets; 0 takes the weights as they are.  [default: 0.0]"
        ),
    ] = None,
    dev_share: DevShare = None,
    device: DeviceOption = None,
    precision: Annotated[
        PrecisionChoice | None,
        typer.Option(
            help="Precision that the encoders compute in; weights stay float32.  [default: auto]"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of Ray Train workers, with one GPU each if there are GPUs.  [default: 1]"
        ),
    ] = None,
    address: ClusterAddress = None,
    weights_dir: WeightsDir = None,
    encoders: Annotated[
        Path | None,
        typer.Option(
            help="Fine-tuned run whose encoders made the features.  [default: the one recorded in "
            "them]"
        ),
    ] = None,
    config: ConfigFile = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the unfinished run in --out.")
    ] = False,
    overwrite: OverwriteRun = False,
    as_json: AsJson = False,
) -> None:
    """Unfreeze the encoders of a trained run and train encoders and fusion together on raw clips.

    Before step 1 the logits on raw input are compared with those on the cache. The new run owns
    its encoders: `meld evaluate` measures it on raw clips, `meld extract --encoders` makes
    features with them. A killed fine-tuning is resumed with --resume and ends with the same
    weights.
    """
    if not end_to_end:
        raise UsageError("finetune trains encoders and fusion together: say --end-to-end")
    options = given(
        run=run,
        data=data,
        features=features,
        modalities=modalities_in(modalities),
        unfreeze=modalities_in(unfreeze, "--unfreeze"),
        out=out,
        seed=seed,
        ensemble=ensemble,
        distil=distil,
        dev_share=dev_share,
        device=device,
        precision=precision,
        workers=workers,
        address=address,
        weights_dir=weights_dir,
        encoders=encoders,
        resume=resume,
        overwrite=overwrite,
    )
    tune = given(
        epochs=epochs,
        batch_size=batch_size,
        learning_rates=learning_rates_in(learning_rate),
        ema=ema,
    )
    said = read_settings(config, options, tune=tune)

    from console.show.training import show_finetuning
    from fusion.finetuning.finetune import finetune as run_finetuning
    from fusion.finetuning.job import FinetuneConfig

    finetune_config = said.build(FinetuneConfig)
    with progress("clips", note="failures") as advance:

        def follow(step: "StepResult") -> None:
            told = f"{step.rows_per_s:.0f} a second, epoch {step.epoch}, loss {step.loss:.3f}"
            advance(step.rows, step.rows_in_all, told=told)

        result = run_finetuning(finetune_config, say, follow, advance)
    show_finetuning(result, as_json)
