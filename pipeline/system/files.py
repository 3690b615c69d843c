"""Atomic writes of files, which never replace a file of another kind."""

import os
from contextlib import suppress
from glob import escape
from pathlib import Path
from secrets import token_hex

from pipeline.errors import StorageError, UsageError
from pipeline.system.one_line import is_utf_8


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Writes a file atomically, makes its folder if needed, and returns when it is on the disk.

    Each call has its own temporary file, `.<name>.<process>-<random>.tmp` in the same folder, so
    that two writers of one file never share one. A killed process may leave its temporary file.

    Raises StorageError; then an earlier file with that name is unchanged.
    """
    temporary = _temporary(path)
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
        with suppress(OSError):  # it was renamed, or never created
            temporary.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{token_hex(4)}.tmp")


def remove_temporaries(path: Path) -> None:
    """Removes temporary files of `path` from killed writers. The caller must hold its lock.

    Raises OSError.
    """
    for temporary in path.parent.glob(f".{escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the entries of a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_out(out: Path, *, begins: bytes, option: str = "--out") -> None:
    """Makes the folder of `out` and checks that `out` can be written, before minutes of work.

    begins: the first bytes of every file of its kind; a file that begins otherwise is not replaced
    option: the command-line option that names it

    Raises StorageError, or UsageError if another kind of file is there.
    """
    try:
        if out.is_dir():
            raise StorageError(f"cannot write {out}: it is a folder; {option} takes a file")
        # Opening a pipe would wait for ever, and a device must not be replaced.
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
    check_writable(out)


def refuse_other_names(out: Path) -> None:
    """Raises UsageError where the libraries of encoders would not write into that folder."""
    if not is_utf_8(str(out.absolute())):
        raise UsageError(
            f"--out {out}: a name that is no UTF-8, where no encoder can be written; choose "
            "another folder"
        )


def check_writable(path: Path) -> None:
    """Checks, by a file that it removes again, that `write_whole` can write `path`.

    Raises StorageError.
    """
    temporary = _temporary(path)
    try:
        if path.is_dir():
            raise StorageError(f"cannot write {path}: it is a folder")
        # Permissions alone do not tell: root has all of them, also in /proc.
        temporary.open("xb").close()
        temporary.unlink()
    except PermissionError as error:
        raise StorageError(f"cannot write {path}: no permission in {path.parent}") from error
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
