"""Files that are there whole or not at all, and never in the place of another kind of file."""

import os
from contextlib import suppress
from glob import escape
from pathlib import Path
from secrets import token_hex

from pipeline.errors import StorageError, UsageError


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file so that it is there whole or not at all, and on the disk when this returns;
    makes its folder where there is none.

    Each call has a temporary file of its own, `.<name>.<process>-<random>.tmp` in the same folder,
    so that two writers of one file cannot take each other's unfinished one; a kill may leave it.

    Raises StorageError; an earlier file of that name is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        with suppress(OSError):  # renamed by now, or never made
            temporary.unlink()


def remove_temporaries(path: Path) -> None:
    """What killed writers left of `path`. Only for the one who may write it: see `locks`.

    Raises OSError.
    """
    for temporary in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
            raise UsageError(
                f"{out} is not a regular file and is left as it is; name another {option}"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        head = b""
        if out.exists():
            with out.open("rb") as file:
                head = file.read(len(begins))
    except OSError as error:
        raise StorageError(f"cannot write {out}: {error}") from error
    if head and head != begins:
        raise UsageError(
            f"{out} is another kind of file and is left as it is; name another {option}"
        )
    if not os.access(out.parent, os.W_OK):
        raise StorageError(f"cannot write {out}: no permission in {out.parent}")
