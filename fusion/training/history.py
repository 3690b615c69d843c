"""The result of each epoch of a training, and the file `history.jsonl` that holds them."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CacheCorrupt, StorageError


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One epoch, counted from 1. The F1s are weighted, and None where dev has no labels or the head
    is untrained.

    With a warm start, epoch 0 is the start itself and has no train_loss.

    score: the mean of the F1s that are not None; it chooses the best epoch
    """

    epoch: int
    train_loss: float | None
    dev_loss: float
    dev_emotion_f1: float | None
    dev_sentiment_f1: float | None
    score: float
    learning_rate: float
    seconds: float


def read_history(path: Path) -> list[EpochResult]:
    """`history.jsonl` of a run. Raises CacheCorrupt or StorageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        history = [EpochResult(**json.loads(line)) for line in lines]
        for value in (value for each in history for value in dataclasses.astuple(each)):
            if value is not None and type(value) not in (int, float):
                raise TypeError(f"{value!r} is no number")
        return history
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: not a training history ({error})") from error
