"""A disk that fails at its n-th operation: once, from then on for want of room, or by a kill.

As SQLite's crash tests do: n goes up until nothing fails any more, so that no write is forgotten.
"""

import builtins
import errno
import io
import os
import random
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.errors import MeldError, StorageError

How = Literal["killed", "once", "full"]
HOWS: tuple[How, ...] = ("killed", "once", "full")

SEED = int(os.environ.get("MELD_FAULT_SEED", 0))  # of the places where not all of them are tried

_NEED_ROOM = ("open", "write", "mkdir", "fsync", "replace", "rename")
_CALLS = (
    *("replace", "rename", "unlink", "remove", "mkdir", "rmdir"),
    *("fsync", "ftruncate", "link", "symlink"),
)


class Killed(BaseException):
    """What a process that is killed does not get to see. No operation after it has an effect, as
    the clearing up of a `finally` has none after a kill."""


@dataclass
class Disk:
    """at: the number of the operation that fails; below: where operations count
    operations: what was done, and to what
    """

    at: int
    how: How
    below: Path
    num_done: int = 0
    has_failed: bool = False
    failed_in: str = ""

    def before(self, name: str, *places: Any, half: Callable[[], object] = lambda: None) -> None:
        """half: does the half of it"""
        if not self._counts(places):
            return
        if self.has_failed and self.how == "killed":
            raise Killed
        self.num_done += 1
        fails = self.num_done >= self.at
        if self.how == "once":
            fails = fails and not self.has_failed
        elif self.how == "full":
            fails = fails and name in _NEED_ROOM
        if not fails:
            return
        if not self.has_failed:
            self.failed_in = f"{name} {' '.join(str(each) for each in places)}"
        self.has_failed = True
        half()
        if self.how == "killed":
            raise Killed(name)
        number = errno.ENOSPC if self.how == "full" else errno.EIO
        raise OSError(number, os.strerror(number), *map(str, places[:1]))

    def _counts(self, places: tuple[Any, ...]) -> bool:
        return any(
            isinstance(place, int) or Path(os.fsdecode(place)).is_relative_to(self.below)
            for place in places
        )


class _File:
    """An open file that is written to."""

    def __init__(self, file: Any, disk: Disk, path: Any) -> None:
        self._file, self._disk, self._path = file, disk, path

    def write(self, content: Any) -> Any:
        half = content[: len(content) // 2]
        if isinstance(half, memoryview):  # the error would hold it: Python 3.12 crashes at its end
            half = bytes(half)
        self._disk.before("write", self._path, half=lambda: self._file.write(half))
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)

    def __enter__(self) -> "_File":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._file.__exit__(*error)


@contextmanager
def failing(disk: Disk) -> Iterator[None]:
    def wrapped(name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def count_and_call(*places: Any, **options: Any) -> Any:
            folders = [each for key, each in options.items() if key.endswith("dir_fd")]
            num_places = 2 if name in ("replace", "rename", "link", "symlink") else 1
            disk.before(name, *places[:num_places], *(fd for fd in folders if fd is not None))
            return call(*places, **options)

        return count_and_call

    really_open = io.open

    def open_counted(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if not set(mode) & set("wxa+") or isinstance(path, int):
            return really_open(path, mode, *rest, **options)
        disk.before("open", path)
        return _File(really_open(path, mode, *rest, **options), disk, path)

    with pytest.MonkeyPatch.context() as patch:
        for name in _CALLS:
            patch.setattr(os, name, wrapped(name))
        patch.setattr(io, "open", open_counted)
        patch.setattr(builtins, "open", open_counted)
        yield


@dataclass(frozen=True, kw_only=True)
class Change:
    """What changes the disk, and is to be seen whole or not at all.

    prepare: makes what stands in a folder before
    change:  what may fail
    read:    what somebody finds in the folder; MeldError where that is refused
    may_be_refused: a reader may be told that what stands there is unfinished
    leftovers: of a folder when all is done, by those who sweep: none may be left
    """

    prepare: Callable[[Path], None]
    change: Callable[[Path], object]
    read: Callable[[Path], Any]
    may_be_refused: bool = False
    leftovers: Callable[[Path], list[Path]] = lambda _: []

    def found(self, folder: Path) -> Any:
        try:
            return self.read(folder)
        except MeldError:
            if not self.may_be_refused:
                raise
            return None


def fail_everywhere(change: Change, tmp_path: Path, how: How, num_places: int | None = None) -> int:
    """Lets the first operation fail, then the second, and so on to the last; or as many of them as
    `num_places` says, which are drawn. Returns how many there are.

    Each time what is found is old or new, an error of the disk is told as such, and the same
    again without a failure ends with the new and nothing else.
    """
    with pytest.MonkeyPatch.context() as patch:
        # What fsync promises is for power that fails: no test here waits for it.
        patch.setattr(os, "fsync", lambda descriptor: None)
        whole = tmp_path / "unbroken"
        whole.mkdir()
        change.prepare(whole)
        old = change.found(whole)
        count = Disk(at=1 << 30, how=how, below=whole)
        with failing(count):
            change.change(whole)
        new = change.found(whole)
        assert old != new, "nothing changes"
        places = range(1, count.num_done + 1)
        if num_places is not None:
            print(f"MELD_FAULT_SEED={SEED}")
            places = sorted(random.Random(SEED).sample(places, min(num_places, len(places))))
        for at in places:
            folder = tmp_path / f"{how}-{at}"
            folder.mkdir()
            change.prepare(folder)
            _fail_at(change, Disk(at=at, how=how, below=folder), old, new)
        return count.num_done


def _fail_at(change: Change, disk: Disk, old: Any, new: Any) -> None:
    folder, told = disk.below, None
    with failing(disk):
        try:
            change.change(folder)
        except (Killed, StorageError) as error:
            told = error
    where = f"{disk.how} at {disk.at}, {disk.failed_in}"
    # The last operations need no room, or there are fewer where random names sort otherwise.
    assert disk.has_failed or disk.how == "full" or disk.num_done < disk.at, where
    assert (disk.how == "killed") == isinstance(told, Killed) or not disk.has_failed, where
    found = change.found(folder)
    either = [old, new, *([None] if change.may_be_refused else [])]
    assert any(found == each for each in either), f"{where}: neither old nor new"
    if told is None:
        assert found == new, f"{where}: not told"
    change.change(folder)
    assert change.found(folder) == new, f"{where}: not taken up"
    assert change.leftovers(folder) == [], where


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a quota, it refuses in the middle of a file; and nobody has to be root for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
