"""Scores of a run on a subset of the rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.evaluation.bootstrap import confusions_by_dialogue
from fusion.evaluation.scores import accuracy_of, weighted_f1_of
from fusion.inference.predictions import Predictions
from fusion.labels import Labels
from pipeline.schema import EMOTIONS, SENTIMENTS

Chosen = NDArray[np.bool_]  # [rows]


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Scores over some rows; None where none of them has the head's label."""

    name: str
    rows: int
    emotion_weighted_f1: float | None
    emotion_accuracy: float | None
    sentiment_weighted_f1: float | None
    sentiment_accuracy: float | None


def measure_slice(name: str, predictions: Predictions, chosen: Chosen) -> Slice:
    """chosen: bool [rows], True = belongs to it."""
    emotion = _scores(
        predictions.emotion[chosen], predictions.predicted_emotion[chosen], len(EMOTIONS)
    )
    sentiment = _scores(
        predictions.sentiment[chosen], predictions.predicted_sentiment[chosen], len(SENTIMENTS)
    )
    return Slice(
        name=name,
        rows=int(chosen.sum()),
        emotion_weighted_f1=emotion[0],
        emotion_accuracy=emotion[1],
        sentiment_weighted_f1=sentiment[0],
        sentiment_accuracy=sentiment[1],
    )


def _scores(
    true: Labels, predicted: Labels, num_classes: int
) -> tuple[float, float] | tuple[None, None]:
    """Weighted F1 and accuracy."""
    as_one = np.zeros(len(true), np.int64)
    confusion = confusions_by_dialogue(true, predicted, as_one, num_classes).sum(axis=0)
    if not confusion.any():
        return None, None
    return float(weighted_f1_of(confusion)), float(accuracy_of(confusion))
