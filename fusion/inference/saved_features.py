"""Saves the features of a file's utterances batch by batch, so that a killed prediction is resumed
and ends with the same numbers."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fusion.inference.segments import SpokenSpan
from pipeline.schema import MODALITIES, ClipFailure, ClipFeatures, Modality, Utterance
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED

FOLDER = ".meld-predict"


class SavedFeatures:
    """A folder of batches for one file, one model and these utterances; anything else has another
    folder."""

    def __init__(self, out: Path, *, media: str, model: str, spans: Sequence[SpokenSpan]) -> None:
        """
        media: what stands for the file's bytes
        model: what stands for the weights, the encoders and what they compute with
        """
        asked = [media, model, [asdict(each) for each in spans]]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        self.folder = out / FOLDER / digest[:32]

    def read(self, batch: int, utterances: Sequence[Utterance]) -> list[ClipFeatures] | None:
        """None where the batch is missing or damaged; it is then computed again."""
        try:
            content = (self._file(batch)).read_bytes()
            tensors = load(content)
            failures = json.loads(tensors.pop("failures").tobytes())
            found = [
                ClipFeatures(
                    utterance=utterance,
                    raw=_of_row(tensors, row),
                    failures=tuple(_failure(utterance, values) for values in failures[row]),
                )
                for row, utterance in enumerate(utterances)
            ]
        except (OSError, SafetensorError, *MALFORMED):
            return None
        return found if len(failures) == len(utterances) else None

    def write(self, batch: int, features: Sequence[ClipFeatures]) -> None:
        """Raises StorageError."""
        tensors = {
            f"{row}.{name}": np.ascontiguousarray(values)
            for row, each in enumerate(features)
            for name, values in each.raw.items()
        }
        failures = [[_values(failure) for failure in each.failures] for each in features]
        tensors["failures"] = np.frombuffer(json.dumps(failures).encode(), np.uint8)
        write_whole(self._file(batch), save(tensors))

    def remove(self) -> None:
        """Removes the batches; they are not needed once the timeline is written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # another file's are still in it
            self.folder.parent.rmdir()

    def _file(self, batch: int) -> Path:
        return self.folder / f"batch-{batch:06d}.safetensors"


def _of_row(
    tensors: dict[str, NDArray[np.float32]], row: int
) -> dict[Modality, NDArray[np.float32]]:
    return {name: tensors[f"{row}.{name}"] for name in MODALITIES if f"{row}.{name}" in tensors}


def _values(failure: ClipFailure) -> dict[str, Any]:
    return {name: value for name, value in vars(failure).items() if name != "key"}


def _failure(utterance: Utterance, values: dict[str, Any]) -> ClipFailure:
    return ClipFailure(key=utterance.key, **values)
