"""The model that predicts: a run that is named, or the one that comes with this program."""

from pathlib import Path
from typing import Literal

from fusion.inference.bundled import bundled_run
from fusion.inference.predictor import Predictor
from pipeline.errors import UsageError
from pipeline.system.device import has_gpu


def load_model(
    model: Path | None,
    *,
    weights_dir: Path | None = None,
    encoders: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Predictor:
    """model: a trained run; None takes the one that comes with this program. Raises as
    `Predictor.load`."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: auto, cpu or cuda")
    if device == "cuda" and not has_gpu():
        raise UsageError("--device cuda: PyTorch finds no GPU here; use --device cpu or auto")
    chosen = "cuda" if device == "cuda" or (device == "auto" and has_gpu()) else "cpu"
    run = bundled_run() if model is None else model
    return Predictor.load(run, weights_dir=weights_dir, encoders=encoders, device=chosen)
