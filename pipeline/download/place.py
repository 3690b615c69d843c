"""Writes files atomically, and recognises those that exist already."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import IO

from pipeline.download.archive import BadArchive


class Placer:
    """Writes files into a folder that is ours alone: what an earlier run left there is kept where
    it is right, and replaced where it is not.

    scratch: where a file is written before it gets its name; on the same file system
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._placed: set[Path] = set()

    def place(self, chunks: Iterable[bytes], target: Path) -> None:
        """Raises BadArchive where this is the second of two different files; OSError."""
        if target.exists():
            self._recognise(iter(chunks), target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._write(chunks, target)
        self._placed.add(target)

    def remove_others(self, folder: Path) -> None:
        """What an earlier run left of another archive. Raises OSError."""
        for path in folder.rglob("*"):
            if path.is_file() and path not in self._placed:
                path.unlink()

    def _recognise(self, chunks: Iterable[bytes], target: Path) -> None:
        """Reads along; only from the first byte on that differs is anything written."""
        with target.open("rb") as known:
            num_same = 0
            for chunk in chunks:
                if known.read(len(chunk)) != chunk:
                    self._replace(known, num_same, chain([chunk], chunks), target)
                    return
                num_same += len(chunk)
            if known.read(1):
                self._replace(known, num_same, (), target)

    def _replace(
        self, known: IO[bytes], num_same: int, rest: Iterable[bytes], target: Path
    ) -> None:
        if target in self._placed:
            raise BadArchive(f"it holds two different files for {target.name}")
        known.seek(0)
        self._write(chain(_beginning(known, num_same), rest), target)

    def _write(self, chunks: Iterable[bytes], target: Path) -> None:
        with self._scratch.open("wb") as new:
            new.writelines(chunks)
        self._scratch.replace(target)


def _beginning(file: IO[bytes], num_bytes: int) -> Iterable[bytes]:
    while num_bytes:
        chunk = file.read(min(num_bytes, 1 << 20))
        num_bytes -= len(chunk)
        yield chunk
