"""The prediction of one utterance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.schema import Modality


@dataclass(frozen=True, kw_only=True)
class HeadPrediction:
    """One head's answer.

    label: the predicted label: by joint decoding if the run has a fitted `Decoding`, else the most
        probable class
    probabilities: of every class by name, calibrated; they add up to 1
    """

    label: str
    probabilities: Mapping[str, float]

    @property
    def confidence(self) -> float:
        """The probability of `label`."""
        return self.probabilities[self.label]

    def to_dict(self) -> dict[str, Any]:
        probabilities = {name: _rounded(value) for name, value in self.probabilities.items()}
        return {
            "label": self.label,
            "confidence": _rounded(self.confidence),
            "probabilities": probabilities,
        }


@dataclass(frozen=True, kw_only=True)
class Alone:
    """The labels that the run predicts from one modality alone."""

    emotion: str
    sentiment: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """The contribution of one modality to a prediction.

    support: its Shapley value in nats: above 0 it supports the predicted emotion
    share:   of all modalities' |support|, 0 to 1; they add up to 1 unless all are 0
    """

    modality: Modality
    support: float
    share: float
    alone: Alone


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """parts: of the present modalities, in the order of `schema.MODALITIES`"""

    emotion: HeadPrediction
    sentiment: HeadPrediction
    parts: tuple[Part, ...]

    @property
    def is_divided(self) -> bool:
        """Whether one modality alone predicts positive and another negative, such as a smile and a
        cracking voice."""
        return {"positive", "negative"} <= {part.alone.sentiment for part in self.parts}


def _rounded(probability: float) -> float:
    """Rounds to six digits, so that rounding differences between batches and machines are not
    written."""
    return round(probability, 6)
