"""`meld export` and `meld verify`: a model as one folder to ship, and a check of it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.edge import needs_extra, reports_errors
from console.options import (
    AsJson,
    DeviceOption,
    EncoderOwner,
    MeasuredSplit,
    QuantiseChoice,
    RuntimeOption,
    TrainedRun,
    WeightsDir,
)
from console.printing import say
from console.progress import progress
from pipeline.errors import MismatchError
from pipeline.options import given, learning_rates_in
from pipeline.settings import build_config

if TYPE_CHECKING:
    from fusion.finetuning.loop import StepResult

EXPORT_EPILOG = (
    "Examples: `meld export runs/all --out shipped --onnx`   "
    "`meld export runs/all --out small --quantise int8 --data data`   "
    "`meld export runs/all --out half --prune 0.5 --data data`"
)
VERIFY_EPILOG = "Examples: `meld verify shipped`   `meld verify shipped --json`"


@reports_errors
def export(
    run: TrainedRun,
    out: Annotated[Path, typer.Option(help="Folder to write the bundle to.")],
    link_encoders: Annotated[
        bool,
        typer.Option(
            "--link-encoders",
            help="Leave the pretrained encoders out: the bundle has their names and hashes, and "
            "whoever loads it needs the same weights.",
        ),
    ] = False,
    onnx: Annotated[
        bool,
        typer.Option(
            "--onnx", help="Write ONNX graphs of the encoders and of the fusion model as well."
        ),
    ] = False,
    quantise: Annotated[
        QuantiseChoice | None,
        typer.Option(
            help="int8: write graphs with 8-bit weights instead of the encoders. bfloat16: write "
            "encoders that compute in bfloat16.  [default: nothing is quantised]"
        ),
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(
            help="Share of the attention heads, feed-forward neurons, channels and hidden units of "
            "each layer to remove, such as 0.3; what is left is fine-tuned, in --out.pruning.  "
            "[default: nothing is removed]"
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="With --prune: epochs of that fine-tuning, at most.  [default: 3]"),
    ] = None,
    learning_rate: Annotated[
        str | None,
        typer.Option(
            help="With --prune: its peak learning rates, as meld finetune takes them.  [default: "
            "those of meld finetune]"
        ),
    ] = None,
    max_loss: Annotated[
        float,
        typer.Option(
            help="Points of weighted F1 that --quantise and --prune may lose: limit of the lower "
            "bound of the difference's 95 % interval."
        ),
    ] = 1.0,
    data: Annotated[
        Path | None,
        typer.Option(
            help="With --quantise or --prune: corpus that the loss is measured on, its CSVs, and "
            "its clips if the run sees or hears.  [default: the run's own, or data]"
        ),
    ] = None,
    split: Annotated[
        MeasuredSplit, typer.Option(help="With --quantise or --prune: split of that corpus.")
    ] = MeasuredSplit.dev,
    weights_dir: WeightsDir = None,
    encoders: EncoderOwner = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Replace the bundle that is in --out; a folder that holds anything else is "
            "refused.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run as a bundle: one folder that predicts anywhere, without a download.

    It holds the weights, the encoders, a model card with the run's scores, and golden clips with
    the expected probabilities, which meld verify computes on another machine. meld predict, serve,
    listen and evaluate take a bundle wherever they take a run.
    """
    from console.show.bundle import show_export, show_gate

    with needs_extra("export"):
        from fusion.export.export import ExportConfig
        from fusion.export.export import export as write_bundle
        from fusion.export.gate import ExportRefused
        from fusion.export.prune import Watch
        from fusion.finetuning.loop import TuneConfig

    tune = given(epochs=epochs, learning_rates=learning_rates_in(learning_rate))

    config = ExportConfig(
        run=run,
        out=out,
        link_encoders=link_encoders,
        onnx=onnx,
        quantise=None if quantise is None else quantise.value,
        prune=prune,
        tune=build_config(TuneConfig, tune, table="tune"),
        max_loss=max_loss,
        data=data,
        split=split.value,
        weights_dir=weights_dir,
        encoders=encoders,
        overwrite=overwrite,
    )
    try:
        if prune is None:
            result = write_bundle(config)
        else:
            with progress("clips", note="failures") as advance:

                def follow(step: "StepResult") -> None:
                    told = f"{step.rows_per_s:.0f} a second, epoch {step.epoch}"
                    advance(step.rows, step.rows_in_all, told=f"{told}, loss {step.loss:.3f}")

                watch = Watch(say=say, on_step=follow, on_progress=advance)
                result = write_bundle(config, watch)
    except ExportRefused as refused:
        show_gate(refused.report, as_json)
        raise
    show_export(result, as_json)


@reports_errors
def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder that meld export wrote.")],
    weights_dir: WeightsDir = None,
    device: DeviceOption = None,
    runtime: RuntimeOption = None,
    as_json: AsJson = False,
) -> None:
    """Check whether a bundle predicts here what it predicted where it was exported.

    Every file is compared with its hash, and the golden clips are computed: what was decoded, the
    features of each encoder, and the probabilities from every choice of modalities. Ends with
    status 6 if a probability differs by more than 0.005.
    """
    from console.show.bundle import show_verification
    from fusion.export.verify import VerifyConfig
    from fusion.export.verify import verify as verify_bundle

    config = VerifyConfig(
        bundle=bundle,
        weights_dir=weights_dir,
        device="auto" if device is None else device.value,
        runtime="auto" if runtime is None else runtime.value,
    )
    verification = verify_bundle(config)
    show_verification(verification, as_json)
    if not verification.trusted:
        raise MismatchError(
            f"{bundle}: this machine gives other probabilities than the one that exported it "
            f"({verification.worst}); do not rely on it here"
        )
