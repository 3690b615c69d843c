"""Both heads decoded together: in MELD the sentiment follows from the emotion, except for surprise.

The score of an emotion and a sentiment is the sum of their calibrated log-probabilities, that of
the sentiment times a weight; the best pair among those that occur in train is what the run says.
Temperatures and weight come from dev, the pairs from train.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.calibration import Temperature, fit_temperature
from fusion.losses import UNLABELLED
from fusion.metrics import JointScores, Labels, selection_score, weighted_f1
from fusion.predictions import Predictions
from pipeline.schema import EMOTIONS, SENTIMENTS

Pairs = tuple[tuple[bool, ...], ...]  # [7][3]: may this emotion have this sentiment

# 1/8 to 8. A weight of 0 would leave the sentiment of surprise to the order of the classes.
_WEIGHTS = tuple(2.0 ** (step / 2) for step in range(-6, 7))


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a run's logits become probabilities and labels.

    emotion, sentiment: each head's temperature
    sentiment_weight:   what the sentiment head's log-probability counts beside the emotion head's
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


def allowed_pairs(emotion: Labels, sentiment: Labels) -> Pairs:
    """The pairs that occur in train's labels, int64 [rows] each, UNLABELLED = none.

    Only rows with both labels tell. A class that no such row has may stand beside every class of
    the other head: nothing is known of it. Where no row has both, all pairs are allowed.
    """
    both = (emotion != UNLABELLED) & (sentiment != UNLABELLED)
    occurs = np.zeros((len(EMOTIONS), len(SENTIMENTS)), np.bool_)
    occurs[emotion[both], sentiment[both]] = True
    unknown_emotion = ~occurs.any(axis=1, keepdims=True)  # [7, 1]
    unknown_sentiment = ~occurs.any(axis=0, keepdims=True)  # [1, 3]
    return tuple(
        tuple(bool(pair) for pair in row) for row in occurs | unknown_emotion | unknown_sentiment
    )


def fit_decoding(dev: Predictions, allowed: Pairs) -> Decoding:
    """Temperatures by likelihood, then the weight by the score that dev chooses by.

    Of weights that score the same, the one closest to 1 is taken.
    """
    emotion = fit_temperature(dev.emotion_logits, dev.emotion)
    sentiment = fit_temperature(dev.sentiment_logits, dev.sentiment)
    tried = [
        Decoding(emotion=emotion, sentiment=sentiment, sentiment_weight=weight, allowed=allowed)
        for weight in sorted(_WEIGHTS, key=lambda weight: abs(math.log(weight)))
    ]
    return max(tried, key=lambda decoding: _score(decoding, dev))


def decode(decoding: Decoding, predictions: Predictions) -> JointLabels:
    """The best allowed pair of every row."""
    emotion = decoding.emotion.log_probabilities(predictions.emotion_logits)
    sentiment = decoding.sentiment.log_probabilities(predictions.sentiment_logits)
    pairs = emotion[:, :, None] + decoding.sentiment_weight * sentiment[:, None, :]
    pairs = np.where(np.array(decoding.allowed), pairs, -np.inf)  # [rows, 7, 3]
    best = pairs.reshape(len(predictions), -1).argmax(axis=1)
    return JointLabels(emotion=best // len(SENTIMENTS), sentiment=best % len(SENTIMENTS))


def contradicts(decoding: Decoding, labels: JointLabels) -> NDArray[np.bool_]:
    """bool [rows]: the pair is not an allowed one."""
    return ~np.array(decoding.allowed)[labels.emotion, labels.sentiment]


def score_joint(decoding: Decoding, predictions: Predictions) -> JointScores:
    """What decoding together changes."""
    own = JointLabels(
        emotion=predictions.predicted_emotion, sentiment=predictions.predicted_sentiment
    )
    joint = decode(decoding, predictions)
    other_emotion = own.emotion != joint.emotion
    other_sentiment = own.sentiment != joint.sentiment
    return JointScores(
        rows=len(predictions),
        sentiment_weight=decoding.sentiment_weight,
        contradictions=float(contradicts(decoding, own).mean()) if len(predictions) else 0.0,
        rows_changed=int((other_emotion | other_sentiment).sum()),
        emotion_rows_changed=int(other_emotion.sum()),
        sentiment_rows_changed=int(other_sentiment.sum()),
        emotion_f1=weighted_f1(predictions.emotion, own.emotion),
        emotion_f1_joint=weighted_f1(predictions.emotion, joint.emotion),
        sentiment_f1=weighted_f1(predictions.sentiment, own.sentiment),
        sentiment_f1_joint=weighted_f1(predictions.sentiment, joint.sentiment),
    )


def _score(decoding: Decoding, dev: Predictions) -> float:
    joint = decode(decoding, dev)
    f1s = (weighted_f1(dev.emotion, joint.emotion), weighted_f1(dev.sentiment, joint.sentiment))
    return selection_score([f1 for f1 in f1s if f1 is not None])
