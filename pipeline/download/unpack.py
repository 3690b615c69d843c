"""Unpacks MELD's archives into MELD's folders: only expected files, under our own names.

MELD.Raw.tar.gz
    dev_sent_emo.csv, test_sent_emo.csv
    train.tar.gz, dev.tar.gz, test.tar.gz      read where they lie, never written to the disk
        train_sent_emo.csv
        train_splits/dia0_utt0.mp4 ...
"""

import errno
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.corpus.layout import (
    CORRECTED_PREFIX,
    MEDIA_FOLDERS,
    annotations_name,
    clip_stem,
    parse_clip_stem,
)
from pipeline.download.archive import (
    ArchiveError,
    BadArchive,
    Budget,
    Member,
    copy_chunks,
    read_members,
    shown,
)
from pipeline.download.place import Placer
from pipeline.errors import StorageError
from pipeline.schema import SPLITS, Split

OnBytes = Callable[[int, int | None], None]

# Clips hardly shrink when packed, and each byte counts at two levels: MELD needs twice its size.
_BYTES_PER_ARCHIVE_BYTE = 4
_BYTES_BESIDES = 64 << 20
# MELD has 13,848 clips and some 2,060 AppleDouble files.
_MAX_ENTRIES = 50_000
# Writing failed, not reading.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# The longest mis-cut clip, of 305 s, is far below.
_MAX_FILE_BYTES = 1 << 30


@dataclass
class Found:
    """What the archives held of the wanted splits.

    corrected:    of test's clips, those under `final_videos_test*`
    apple_double: macOS leftovers, dropped
    others:       regular files under names that are not MELD's, dropped; the first is named
    """

    annotations: set[Split] = field(default_factory=set)
    clips: Counter[Split] = field(default_factory=Counter)
    corrected: int = 0
    apple_double: int = 0
    others: int = 0
    first_other: str = ""


class Unpacker:
    """Unpacks archives, one after the other, under the folder `stage`."""

    def __init__(self, stage: Path, splits: Sequence[Split], placer: Placer) -> None:
        self._stage = stage
        self._splits = splits
        self._placer = placer
        self.found = Found()

    def unpack(self, archive: Path, on_bytes: OnBytes) -> None:
        """MELD.Raw.tar.gz, or one of the archives inside it.

        Raises:
            ArchiveError: damaged, cut off, or holding what MELD's never do. What lies under `stage`
                then is as good as the archive: not to be used.
            StorageError: the disk.
        """
        try:
            size = archive.stat().st_size
            budget = Budget(size * _BYTES_PER_ARCHIVE_BYTE + _BYTES_BESIDES, _MAX_ENTRIES)
            with archive.open("rb") as file:
                may_nest = _inner_split(archive.name) is None
                for member in read_members(file, budget):
                    for _ in self._take(member, budget, may_nest=may_nest):
                        on_bytes(file.tell(), size)
        except BadArchive as error:
            raise ArchiveError(
                f"{archive}: {error}; this is not the archive that MELD's authors published"
            ) from error
        except OSError as error:
            where = error.filename or (self._stage if error.errno in _FULL else archive)
            raise StorageError(f"{where}: {error.strerror or error}") from error

    def _take(self, member: Member, budget: Budget, *, may_nest: bool) -> Iterator[None]:
        """Yields after each member, those of an archive inside included."""
        name = member.parts[-1] if member.parts else ""
        if any(part.startswith(".") for part in member.parts):
            self._drop(member, apple_double=name.startswith("._"))
        elif (split := _inner_split(name)) is not None:
            if not may_nest:
                raise BadArchive(f"{shown(name)} lies in an archive inside the archive")
            if split in self._splits:
                for inner in read_members(member.content, budget):
                    yield from self._take(inner, budget, may_nest=False)
        else:
            self._take_file(member, name)
        yield

    def _take_file(self, member: Member, name: str) -> None:
        split = _split_of_annotations(name) or _split_of_folder(member)
        clip = None
        if split is not None and name.endswith(".mp4"):
            clip = parse_clip_stem(name.removesuffix(".mp4"), split)
        if split is None or (clip is None and name != annotations_name(split)):
            self._drop(member, apple_double=False)
        elif split not in self._splits:
            return
        elif member.size > _MAX_FILE_BYTES:
            raise BadArchive(f"{shown(name)} has {member.size:,} bytes; no clip is that long")
        elif clip is None:
            self._placer.place(copy_chunks(member.content), self._stage / annotations_name(split))
            self.found.annotations.add(split)
        else:
            key, corrected = clip
            own_name = f"{CORRECTED_PREFIX if corrected else ''}{clip_stem(key)}.mp4"
            target = self._stage / MEDIA_FOLDERS[split] / own_name
            self._placer.place(copy_chunks(member.content), target)
            self.found.clips[split] += 1
            self.found.corrected += corrected

    def _drop(self, member: Member, *, apple_double: bool) -> None:
        self.found.apple_double += apple_double
        self.found.others += not apple_double
        if not apple_double and not self.found.first_other:
            self.found.first_other = "/".join(member.parts)


def _inner_split(name: str) -> Split | None:
    return next((split for split in SPLITS if name == inner_archive(split)), None)


def inner_archive(split: Split) -> str:
    """What MELD.Raw.tar.gz packs a split's clips in."""
    return f"{split}.tar.gz"


def _split_of_annotations(name: str) -> Split | None:
    return next((split for split in SPLITS if name == annotations_name(split)), None)


def _split_of_folder(member: Member) -> Split | None:
    folder = member.parts[-2] if len(member.parts) > 1 else ""
    return next((split for split in SPLITS if folder == MEDIA_FOLDERS[split]), None)
