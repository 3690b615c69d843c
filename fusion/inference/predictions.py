"""The predictions of a run for every row of a split, with the true labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.labels import Head, Labels
from pipeline.errors import CacheCorrupt
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipKey, Modality, Split


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """One run on one split, in the split's order.

    emotion, sentiment: int64 [rows], the true labels, UNLABELLED = none
    untrained:          heads that were trained without labels. They are not measured: their true
                        labels are set to UNLABELLED here
    emotion_logits:     float64 [rows, 7], in the order of EMOTIONS
    sentiment_logits:   float64 [rows, 3], in the order of SENTIMENTS
    present:            bool [rows, modalities], columns as in `modalities`
    """

    run: str
    split: Split
    keys: tuple[ClipKey, ...]
    text: tuple[str, ...]
    speaker: tuple[str, ...]
    modalities: tuple[Modality, ...]
    present: NDArray[np.bool_]
    emotion: Labels
    sentiment: Labels
    emotion_logits: NDArray[np.float64]
    sentiment_logits: NDArray[np.float64]
    untrained: tuple[Head, ...] = ()

    def __post_init__(self) -> None:
        """Raises CacheCorrupt where the run computes what is no number: the largest of such logits
        would be the first class, and that is "neutral"."""
        wanted = {
            "text": (len(self),),
            "speaker": (len(self),),
            "present": (len(self), len(self.modalities)),
            "emotion": (len(self),),
            "sentiment": (len(self),),
            "emotion_logits": (len(self), len(EMOTIONS)),
            "sentiment_logits": (len(self), len(SENTIMENTS)),
        }
        for name, shape in wanted.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} must be {shape}, not {np.shape(getattr(self, name))}")
        logits = np.hstack([self.emotion_logits, self.sentiment_logits])
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        if len(bad):
            raise CacheCorrupt(
                f"{self.run}: the model computes values that are not finite for {len(bad)} of "
                f"{len(self)} utterances (the first is number {bad[0] + 1}); train the run again"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def predicted_emotion(self) -> Labels:
        """int64 [rows]: the emotion head's most probable class."""
        return self.emotion_logits.argmax(axis=1)

    @property
    def predicted_sentiment(self) -> Labels:
        return self.sentiment_logits.argmax(axis=1)

    @property
    def dialogue(self) -> Labels:
        """int64 [rows]: 0 for the first dialogue's rows, and so on; rows of a dialogue are what
        a bootstrap keeps together."""
        numbers: dict[tuple[Split, int], int] = {}
        return np.array(
            [numbers.setdefault((key.split, key.dialogue_id), len(numbers)) for key in self.keys],
            dtype=np.int64,
        )
