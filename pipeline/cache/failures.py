"""The ledger of failures in our HDF5 files: group `failures`, one entry per `ClipFailure`."""

from collections.abc import Sequence

import numpy as np

from pipeline.cache.hdf5 import Reader, Writer
from pipeline.schema import ClipFailure, ClipKey, Split

_TEXTS = ("modality", "stage", "code", "message")


def write_failures(writer: Writer, failures: Sequence[ClipFailure]) -> None:
    keys = np.array([failure.key[1:] for failure in failures], np.int64).reshape(-1, 2)
    writer.array("failures/dialogue_id", keys[:, 0])
    writer.array("failures/utterance_id", keys[:, 1])
    for name in _TEXTS:
        writer.strings(f"failures/{name}", [getattr(failure, name) for failure in failures])
    writer.array("failures/lost", np.array([failure.lost for failure in failures], np.bool_))


def read_failures(reader: Reader, split: Split) -> tuple[ClipFailure, ...]:
    columns = [
        reader.array("failures/dialogue_id", np.int64, 1).tolist(),
        reader.array("failures/utterance_id", np.int64, 1).tolist(),
        *(reader.strings(f"failures/{name}") for name in _TEXTS),
        reader.array("failures/lost", np.bool_, 1).tolist(),
    ]
    return tuple(
        ClipFailure(
            key=ClipKey(split, dialogue, utterance),
            modality=modality,
            stage=stage,
            code=code,
            message=message,
            lost=lost,
        )
        for dialogue, utterance, modality, stage, code, message, lost in zip(*columns, strict=True)
    )
