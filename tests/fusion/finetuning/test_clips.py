"""What training on clips reads of them, and how often it saves."""

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
import pytest

from fusion.data.split import FusionData
from fusion.finetuning.clips import ClipDataset
from fusion.finetuning.loop import TuneConfig
from pipeline.schema import ClipKey, DecodedClip, Modality, Utterance


class Reader:
    """A store that notes what is asked for, and has everything."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[Modality, ...]]] = []

    def read(self, row: int, modalities: Collection[Modality]) -> DecodedClip:
        self.asked.append((row, tuple(modalities)))
        return DecodedClip(
            utterance=utterance(row),
            frames=np.zeros((2, 8, 8, 3), np.uint8) if "video" in modalities else None,
            times_s=np.zeros(2) if "video" in modalities else None,
            waveform=np.zeros(16, np.float32) if "audio" in modalities else None,
        )


def utterance(row: int) -> Utterance:
    return Utterance(
        key=ClipKey("train", 0, row), text="", speaker="Ann", emotion="joy", sentiment="positive"
    )


class Whole:
    """Prepares nothing: an item is the clip itself."""

    def prepare(self, clips: Sequence[DecodedClip]) -> list[DecodedClip]:
        return list(clips)


@pytest.mark.parametrize("live", ["audio", "video"])
def test_only_the_modality_that_learns_is_read(
    load_planted: Callable[..., FusionData], live: Modality
) -> None:
    reader = Reader()
    clips = ClipDataset(
        load_planted("train", 10, modalities=["text", "video", "audio"]),
        [utterance(row) for row in range(10)],
        {live: Whole()},  # type: ignore[dict-item]
        store=reader,
        augment=None,
        seed=0,
    )
    row = clips[1, 7]
    assert reader.asked == [(7, (live,))]
    assert set(row.items) == {live}
    assert set(row.cached) == {"text", "video", "audio"} - {live}


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_time_between_checkpoints_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="checkpoint_every_s must be finite and not negative"):
        TuneConfig(checkpoint_every_s=value)
