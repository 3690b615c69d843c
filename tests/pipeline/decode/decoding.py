"""A clip as extraction decodes it, and what its frames and failures tell."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.decode.clip import decode_clip
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipKey, DecodedClip, DecodedMedia, LocatedClip, Modality, Utterance


def decoded(
    path: Path | None,
    modalities: Sequence[Modality] = ("text", "video", "audio"),
    **settings: object,
) -> DecodedClip:
    utterance = Utterance(key=ClipKey("train", 1, 2), text="Hi")
    clip = LocatedClip(utterance=utterance, path=path)
    return decode_clip(clip, DecodeConfig(**settings), modalities)  # type: ignore[arg-type]


def numbers(clip: DecodedClip | DecodedMedia) -> list[int]:
    """Of pictures that name theirs by their grey."""
    assert clip.frames is not None
    middles = clip.frames[:, 64, 80].mean(axis=1)
    return [round(float(value - 16) / 3) for value in middles]


def codes(clip: DecodedClip, *, lost: bool) -> set[tuple[str, str]]:
    return {(entry.modality, entry.code) for entry in clip.failures if entry.lost == lost}


def middles_of_parts(num_frames: int, parts: int = 16) -> list[int]:
    """The pictures on screen at the middles of equal parts of a clip."""
    return [int((2 * part + 1) * num_frames / (2 * parts)) for part in range(parts)]
