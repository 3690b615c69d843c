"""Records which media file each row was read from, and detects whether it has changed.

Name, size and modification time are compared first. A copied corpus has other times, so if the size
is the same, the bytes are compared by a digest that was taken when the clip was read.
"""

import hashlib
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.schema import ClipSource, LocatedClip

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """changed: rows whose file was added, removed or changed

    now: the source of every row; for an unchanged row with the digest that was known before
    """

    changed: tuple[int, ...]
    now: tuple[ClipSource, ...]


def describe(clip: LocatedClip, data: Path) -> ClipSource:
    """Without a digest; what cannot be read (it went since, it is a folder, a pipe, closed to us)
    is no file, so that it counts as one that appeared once it can."""
    if clip.path is None:
        return ClipSource()
    try:
        info = clip.path.stat()
    except OSError:
        return ClipSource()
    if not stat.S_ISREG(info.st_mode) or not os.access(clip.path, os.R_OK):
        return ClipSource()
    try:
        name = clip.path.relative_to(data.absolute()).as_posix()
    except ValueError:  # linked in from elsewhere: no path of this machine goes into a cache
        name = clip.path.name
    return ClipSource(file=name, size_bytes=info.st_size, mtime_ns=info.st_mtime_ns)


def with_digest(clip: LocatedClip, source: ClipSource, data: Path) -> ClipSource:
    """`source` was described before the clip was read: where the file is another by now, it gets
    no digest and the next run reads the clip again."""
    if not source.file:
        return source
    digest = _digest(clip)
    return replace(source, sha256=digest if describe(clip, data) == source else "")


def compare(then: Sequence[ClipSource], clips: Sequence[LocatedClip], data: Path) -> Comparison:
    """then: one per clip. Reads a file only where its size is the same and its time or name is
    not."""
    now = [describe(clip, data) for clip in clips]
    other = [row for row, pair in enumerate(zip(then, now, strict=True)) if not is_untouched(*pair)]
    alike = [row for row in other if looks_alike(then[row], now[row])]
    if alike:
        logger.warning(
            "%d clips in %s have another time or name than when read; comparing their bytes",
            len(alike),
            data,
        )
    same = {row for row in alike if _digest(clips[row]) == then[row].sha256}
    changed = set(other) - same
    known = (
        here if row in changed else replace(here, sha256=then[row].sha256)
        for row, here in enumerate(now)
    )
    return Comparison(changed=tuple(sorted(changed)), now=tuple(known))


def is_untouched(before: ClipSource, here: ClipSource) -> bool:
    """Whether there was and is no file, or name, size and time are the same."""
    if not before.file or not here.file:
        return before.file == here.file
    return bool(before.sha256) and _stamp(before) == _stamp(here)


def looks_alike(before: ClipSource, here: ClipSource) -> bool:
    """Whether its bytes may be the same, because the size is."""
    return bool(before.sha256 and here.file) and before.size_bytes == here.size_bytes


def _stamp(source: ClipSource) -> tuple[str, int, int]:
    return source.file, source.size_bytes, source.mtime_ns


def _digest(clip: LocatedClip) -> str:
    """ "" where the file cannot be read: decoding it says why."""
    if clip.path is None:
        return ""
    try:
        with clip.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
