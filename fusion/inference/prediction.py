"""What a run says of one utterance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.schema import Modality


@dataclass(frozen=True, kw_only=True)
class HeadPrediction:
    """One head's answer.

    label: what the run says: both heads' labels chosen together where it has a fitted `Decoding`,
        else the most probable class
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
    """What the run says where it sees one modality and no other: both labels."""

    emotion: str
    sentiment: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one modality gave to a prediction.

    support: its Shapley value in nats: above 0 it speaks for the emotion that is predicted
    share:   of all modalities' |support|, 0 to 1; they add up to 1 unless all are 0
    """

    modality: Modality
    support: float
    share: float
    alone: Alone


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """parts: of the modalities that are there, in the order of `schema.MODALITIES`"""

    emotion: HeadPrediction
    sentiment: HeadPrediction
    parts: tuple[Part, ...]

    @property
    def is_divided(self) -> bool:
        """One modality alone says positive and another negative: a smile over a cracking voice."""
        return {"positive", "negative"} <= {part.alone.sentiment for part in self.parts}


def _rounded(probability: float) -> float:
    """Six digits: the rounding of other batches and machines stays out of what is written."""
    return round(probability, 6)
