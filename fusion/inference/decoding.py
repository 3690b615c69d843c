"""Both heads decoded together: in MELD the sentiment follows from the emotion, except for surprise.

The score of an emotion and a sentiment is the sum of their calibrated log-probabilities, that of
the sentiment times a weight; the run predicts the best pair among those that occur in train.
Temperatures and weight come from dev, the pairs from train.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.inference.temperature import Temperature
from fusion.labels import Labels, Logits
from pipeline.schema import EMOTIONS, SENTIMENTS

Pairs = tuple[tuple[bool, ...], ...]  # [7][3]: may this emotion have this sentiment


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a run's logits become probabilities and labels.

    emotion, sentiment: each head's temperature
    sentiment_weight:   weight of the sentiment head's log-probability relative to the emotion
    head's
    allowed:            [7][3], in the order of EMOTIONS and SENTIMENTS
    """

    emotion: Temperature
    sentiment: Temperature
    sentiment_weight: float
    allowed: Pairs

    def __post_init__(self) -> None:
        weight = self.sentiment_weight
        if type(weight) is not float or not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"sentiment_weight must be a finite float above 0, not {weight!r}")
        shape = [len(EMOTIONS)] + [len(SENTIMENTS)] * len(EMOTIONS)
        if [len(self.allowed), *map(len, self.allowed)] != shape:
            raise ValueError(f"allowed pairs must be {len(EMOTIONS)} rows of {len(SENTIMENTS)}")
        if any(type(pair) is not bool for row in self.allowed for pair in row):
            raise ValueError("allowed pairs must be true or false")
        if not all(map(any, self.allowed)) or not all(map(any, zip(*self.allowed, strict=True))):
            raise ValueError("every emotion needs an allowed sentiment, and the other way round")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Decoding":
        """Raises KeyError, TypeError or ValueError where `values` is no such thing."""
        return cls(
            emotion=Temperature.from_dict(values["emotion"]),
            sentiment=Temperature.from_dict(values["sentiment"]),
            sentiment_weight=values["sentiment_weight"],
            allowed=tuple(tuple(row) for row in values["allowed"]),
        )


@dataclass(frozen=True, kw_only=True)
class JointLabels:
    """emotion, sentiment: int64 [rows]; every pair is an allowed one."""

    emotion: Labels
    sentiment: Labels


def decode(decoding: Decoding, emotion_logits: Logits, sentiment_logits: Logits) -> JointLabels:
    """emotion_logits [rows, 7], sentiment_logits [rows, 3] -> the best allowed pair of each row."""
    emotion = decoding.emotion.log_probabilities(emotion_logits)
    sentiment = decoding.sentiment.log_probabilities(sentiment_logits)
    pairs = emotion[:, :, None] + decoding.sentiment_weight * sentiment[:, None, :]
    pairs = np.where(np.array(decoding.allowed), pairs, -np.inf)  # [rows, 7, 3]
    best = pairs.reshape(len(pairs), -1).argmax(axis=1)
    return JointLabels(emotion=best // len(SENTIMENTS), sentiment=best % len(SENTIMENTS))


def contradicts(decoding: Decoding, labels: JointLabels) -> NDArray[np.bool_]:
    """bool [rows]: the pair is not an allowed one."""
    return ~np.array(decoding.allowed)[labels.emotion, labels.sentiment]
