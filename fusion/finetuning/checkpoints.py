"""Checkpoints of an unfinished fine-tuning: the last state, to resume from, and the best weights so
far.

    checkpoints/settings.json      what is being trained; another training is refused
    checkpoints/step.json          how far it is, about once a second
    checkpoints/last.pt            weights, optimiser, where in which epoch, history
    checkpoints/best.safetensors   weights of the best epoch

Each file appears whole. Only the first worker writes.
"""

import io
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import nn

from fusion.finetuning.workers import Worker
from fusion.inference.description import CHECKPOINTS
from fusion.training.history import EpochResult
from fusion.training.run_folder import HISTORY
from pipeline.errors import CacheCorrupt, StorageError, UsageError
from pipeline.system.files import remove_temporaries, write_whole
from pipeline.system.json_values import MALFORMED


class ProgressFolder:
    """The folder of one fine-tuning run."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.folder = run / CHECKPOINTS
        self._settings = self.folder / "settings.json"
        self._last = self.folder / "last.pt"
        self._best = self.folder / "best.safetensors"
        self._step = self.folder / "step.json"
        self._told_s = 0.0

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder of a new training. Raises StorageError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._last.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be made: {error.strerror}") from error
        write_whole(self._settings, json.dumps(settings, indent=2, sort_keys=True).encode())

    @property
    def is_begun(self) -> bool:
        return self._settings.is_file()

    @property
    def has_steps(self) -> bool:
        """Whether anything was trained, or at least measured."""
        return self._last.is_file() or self._best.is_file()

    def remove_leftovers(self) -> None:
        """Removes temporary files that a kill left; only for the holder of the run's lock. Raises
        StorageError."""
        try:
            for path in (self._settings, self._last, self._best, self._step):
                remove_temporaries(path)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be written: {error}") from error

    def read_settings(self) -> dict[str, Any]:
        """Raises UsageError where no fine-tuning was begun here, CacheCorrupt."""
        if not self._settings.is_file():
            raise UsageError(f"--resume: no unfinished fine-tuning in {self.run}")
        try:
            settings = json.loads(self._settings.read_bytes())
        except MALFORMED as error:
            raise CacheCorrupt(f"{self._settings}: not JSON ({error})") from error
        if not isinstance(settings, dict):
            raise CacheCorrupt(f"{self._settings}: not a table of settings")
        return settings

    def save_last(self, state: Mapping[str, Any], worker: Worker) -> None:
        if worker.is_first:
            image = io.BytesIO()
            torch.save(dict(state), image)
            with image.getbuffer() as content:  # let go whatever happens, or Python 3.12 may crash
                write_whole(self._last, content)

    def load_last(self) -> dict[str, Any] | None:
        """Raises CacheCorrupt."""
        if not self._last.is_file():
            return None
        try:
            return torch.load(self._last, map_location="cpu", weights_only=True)
        except Exception as error:  # what a damaged archive raises shares no base class
            raise CacheCorrupt(
                f"{self._last}: cannot be read ({type(error).__name__}); "
                f"delete {self.folder} and start anew"
            ) from error

    def save_best(self, model: nn.Module, worker: Worker) -> None:
        if worker.is_first:
            weights = {
                name: value.detach().cpu().contiguous()
                for name, value in model.state_dict().items()
            }
            write_whole(self._best, save_tensors(weights))

    def load_best(self, model: nn.Module) -> None:
        try:
            model.load_state_dict(load_file(self._best))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise StorageError(f"{self._best}: cannot be read: {error}") from error

    def write_history(self, history: Sequence[EpochResult], worker: Worker) -> None:
        """Writes the whole history, so that a resumed run does not repeat an epoch."""
        if worker.is_first:
            lines = "".join(json.dumps(asdict(result)) + "\n" for result in history)
            write_whole(self.run / HISTORY, lines.encode())

    def tell_step(self, step: Mapping[str, Any]) -> None:
        """Writes the progress for a watching process, at most about once a second."""
        if time.monotonic() - self._told_s > 1:
            write_whole(self._step, json.dumps(step).encode())
            self._told_s = time.monotonic()

    def last_step(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._step.read_bytes())
        except (OSError, *MALFORMED):  # not there yet
            return None
