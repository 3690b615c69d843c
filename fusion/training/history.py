"""The result of each epoch of a training, and the file `history.jsonl` that holds them."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import CacheCorrupt, StorageError
from pipeline.system.json_values import MALFORMED

_MAY_BE_NONE = ("train_loss", "dev_emotion_f1", "dev_sentiment_f1")  # of EpochResult


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


def mean_of(results: Sequence[EpochResult]) -> EpochResult:
    """The mean of what several trainings found in the same epoch."""

    def mean(name: str) -> float | None:
        values = [getattr(each, name) for each in results]
        return None if None in values else sum(values) / len(values)

    names = [field.name for field in dataclasses.fields(EpochResult) if field.name != "epoch"]
    return EpochResult(epoch=results[0].epoch, **{name: mean(name) for name in names})  # type: ignore[arg-type]


def mean_history(histories: Sequence[Sequence[EpochResult]]) -> tuple[EpochResult, ...]:
    """Of the members of an ensemble, epoch by epoch, those that had stopped left out."""
    by_epoch: dict[int, list[EpochResult]] = {}
    for each in (result for history in histories for result in history):
        by_epoch.setdefault(each.epoch, []).append(each)
    return tuple(mean_of(by_epoch[epoch]) for epoch in sorted(by_epoch))


def _check_numbers(result: EpochResult) -> None:
    """Raises TypeError or ValueError."""
    if type(result.epoch) is not int:
        raise TypeError(f"epoch {result.epoch!r} is no number of an epoch")
    for name, value in dataclasses.asdict(result).items():
        if value is None and name in _MAY_BE_NONE:
            continue
        if type(value) not in (int, float):
            raise TypeError(f"{name} {value!r} is no number")
        # Of dev a loss may overflow where the scores are fine.
        if name != "dev_loss" and not math.isfinite(value):
            raise ValueError(f"{name} is {value}")


def read_history(path: Path) -> list[EpochResult]:
    """`history.jsonl` of a run. Raises CacheCorrupt or StorageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        history = [EpochResult(**json.loads(line)) for line in lines]
        for each in history:
            _check_numbers(each)
        return history
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except MALFORMED as error:
        raise CacheCorrupt(f"{path}: not a training history ({error})") from error
