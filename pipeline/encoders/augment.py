"""Augmentation of training clips before an encoder sees them; each encoder's preparation applies
the settings that concern it.

Every random draw comes from the given generator, so an epoch can be repeated to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from pipeline.schema import Modality


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How strongly training clips are augmented; 0 switches an augmentation off.

    flip:           probability that a clip is mirrored
    crop:           how far from the centre a crop may lie, as a share of the possible distance
    time_jitter:    by how many frames a sampled frame may be shifted; at most 1000
    gain_db:        largest change of loudness in dB, up or down; at most 100
    band, span:     largest share of the mel bands, and of the time, that SpecAugment masks
    token_dropout:  probability that a token of the sentence or its context is replaced by the mask
    """

    flip: float = 0.5
    crop: float = 1.0
    time_jitter: int = 1
    gain_db: float = 6.0
    band: float = 0.2
    span: float = 0.2
    token_dropout: float = 0.05

    def __post_init__(self) -> None:
        largest = {"gain_db": 100, "time_jitter": 1000}
        for each in fields(self):
            value, most = getattr(self, each.name), largest.get(each.name, 1)
            if not 0 <= value <= most:
                raise ValueError(f"{each.name} must be in [0, {most}], not {value}")

    @classmethod
    def off(cls) -> "AugmentConfig":
        return cls(flip=0, crop=0, time_jitter=0, gain_db=0, band=0, span=0, token_dropout=0)


# Whose clips each strength changes.
CONCERNS: Mapping[str, Modality] = {
    "flip": "video",
    "crop": "video",
    "time_jitter": "video",
    "gain_db": "audio",
    "band": "audio",
    "span": "audio",
    "token_dropout": "text",
}


def draw(generator: torch.Generator) -> float:
    """In [0, 1)."""
    return float(torch.rand((), generator=generator))
