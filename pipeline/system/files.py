"""Files that are there whole or not at all, and never in the place of another kind of file."""

import os
from contextlib import suppress
from pathlib import Path

from pipeline.errors import StorageError, UsageError


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that it is there whole or not at all. Raises StorageError."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise StorageError(f"cannot write {path}: {error}") from error


def temporary_name(path: Path) -> Path:
    """Where a file is written before it gets its own name."""
    return path.with_name(f".{path.name}.tmp")


def check_out(out: Path, *, begins: bytes, option: str = "--out") -> None:
    """Before minutes of work for it: makes the folder of `out` and checks that it can be written.

    begins: how every file of its kind begins; what begins otherwise is not replaced
    option: which names it on the command line

    Raises StorageError, or UsageError where something else stands there.
    """
    try:
        if out.is_dir():
            raise StorageError(f"cannot write {out}: it is a folder; {option} takes a file")
        # To open a pipe would wait for ever; in the place of a device no file may come.
        if out.exists() and not out.is_file():
            raise UsageError(f"{out} is no regular file, and stays; name another {option}")
        out.parent.mkdir(parents=True, exist_ok=True)
        head = b""
        if out.exists():
            with out.open("rb") as file:
                head = file.read(len(begins))
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error}") from error
    if head and head != begins:
        raise UsageError(f"{out} is another kind of file, and stays; name another {option}")
    if not os.access(out.parent, os.W_OK):
        raise StorageError(f"cannot write {out}: no permission in {out.parent}")
