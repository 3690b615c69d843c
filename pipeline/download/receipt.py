"""`meld.json` beside the clips: their archive, and which splits are complete."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.corpus.clips import index_clips
from pipeline.corpus.layout import annotations_name, parse_clip_stem
from pipeline.schema import SPLITS, Split
from pipeline.system.json_values import MALFORMED

RECEIPT = "meld.json"
_MADE_BY = "meld download"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """origin, sha256: of what was unpacked last. clips: files of each complete split."""

    origin: str = ""
    sha256: str = ""
    clips: Mapping[Split, int] = field(default_factory=dict)

    def is_complete(self, out: Path, split: Split) -> bool:
        """Whether all that was unpacked is there still."""
        return (
            split in self.clips
            and (out / annotations_name(split)).is_file()
            and len(clip_files(out, split)) == self.clips[split]
        )

    def to_json(self) -> str:
        values = {
            "made_by": _MADE_BY,
            "origin": self.origin,
            "sha256": self.sha256,
            "clips": dict(self.clips),
        }
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


def read_receipt(path: Path) -> Receipt | None:
    """None where there is no readable receipt; then everything is checked again."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if values["made_by"] != _MADE_BY:
            return None
        clips = {split: int(values["clips"][split]) for split in SPLITS if split in values["clips"]}
        return Receipt(origin=str(values["origin"]), sha256=str(values["sha256"]), clips=clips)
    except (OSError, *MALFORMED):
        return None


def clip_files(out: Path, split: Split) -> list[Path]:
    """Files that are named like a clip, corrected cuts included. Raises InputError where a folder
    cannot be listed."""
    files = index_clips(out, split).items()
    return [path for stem, path in files if parse_clip_stem(stem, split) is not None]
