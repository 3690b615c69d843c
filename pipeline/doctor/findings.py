"""The kinds of findings about a corpus, and whether they are known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.schema import ClipKey, Split

# Stable word -> what people read, in the order that both reports have.
KINDS = {
    "no_annotations": "clips without a CSV",
    "other_split": "CSV of another split",
    "annotations_differ": "CSV not as published",
    "unread_times": "rows whose times are not read",
    "no_clips": "no clips (text alone)",
    "corrected_cuts": "corrected cuts lacking",
    "missing": "missing",
    "unreadable": "unreadable",
    "killed_worker": "kills its decoder",
    "without_sound": "without sound",
    "without_picture": "without picture",
    "overlong": "overlong",
    "too_short": "too short",
    "length_differs": "length differs from row",
    "cut_off": "cut off",
    "damaged": "damaged inside",
    "unannotated": "unannotated extras",
    "second_file": "second file of a clip",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One defect of a clip or, without a key, of its split.

    kind:      one of `KINDS`
    known_why: why this is nothing new (it is published, or annotated so); "" if it is new
    count:     how many clips it is about
    path:      the media file, where there is one
    """

    split: Split
    kind: str
    message: str
    known_why: str = ""
    key: ClipKey | None = None
    path: Path | None = None
    count: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")

    @property
    def is_known(self) -> bool:
        return bool(self.known_why)

    @property
    def subject(self) -> str:
        """ "train dia0_utt3", a file's name, or the split."""
        if self.key is not None:
            return str(self.key)
        return f"{self.split} {self.path.name}" if self.path else self.split

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "known": self.is_known,
            "known_why": self.known_why or None,
            "clip": None if self.key is None else str(self.key),
            "path": None if self.path is None else str(self.path),
            "count": self.count,
            "message": self.message,
        }
