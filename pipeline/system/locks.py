"""One writer per cache and run. The kernel holds the lock, so a killed process leaves none."""

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import CacheBusy, StorageError
from pipeline.schema import Split
from pipeline.system.json_values import MALFORMED
from pipeline.system.one_line import without_secrets


def hold_split(features: Path, split: Split) -> AbstractContextManager[None]:
    """Holds the lock of a split's cache, as `hold` does."""
    return hold(features / ".work" / f"{split}.lock", f"the {split} cache")


@contextmanager
def hold(path: Path, what: str, advice: str = "wait for it") -> Iterator[None]:
    """Holds the lock file for the length of the block.

    advice: what to do where another process holds it

    Raises:
        CacheBusy: at once, naming the process that holds it.
        StorageError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheBusy(f"{what} is being written by {_holder(path)}; {advice}") from error
        except OSError as error:
            raise StorageError(f"{path}: cannot be locked: {error.strerror}") from error
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(_myself()).encode())
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            yield
        finally:
            with suppress(OSError):  # the holder is gone, and its command may name private paths
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextmanager
def hold_folder(folder: Path, what: str) -> Iterator[bool]:
    """Makes a folder and holds its own lock for the length of the block, so that no lock file is
    left in what may be published; gives False where its file system locks no folders.

    Raises CacheBusy at once where another process holds it, or StorageError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror}") from error
    try:
        is_held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheBusy(f"{what} is being written by another process; wait for it") from error
        except OSError:
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


def _myself() -> dict[str, str | int]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_secrets(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return "process {process} on {host} since {since} ({command})".format(**holder)
    except (OSError, *MALFORMED):
        return "another process"
