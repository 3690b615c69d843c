"""Gets the archives from a given file or folder, a kept archive, or the network, and verifies the
checksum in every case."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.corpus.layout import roots
from pipeline.corpus.meld_facts import ARCHIVE_BYTES, ARCHIVE_NAME, ARCHIVE_SHA256, ARCHIVE_URLS
from pipeline.download.archive import ArchiveError
from pipeline.download.config import WORK_FOLDER, DownloadConfig, OnBytes
from pipeline.download.fetch import Expected, fetch, hash_file
from pipeline.download.unpack import inner_archive
from pipeline.errors import InputError, StorageError, UsageError
from pipeline.schema import Split
from pipeline.system.one_line import without_secrets

logger = logging.getLogger(__name__)

# Kaggle hands its copy out so.
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True, kw_only=True)
class Archives:
    """What is to be unpacked.

    origin:  an address, or the path that was given
    sha256s: of each path
    fetched: they are ours, and not needed once they are unpacked
    """

    paths: tuple[Path, ...]
    origin: str
    sha256s: tuple[str, ...]
    fetched: bool


def get_archives(
    config: DownloadConfig,
    splits: Sequence[Split],
    on_bytes: OnBytes,
    check_space: Callable[[int, int], None],
) -> Archives:
    """Args:
        check_space: told, before anything is written, how many bytes are to be fetched and how
            many the archives have; may raise.

    Raises:
        InputError: what was given is no archive of MELD's.
        DownloadFailed: no address gave the right file.
        StorageError: the disk.
    """
    kept = config.out / ARCHIVE_NAME
    if config.source is None and (config.url is not None or not kept.is_file()):
        return _fetch(config, on_bytes, check_space)
    given = config.source or kept
    paths = _find(given, splits)
    logger.info("archives: %s", ", ".join(map(str, paths)))
    check_space(0, sum(path.stat().st_size for path in paths))
    if config.sha256 is not None and len(paths) > 1:
        raise UsageError("--sha256 is of one archive, and the folder has several")
    sha256s = tuple(_check(path, config, on_bytes) for path in paths)
    return Archives(paths=paths, origin=str(given), sha256s=sha256s, fetched=False)


def _fetch(
    config: DownloadConfig, on_bytes: OnBytes, check_space: Callable[[int, int], None]
) -> Archives:
    sha256 = (config.sha256 or ARCHIVE_SHA256).lower()
    size = ARCHIVE_BYTES if sha256 == ARCHIVE_SHA256 else None
    part = config.out / WORK_FOLDER / f"{sha256[:12]}.part"

    def check(total: int) -> None:
        check_space(max(total - (part.stat().st_size if part.exists() else 0), 0), total)

    if size is not None:
        check(size)
    address = fetch(
        (config.url,) if config.url is not None else ARCHIVE_URLS,
        part,
        Expected(sha256=sha256, size=size),
        patience=config.patience,
        on_bytes=partial(on_bytes, "fetching"),
        on_checked=partial(on_bytes, "checking"),
        on_size=check,
    )
    logger.info(
        "fetched from %s, SHA-256 %s as published or given", without_secrets(address), sha256
    )
    return Archives(paths=(part,), origin=without_secrets(address), sha256s=(sha256,), fetched=True)


def _find(source: Path, splits: Sequence[Split]) -> tuple[Path, ...]:
    """The archive itself, the one in the folder, or those it was unpacked to."""
    if not source.exists():
        raise InputError(f"--from {source}: no such file or folder")
    if not source.is_dir():
        if not source.is_file():  # of a pipe or a device, reading may never end
            raise InputError(f"--from {source}: is neither a file nor a folder")
        if _begins(source, _ZIP_MAGIC):
            raise InputError(f"--from {source}: a zip; unpack it, and pass the folder with --from")
        return (source,)
    folders = roots(source)
    whole = [folder / ARCHIVE_NAME for folder in folders if (folder / ARCHIVE_NAME).is_file()]
    if whole:
        return (whole[0],)
    inner = {
        split: folder / inner_archive(split)
        for split in splits
        for folder in reversed(folders)
        if (folder / inner_archive(split)).is_file()
    }
    lacking = [split for split in splits if split not in inner]
    if lacking:
        raise InputError(
            f"--from {source}: for {', '.join(lacking)} there is neither a CSV with a folder of "
            f"clips, nor {inner_archive(lacking[0])}, nor {ARCHIVE_NAME}; leave a split out with "
            "--splits"
        )
    return tuple(inner.values())


def _begins(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _check(path: Path, config: DownloadConfig, on_bytes: OnBytes) -> str:
    """The archive's SHA-256, which is the one asked for, or the published one where it can only
    be that archive: by its size, or because it was not given but found in `out`."""
    try:
        size = path.stat().st_size
        found = hash_file(path, partial(on_bytes, "checking"))
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error
    is_published = size == ARCHIVE_BYTES or config.source is None
    wanted = config.sha256 or (ARCHIVE_SHA256 if is_published else None)
    if wanted is None:
        logger.warning(
            "%s: not the published archive (%s bytes, not %s); taken as it is",
            path, f"{size:,}", f"{ARCHIVE_BYTES:,}",
        )  # fmt: skip
    elif found != wanted.lower():
        raise ArchiveError(
            f"{path}: damaged: its SHA-256 is {found}, not {wanted}; get it anew, or name the "
            "checksum of another archive with --sha256"
        )
    return found
