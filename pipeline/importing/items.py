"""What a source of features holds, before it is matched with the rows of caches."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.layout import parse_leading_stem
from pipeline.schema import SPLITS, Split

# What people and tools call the splits.
SPLIT_NAMES: dict[str, Split] = {
    **{split: split for split in SPLITS},
    **dict.fromkeys(("training",), "train"),
    **dict.fromkeys(("valid", "val", "validation", "development"), "dev"),
    **dict.fromkeys(("testing",), "test"),
}


@dataclass(frozen=True, kw_only=True)
class ClipName:
    """The utterance that a name says, and what follows it.

    split: None where the name does not say it
    corrected: it is the name of a corrected cut of MELD's test clips
    """

    split: Split | None
    dialogue_id: int
    utterance_id: int
    corrected: bool = False
    suffix: str = ""


@dataclass(frozen=True, kw_only=True)
class Item:
    """The features of one clip as they were found, or the reason why they cannot be used.

    place:   what to call it in messages: a file, an array of an archive, a row of a table
    clip:    None where the name is no clip's
    values:  numbers [dim], [frames, dim] or [layers, frames, dim]
    is_layers: two axes are [layers, dim]: a row of a table whose rows are clips
    columns: the names of the features, where the source has names
    code, problem: why there are no values; empty where there are
    """

    place: str
    clip: ClipName | None
    values: NDArray[Any] | None = None
    is_layers: bool = False
    columns: tuple[str, ...] = ()
    code: str = ""
    problem: str = ""


def parse_name(name: str, split: Split | None) -> ClipName | None:
    """ "dia0_utt3", "dia0_utt3.wav", "train/dia0_utt3_rgb", "clips\\train\\dia0_utt3.mp4".

    split: of all names; None takes what is said before the clip's name
    """
    parts = name.strip(" \t'\"").replace("\\", "/").split("/")
    before, stem = parts[:-1], parts[-1]
    for suffix in _ENDINGS:
        stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
    found = parse_leading_stem(stem)
    if found is None:
        return None
    dialogue_id, utterance_id, corrected, rest = found
    said = [SPLIT_NAMES[part.lower()] for part in before if part.lower() in SPLIT_NAMES]
    return ClipName(
        split=split if split is not None or not said else said[-1],
        dialogue_id=dialogue_id,
        utterance_id=utterance_id,
        corrected=corrected,
        suffix=rest,
    )


# Of the media file that the features were made of, or of the file that holds them.
_ENDINGS = (
    *(".npy", ".csv"),
    *(".mp4", ".mkv", ".avi", ".mov", ".webm", ".wav", ".flac", ".mp3", ".m4a", ".ogg"),
)


Pooling = Literal["mean", "mean_std", "none"]


def has_frames(item: Item) -> bool:
    """Whether its frames are averaged unless something else is asked for."""
    num_axes = 0 if item.values is None else item.values.ndim
    return num_axes == 3 or (num_axes == 2 and not item.is_layers)


def pool(item: Item, how: Pooling | None) -> NDArray[np.float32]:
    """The features of a clip, which has some -> float32 [layers, dim].

    how: of the axis of frames: "mean"; "mean_std": mean and standard deviation, one after the
        other; "none": there are no frames, and [layers, dim] is kept. None takes the mean where
        there are frames

    Raises ValueError where the axes do not allow it.
    """
    values = np.asarray(item.values)
    if values.ndim not in (1, 2, 3) or 0 in values.shape:
        raise ValueError(f"features of shape {list(values.shape)}")
    if how == "none" and values.ndim == 3:
        raise ValueError(f"features of shape {list(values.shape)}, which has frames to be pooled")
    if how in ("mean", "mean_std") and values.ndim == 1:
        raise ValueError(
            f"features of shape {list(values.shape)}, which has no frames to be pooled"
        )
    with np.errstate(all="ignore"):  # what is not finite then is found and listed
        numbers = values.astype(np.float64)
        if numbers.ndim == 1:
            pooled = numbers[None]
        elif how == "none" or (how is None and not has_frames(item)):
            pooled = numbers
        else:
            frames = numbers if numbers.ndim == 3 else numbers[None]  # [layers, frames, dim]
            parts = [frames.mean(axis=1)]
            parts += [frames.std(axis=1)] if how == "mean_std" else []
            pooled = np.concatenate(parts, axis=1)
        return pooled.astype(np.float32)
