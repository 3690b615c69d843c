"""Loads the model that predicts: a given run, or the bundled one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusion.inference.bundled import bundled_run
from fusion.inference.predictor import Predictor
from pipeline.errors import UsageError
from pipeline.system.device import has_gpu


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """run: a trained run; None takes the bundled one. The other fields are as in `Predictor.load`;
    "auto" uses a GPU if there is one, and the precision that the run was trained with."""

    run: Path | None = None
    weights_dir: Path | None = None
    encoders: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def load(self) -> Predictor:
        """Raises UsageError where the device or precision is not available, else as
        `Predictor.load`."""
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"--precision {self.precision}: auto, float32 or bfloat16")
        return Predictor.load(
            self._folder,
            weights_dir=self.weights_dir,
            encoders=self.encoders,
            device=choose_device(self.device),
            precision=None if self.precision == "auto" else self.precision,
        )

    def check(self) -> str:
        """Checks that the folder is a run, which other processes will load, and returns its name.
        Raises as `read_checkpoint`."""
        from fusion.inference.checkpoint import read_checkpoint  # PyTorch

        read_checkpoint(self._folder)
        return self._folder.resolve().name

    @property
    def _folder(self) -> Path:
        return bundled_run() if self.run is None else self.run


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Resolves "auto" for this machine. Raises UsageError."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: auto, cpu or cuda")
    if device == "cuda" and not has_gpu():
        raise UsageError("--device cuda: PyTorch finds no GPU here; use --device cpu or auto")
    return "cuda" if device != "cpu" and has_gpu() else "cpu"
