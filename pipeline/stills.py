"""One frame of a clip as a small JPEG, for people who want to see what a row is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.clips import locate_clips
from pipeline.recipe import TestClips
from pipeline.schema import SPLITS, ClipKey, LocatedClip, Utterance

WIDTH = 288  # twice what the page shows, for dense screens
_QUALITY = 70  # about 8 kB a picture


def read_stills(data: Path, keys: Sequence[ClipKey], test_clips: TestClips) -> dict[ClipKey, bytes]:
    """JPEG of the middle of each clip; a clip that is missing or does not decode has no key.

    Raises InputError where a folder of clips cannot be listed.
    """
    stills = {}
    for split in SPLITS:
        wanted = [Utterance(key=key, text="") for key in keys if key.split == split]
        for clip in locate_clips(data, split, wanted, test_clips) if wanted else []:
            still = read_still(clip)
            if still is not None:
                stills[clip.utterance.key] = still
    return stills


def read_still(clip: LocatedClip) -> bytes | None:
    """JPEG of the middle of a clip; None where there is no picture to be had."""
    # Here, so that a report without clips needs no decoder.
    from pipeline.decode.clip import decode_still

    picture = decode_still(clip, width=WIDTH)
    return None if picture is None else _jpeg(picture)


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    """uint8 [height, width, 3] -> a JPEG file's bytes."""
    import torch
    from torchvision.io import encode_jpeg

    planes = torch.from_numpy(picture).permute(2, 0, 1).contiguous()  # [3, height, width]
    return encode_jpeg(planes, quality=_QUALITY).numpy().tobytes()
