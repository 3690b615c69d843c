"""Joint decoding of both heads: fitted on dev, compared with each head's most probable class."""

import math
from collections.abc import Collection

import numpy as np

from fusion.evaluation.calibration import fit_temperature
from fusion.evaluation.report import JointScores
from fusion.evaluation.scores import selection_score, weighted_f1
from fusion.inference.decoding import Decoding, JointLabels, Pairs, contradicts, decode
from fusion.inference.predictions import Predictions
from fusion.labels import UNLABELLED, Head, Labels
from pipeline.schema import EMOTIONS, SENTIMENTS

# 1/8 to 8. A weight of 0 would leave the sentiment of surprise to the order of the classes.
_WEIGHTS = tuple(2.0 ** (step / 2) for step in range(-6, 7))


def allowed_pairs(emotion: Labels, sentiment: Labels, untrained: Collection[Head] = ()) -> Pairs:
    """The pairs that occur in train's labels, int64 [rows] each, UNLABELLED = none.

    Only rows with both labels count. `untrained`: heads without training, which must not restrict
    the other. A class without such rows is allowed with every class of the other head. If no row
    has both labels, all pairs are allowed.
    """
    both = (emotion != UNLABELLED) & (sentiment != UNLABELLED) & (not untrained)
    occurs = np.zeros((len(EMOTIONS), len(SENTIMENTS)), np.bool_)
    occurs[emotion[both], sentiment[both]] = True
    unknown_emotion = ~occurs.any(axis=1, keepdims=True)  # [7, 1]
    unknown_sentiment = ~occurs.any(axis=0, keepdims=True)  # [1, 3]
    return tuple(
        tuple(bool(pair) for pair in row) for row in occurs | unknown_emotion | unknown_sentiment
    )


def fit_decoding(dev: Predictions, allowed: Pairs) -> Decoding:
    """Fits the temperatures by likelihood, then the weight by the selection score on dev.

    Of weights that score the same, the one closest to 1 is taken.
    """
    emotion = fit_temperature(dev.emotion_logits, dev.emotion)
    sentiment = fit_temperature(dev.sentiment_logits, dev.sentiment)
    tried = [
        Decoding(emotion=emotion, sentiment=sentiment, sentiment_weight=weight, allowed=allowed)
        for weight in sorted(_WEIGHTS, key=lambda weight: abs(math.log(weight)))
    ]
    return max(tried, key=lambda decoding: _score(decoding, dev))


def score_joint(decoding: Decoding, predictions: Predictions) -> JointScores:
    """Scores of joint decoding beside those of each head alone."""
    own = JointLabels(
        emotion=predictions.predicted_emotion, sentiment=predictions.predicted_sentiment
    )
    joint = _decode(decoding, predictions)
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
    joint = _decode(decoding, dev)
    f1s = (weighted_f1(dev.emotion, joint.emotion), weighted_f1(dev.sentiment, joint.sentiment))
    return selection_score([f1 for f1 in f1s if f1 is not None])


def _decode(decoding: Decoding, predictions: Predictions) -> JointLabels:
    return decode(decoding, predictions.emotion_logits, predictions.sentiment_logits)
