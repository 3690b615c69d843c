"""Gets MELD.Raw from a public URL, a file or a folder into `out`.

    links to what is unpacked elsewhere
    archive (fetched or given) -> space -> checksum -> unpacked aside -> receipt -> in its place

A killed run is resumed by the next one: downloaded bytes are kept, and unpacked files are
recognised.
"""

import logging
import os
import shutil
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.corpus.layout import MEDIA_FOLDERS, annotations_name, find_annotations
from pipeline.corpus.meld_facts import ARCHIVE_NAME, PUBLISHED
from pipeline.download.adopt import adopt_splits, is_linked, is_unpacked
from pipeline.download.archive import ArchiveError
from pipeline.download.config import WORK_FOLDER, DownloadConfig, OnBytes
from pipeline.download.place import Placer
from pipeline.download.publish import publish
from pipeline.download.receipt import RECEIPT, Receipt, clip_files, read_receipt
from pipeline.download.sources import Archives, get_archives
from pipeline.download.unpack import Found, Unpacker
from pipeline.errors import InputError, StorageError, UsageError
from pipeline.schema import SPLITS, Split
from pipeline.system import locks
from pipeline.system.files import write_whole

log = logging.getLogger(__name__)

# Under the work folder: where archives are unpacked, and the receipt of what is verified there.
_STAGE = "unpacked"
_VERIFIED = "verified.json"
# Clips are packed as they are: unpacked they take as much. The rest is the file system's.
_UNPACKED_PER_ARCHIVE_BYTE = 1.1


@dataclass(frozen=True, kw_only=True)
class DownloadReport:
    """The content of `out` after the download.

    linked:  splits that are used where they lie
    there:   splits that an earlier run had finished
    clips:   files per split, with test's corrected cuts
    origin, sha256: of the archive that was unpacked, now or earlier; "" for linked splits
    found:   what was unpacked; None where nothing was
    """

    out: Path
    linked: tuple[Split, ...]
    there: tuple[Split, ...]
    clips: Mapping[Split, int]
    origin: str
    sha256: str
    found: Found | None
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        found = self.found
        return {
            "out": str(self.out),
            "linked": list(self.linked),
            "there": list(self.there),
            "clips": dict(self.clips),
            "origin": self.origin,
            "sha256": self.sha256,
            "unpacked": None if found is None else {
                "clips": dict(found.clips),
                "corrected_cuts": found.corrected,
                "apple_double_dropped": found.apple_double,
                "others_dropped": found.others,
            },
            "seconds": self.seconds,
        }  # fmt: skip


def download(config: DownloadConfig, on_bytes: OnBytes = lambda *_: None) -> DownloadReport:
    """Leaves the splits' CSVs and clips under `config.out`.

    Raises:
        InputError: what was given is no copy of MELD; something else is in the place.
        DownloadFailed: no address gave the right file.
        StorageError: too little free space, found before anything is written; the disk.
        CacheBusy: another download to the same folder is running.
    """
    try:
        return _download(config, on_bytes)
    except OSError as error:  # which no step could say more of
        where = error.filename or config.out
        raise StorageError(f"{where}: {error.strerror or error}") from error


def _download(config: DownloadConfig, on_bytes: OnBytes) -> DownloadReport:
    started_s = time.monotonic()
    _make_folder(config.out)
    work = config.out / WORK_FOLDER
    _refuse_odd(work, work / "lock")
    with locks.hold(work / "lock", f"{config.out}"):
        written = config.out / RECEIPT
        _refuse_odd(written, *work.rglob("*"))
        _publish_verified(config.out)  # by a run that was killed right before
        receipt = read_receipt(written)
        linked = _link_unpacked(config)
        others = [split for split in config.splits if split not in linked]
        there = tuple(
            split for split in others if receipt and receipt.is_complete(config.out, split)
        )
        left = [split for split in others if split not in there]
        for what, splits in (("linked", linked), ("complete", there), ("to be unpacked", left)):
            if splits:
                log.info("%s: %s", what, ", ".join(splits))
        found = None
        if left:
            _refuse_foreign(config.out, left, receipt)
            archives = get_archives(config, left, on_bytes, partial(_check_space, config.out, left))
            found = _unpack(config, archives, left, on_bytes)
            if config.keep_archive and archives.fetched:  # before a next run could tidy it up
                _keep(archives, config.out)
            _write_receipt(work / _VERIFIED, archives, work / _STAGE, left)
            _publish_verified(config.out)
            receipt = read_receipt(written)
        may_want_a_part = found is None and there != SPLITS
        if not may_want_a_part:
            _tidy_up(work)
    return DownloadReport(
        out=config.out,
        linked=linked,
        there=there,
        clips={split: len(clip_files(config.out, split)) for split in config.splits},
        origin=receipt.origin if receipt and others else "",
        sha256=receipt.sha256 if receipt and others else "",
        found=found,
        seconds=time.monotonic() - started_s,
    )


def _make_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; name a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: cannot be made: {error.strerror}") from error


# ----------------------------------------------------------------------------- before any work


def _link_unpacked(config: DownloadConfig) -> tuple[Split, ...]:
    """Splits that are used where they lie: in the folder that was given, or as linked before."""
    if config.source is None:
        return tuple(split for split in config.splits if is_linked(config.out, split))
    if not config.source.is_dir():
        return ()
    unpacked = tuple(split for split in config.splits if is_unpacked(config.source, split))
    if unpacked == config.splits and config.sha256 is not None:
        raise UsageError(
            f"--sha256: {config.source} is unpacked, and no archive is read; leave it out"
        )
    adopt_splits(config.source, unpacked, config.out)
    return unpacked


def _refuse_odd(*paths: Path) -> None:
    """Through a link, what is ours alone would be written elsewhere; a pipe or a device never
    ends."""
    for path in paths:
        mode = path.lstat().st_mode if os.path.lexists(path) else stat.S_IFREG
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InputError(
                f"{path}: is a link, a pipe or a device where meld download needs a file or folder "
                "of its own; remove it"
            )


def _refuse_foreign(out: Path, splits: Sequence[Split], receipt: Receipt | None) -> None:
    """Before anything is fetched for a place that is taken."""
    if (out / RECEIPT).exists() and receipt is None:
        raise InputError(
            f"{out / RECEIPT}: already exists, and meld download did not write it; move it away, "
            "or choose another --out"
        )
    for split in splits:
        annotations = out / annotations_name(split)
        if os.path.lexists(annotations) and not annotations.is_file():
            raise InputError(f"{annotations}: is not a file; move it away, or choose another --out")
        folder = out / MEDIA_FOLDERS[split]
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputError(
                f"{folder}: is a link or a file where a folder is needed; remove it, or choose "
                "another --out"
            )
        is_ours = receipt is not None and split in receipt.clips
        if not is_ours and clip_files(out, split):
            raise InputError(
                f"{out}: has clips of {split} already that meld download did not write; use them "
                f"where they are (--from {out}), or choose another --out"
            )


def _check_space(out: Path, splits: Sequence[Split], to_fetch: int, archive_bytes: int) -> None:
    """`to_fetch` bytes of archive and the clips beside it: the inner archives take no space."""
    rows = {split: PUBLISHED[split].rows for split in SPLITS}
    share = sum(rows[split] for split in splits) / sum(rows.values())
    stage = out / WORK_FOLDER / _STAGE
    there = sum(path.stat().st_size for split in splits for path in clip_files(stage, split))
    unpacked = max(archive_bytes * _UNPACKED_PER_ARCHIVE_BYTE * share - there, 0)
    free = shutil.disk_usage(out).free
    if free < to_fetch + unpacked:
        raise StorageError(
            f"{out}: {_gib(to_fetch + unpacked)} of disk are needed ({_gib(to_fetch)} to fetch, "
            f"{_gib(unpacked)} for the clips), {_gib(free)} are free; make room, or choose another "
            "--out"
        )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


# ----------------------------------------------------------------------------------- unpacking


def _unpack(
    config: DownloadConfig, archives: Archives, splits: Sequence[Split], on_bytes: OnBytes
) -> Found:
    stage = config.out / WORK_FOLDER / _STAGE
    placer = Placer(config.out / WORK_FOLDER / "writing")
    unpacker = Unpacker(stage, splits, placer)
    for path in archives.paths:
        unpacker.unpack(path, partial(on_bytes, "unpacking"))
    placer.remove_others(stage)
    for split in splits:
        _require_split(config, split, unpacker.found, stage)
    return unpacker.found


def _require_split(config: DownloadConfig, split: Split, found: Found, stage: Path) -> None:
    beside = find_annotations(config.source, split) if config.source is not None else None
    if split not in found.annotations and beside is not None:
        shutil.copyfile(beside, stage / annotations_name(split))
        found.annotations.add(split)
    if split not in found.annotations or not found.clips[split]:
        what = "clips" if split in found.annotations else annotations_name(split)
        raise ArchiveError(
            f"{config.source or 'the archive'}: has no {what}; {split} is incomplete"
        )


def _write_receipt(path: Path, archives: Archives, stage: Path, splits: Sequence[Split]) -> None:
    """Written last: by then all that it tells of is on the disk."""
    receipt = Receipt(
        origin=archives.origin,
        sha256=" ".join(archives.sha256s),
        clips={split: len(clip_files(stage, split)) for split in splits},
    )
    os.sync()
    write_whole(path, receipt.to_json().encode())


def _publish_verified(out: Path) -> None:
    work = out / WORK_FOLDER
    verified = read_receipt(work / _VERIFIED)
    if verified is None:
        return
    publish(work / _STAGE, out, tuple(verified.clips))
    earlier = read_receipt(out / RECEIPT)
    clips = {**(earlier.clips if earlier else {}), **verified.clips}
    write_whole(out / RECEIPT, replace(verified, clips=clips).to_json().encode())
    (work / _VERIFIED).unlink()


def _keep(archives: Archives, out: Path) -> None:
    try:
        archives.paths[0].replace(out / ARCHIVE_NAME)
    except OSError as error:
        raise StorageError(f"{out / ARCHIVE_NAME}: {error.strerror or error}") from error


def _tidy_up(work: Path) -> None:
    """What is finished needs none of it; also that of a run that was killed just before."""
    for path in (*work.glob("*.part"), work / "writing"):
        if not path.is_dir():  # none of ours
            path.unlink(missing_ok=True)
    shutil.rmtree(work / _STAGE, ignore_errors=True)
