"""Loads the model that predicts: a given run, or the bundled one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusion.inference.bundle import choose_runtime, read_export
from fusion.inference.bundled import bundled_run
from fusion.inference.description import read_description
from fusion.inference.predictor import Predictor
from pipeline.errors import UsageError
from pipeline.system.device import has_gpu
from pipeline.system.extras import is_installed, needs_extra


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """run: a trained run; None takes the bundled one. The other fields are as in `Predictor.load`;
    "auto" uses a GPU if there is one, the precision that the run was trained with, and what
    `choose_runtime` says."""

    run: Path | None = None
    weights_dir: Path | None = None
    encoders: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    runtime: Literal["auto", "torch", "onnx"] = "auto"

    def load(self) -> Predictor:
        """Raises UsageError where the device or precision is not available, else as
        `Predictor.load`."""
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise UsageError(f"--precision {self.precision}: auto, float32 or bfloat16")
        if self.runtime not in ("auto", "torch", "onnx"):
            raise UsageError(f"--runtime {self.runtime}: auto, torch or onnx")
        return Predictor.load(
            self._folder,
            weights_dir=self.weights_dir,
            encoders=self.encoders,
            device=self.resolved_device,
            precision=None if self.precision == "auto" else self.precision,
            runtime=None if self.runtime == "auto" else self.runtime,
        )

    def check(self) -> str:
        """Checks that the folder is a run, which other processes will load, and returns its name.
        Raises as `read_checkpoint`."""
        if not self._computes_graphs:
            with needs_extra("torch"):
                from fusion.inference.checkpoint import read_checkpoint

            read_checkpoint(self._folder)
        return self._folder.resolve().name

    @property
    def _computes_graphs(self) -> bool:
        """Whether ONNX graphs are computed, for which PyTorch need not be there."""
        if self.runtime != "auto":
            return self.runtime == "onnx"
        read_description(self._folder)  # where it is no run, that is told
        return choose_runtime(read_export(self._folder)) == "onnx"

    @property
    def resolved_device(self) -> Literal["cpu", "cuda"]:
        """What it is computed on. Raises UsageError where there is no such thing, else as
        `read_description`."""
        if self._computes_graphs and self.device in ("auto", "cuda"):
            return "cpu" if self.device == "auto" else "cuda"  # which is refused when it is loaded
        return choose_device(self.device)

    @property
    def _folder(self) -> Path:
        return bundled_run() if self.run is None else self.run


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """Resolves "auto" for this machine. Raises UsageError."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {device}: auto, cpu or cuda")
    if device == "cuda" and not is_installed("torch"):
        raise UsageError(
            "--device cuda: PyTorch is not installed; get it with: pip install 'meld[torch]'"
        )
    if device == "cuda" and not has_gpu():
        raise UsageError("--device cuda: PyTorch finds no GPU here; use --device cpu or auto")
    return "cuda" if device != "cpu" and has_gpu() else "cpu"
