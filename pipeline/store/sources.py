"""`plan.json` of a store: which media its clips were decoded from.

They are compared by name, size and modification time; reading them would take as long as decoding.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

from pipeline.errors import CacheCorrupt, RecipeMismatch
from pipeline.schema import ClipKey, LocatedClip, Split
from pipeline.store.store import StoreConfig
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED

_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """A clip's file as it was when the store was begun; None where the corpus has none."""

    dialogue_id: int
    utterance_id: int
    file: str | None
    size_bytes: int | None
    mtime_ns: int | None


@dataclass(frozen=True, kw_only=True)
class StorePlan:
    """One source per row, in order."""

    clips_per_shard: int
    sources: tuple[ClipSource, ...]


def describe_clips(clips: Iterable[LocatedClip]) -> tuple[ClipSource, ...]:
    return tuple(_describe(clip) for clip in clips)


def _describe(clip: LocatedClip) -> ClipSource:
    try:
        info = clip.path.stat() if clip.path else None
    except OSError:  # gone since it was found: decoding it will tell
        info = None
    return ClipSource(
        dialogue_id=clip.utterance.key.dialogue_id,
        utterance_id=clip.utterance.key.utterance_id,
        file=clip.path.name if clip.path else None,
        size_bytes=info.st_size if info else None,
        mtime_ns=info.st_mtime_ns if info else None,
    )


def write_plan(split: Split, config: StoreConfig, sources: Sequence[ClipSource]) -> None:
    """Raises StorageError."""
    plan = {
        "recipe": json.loads(config.recipe),
        "split": split,
        "clips_per_shard": config.clips_per_shard,
        "clips": [asdict(source) for source in sources],
    }
    write_whole(config.folder(split) / _FILE, json.dumps(plan, indent=1).encode())


def read_plan(folder: Path) -> StorePlan | None:
    """None where no store was begun; raises CacheCorrupt."""
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_bytes())
        clips_per_shard = plan["clips_per_shard"]
        if not isinstance(clips_per_shard, int) or clips_per_shard < 1:
            raise ValueError(f"{clips_per_shard} clips in a shard")
        sources = tuple(ClipSource(**clip) for clip in plan["clips"])
    except (OSError, *MALFORMED) as error:
        raise CacheCorrupt(f"{path}: cannot be read ({error}); delete {folder}") from error
    return StorePlan(clips_per_shard=clips_per_shard, sources=sources)


def refuse_other_clips(
    folder: Path, split: Split, planned: Sequence[ClipSource], here: Sequence[ClipSource]
) -> None:
    """Raises RecipeMismatch, naming the first clip that differs."""
    for row, (then, now) in enumerate(zip_longest(planned, here)):
        if then != now:
            raise RecipeMismatch(
                f"{folder} was decoded from other clips than are here; the first is row {row}: "
                f"it was {_tell(split, then)} and is {_tell(split, now)}; delete {folder} to "
                "decode anew, or choose another folder"
            )


def _tell(split: Split, source: ClipSource | None) -> str:
    if source is None:
        return "not there"
    key = ClipKey(split, source.dialogue_id, source.utterance_id)
    if source.size_bytes is None or source.mtime_ns is None:
        return f"{key} without a file"
    changed = datetime.fromtimestamp(source.mtime_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    return f"{key} from {source.file} ({source.size_bytes} bytes of {changed})"
