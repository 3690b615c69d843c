"""Scores of a run with each subset of its modalities."""

from fusion.evaluation.calibration import calibrate
from fusion.evaluation.report import SubsetScores
from fusion.evaluation.scores import weighted_f1
from fusion.inference.decoding import Decoding
from fusion.inference.predictions import Predictions
from fusion.inference.subsets import SubsetPredictions
from fusion.inference.temperature import Temperature
from fusion.labels import Labels, Logits
from pipeline.schema import Modality


def score_subsets(
    by_subset: SubsetPredictions, decoding: Decoding | None
) -> tuple[SubsetScores, ...]:
    return tuple(_score(each, subset, decoding) for subset, each in by_subset.items())


def _score(
    predictions: Predictions, subset: tuple[Modality, ...], decoding: Decoding | None
) -> SubsetScores:
    emotion, sentiment = Temperature(), Temperature()
    if decoding is not None:
        emotion, sentiment = decoding.emotion, decoding.sentiment
    return SubsetScores(
        modalities=subset,
        rows=len(predictions),
        rows_seen=int(predictions.present.any(axis=1).sum()),
        emotion_f1=weighted_f1(predictions.emotion, predictions.predicted_emotion),
        sentiment_f1=weighted_f1(predictions.sentiment, predictions.predicted_sentiment),
        emotion_ece=_error(predictions.emotion_logits, predictions.emotion, emotion),
        sentiment_ece=_error(predictions.sentiment_logits, predictions.sentiment, sentiment),
    )


def _error(logits: Logits, labels: Labels, temperature: Temperature) -> float | None:
    measured = calibrate(logits, labels, temperature)
    return None if measured is None else measured.after.ece
