"""Plants the kinds of defects that the real corpus has, at most one per row.

MELD has a file without its index (train dia125_utt3), a missing file (dev dia110_utt7), clips that
were cut wrongly and last up to 305 s (test dia38_utt4), clips of two frames, thousands of
AppleDouble files, and texts with typographic quotes. The other kinds occur in any collection.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from pipeline.errors import UsageError
from pipeline.sample.clip import SAMPLES_PER_FRAME, Clip, make_clip
from pipeline.sample.media import write_media
from pipeline.sample.motion import FRAME_RATE
from pipeline.sample.plan import ClipPlan
from pipeline.sample.sound import RATE_HZ
from pipeline.schema import ClipKey, Split

# With fewer dialogues (of at least three rows), some split has too few rows for its defects.
MIN_DIALOGUES = 8

OVERLONG_S = 65

# Kinds by split, without typographic texts, which occur in every split.
_PLACES: dict[Split, tuple[str, ...]] = {
    "train": (
        "truncated_file",
        "truncated_data",
        "empty_file",
        "no_audio",
        "no_video",
        "two_frames",
        "apple_double",
    ),
    "dev": ("missing_file",),
    "test": ("overlong", "apple_double"),
}

_WHAT = {
    "truncated_file": "cut off before its moov atom: nothing can be read",
    "truncated_data": "cut off in the middle of its media data: the first part can be read",
    "missing_file": "the file is missing",
    "empty_file": "the file has no bytes",
    "no_audio": "only a video stream",
    "no_video": "only an audio stream",
    "two_frames": "two frames, 0.08 s",
    "overlong": "cut wrongly: lasts more than a minute",
    "apple_double": "an AppleDouble file ._dia*_utt*.mp4 is beside it",
    "curly_text": "typographic quotes, dashes or dots in its text",
}

# An AppleDouble header: magic number, version 2, 16 bytes of filler, no entries.
_APPLE_DOUBLE = bytes.fromhex("00051607 00020000") + b"Mac OS X        " + bytes(4072)
_CURLY = {"'": "’", "...": "…", " - ": " — "}


@dataclass(frozen=True, kw_only=True)
class PlantedDefect:
    """kind: a stable name, for programs; what: a description, for people."""

    key: ClipKey
    kind: str
    what: str


def plan_defects(plans: Sequence[ClipPlan], *, seed: int) -> tuple[PlantedDefect, ...]:
    """Chooses rows for all kinds of defects, at most one defect per row.

    Raises UsageError if there are too few rows, which `MIN_DIALOGUES` almost excludes.
    """
    planted = []
    for split, kinds in _PLACES.items():
        rng = random.Random(
            f"{seed}/{split}/accidents"
        )  # an old name, kept because it decides which rows are drawn
        rows = [plan for plan in plans if plan.key.split == split]
        rng.shuffle(rows)
        curled = [row for row in rows if curl(row.text) != row.text][: max(1, len(rows) // 5)]
        others = [row for row in rows if row not in curled]
        planted += [_planted(row, "curly_text") for row in curled]
        planted += [_planted(row, kind) for row, kind in zip(others, kinds, strict=False)]
    if {defect.kind for defect in planted} != _WHAT.keys():
        more = len({plan.key[:2] for plan in plans}) + 4
        raise UsageError(f"too few rows for every kind of defect; ask for {more} dialogues")
    return tuple(planted)


def _planted(row: ClipPlan, kind: str) -> PlantedDefect:
    return PlantedDefect(key=row.key, kind=kind, what=_WHAT[kind])


def curl(text: str) -> str:
    """Replaces plain punctuation by the typographic one of MELD's CSVs."""
    for plain, typographic in _CURLY.items():
        text = text.replace(plain, typographic)
    return text


def write_defect(plan: ClipPlan, path: Path, kind: str) -> float:
    """Writes the defective file, if there is one; returns the seconds that the CSV states."""
    clip = make_clip(plan)
    if kind in ("missing_file", "empty_file"):
        if kind == "empty_file":
            path.write_bytes(b"")
        return clip.duration_s
    frames, sound = enumerate(clip.frames), clip.sound
    if kind == "no_audio":
        write_media(path, frames, None, layout=clip.layout)
    elif kind == "no_video":
        write_media(path, None, sound, layout=clip.layout)
    elif kind == "two_frames":
        sound = sound[:, : 2 * SAMPLES_PER_FRAME]
        write_media(path, enumerate(clip.frames[:2]), sound, layout=clip.layout)
    elif kind == "overlong":
        _write_overlong(clip, path)
    else:
        write_media(path, frames, sound, layout=clip.layout, index_first=kind == "truncated_data")
    if kind in ("truncated_file", "truncated_data"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 6 // 10])
    if kind == "apple_double":
        apple_double_beside(path).write_bytes(_APPLE_DOUBLE)
    return clip.duration_s


def apple_double_beside(path: Path) -> Path:
    return path.with_name(f"._{path.name}")


def _write_overlong(clip: Clip, path: Path) -> None:
    """Extends the clip by its last picture, at one frame per second, and silence."""
    silence = np.zeros((len(clip.sound), OVERLONG_S * RATE_HZ - clip.sound.shape[1]), np.float32)
    sound = np.concatenate([clip.sound, silence], axis=1)
    write_media(path, _held(clip.frames), sound, layout=clip.layout)


def _held(frames: list[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
    yield from enumerate(frames)
    per_second = round(FRAME_RATE[0] / FRAME_RATE[1])
    for position in range(len(frames), OVERLONG_S * per_second, per_second):
        yield position, frames[-1]
