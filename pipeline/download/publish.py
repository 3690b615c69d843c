"""Moves unpacked and verified files to their place.

Until all of an archive has been read and its checksums hold, nothing of it has a name that
anything else would read.
"""

import filecmp
from collections.abc import Sequence
from pathlib import Path

from pipeline.corpus.layout import MEDIA_FOLDERS, annotations_name
from pipeline.errors import InputError, StorageError
from pipeline.schema import Split


def publish(stage: Path, out: Path, splits: Sequence[Split]) -> None:
    """Moves the splits' files from `stage` to `out`; killed in between, a second call goes on.

    CSVs that are there already stay: many have those from GitHub, which are newer than the
    archive's and the same once they are read.

    Raises:
        InputError: a clip of another content is in the place; nothing was moved.
        StorageError: the disk.
    """
    try:
        for split in splits:
            _check_place(stage / MEDIA_FOLDERS[split], out / MEDIA_FOLDERS[split])
        for split in splits:
            _move_folder(stage / MEDIA_FOLDERS[split], out / MEDIA_FOLDERS[split])
            annotations = stage / annotations_name(split)
            if annotations.is_file() and not (out / annotations.name).exists():
                annotations.replace(out / annotations.name)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror or error}") from error


def _check_place(staged: Path, folder: Path) -> None:
    for path in _files(staged):
        there = folder / path.name
        if there.exists() and not filecmp.cmp(path, there, shallow=False):
            raise InputError(
                f"{there}: already exists and differs from the archive's file; move it away, and "
                "run the same command again"
            )


def _move_folder(staged: Path, folder: Path) -> None:
    if not folder.exists() and staged.is_dir():
        staged.replace(folder)
    for path in _files(staged):
        path.replace(folder / path.name)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
