"""Counts the test evaluations of a run: `test-evaluations.jsonl` in its folder.

Evaluating on test, changing something and evaluating again means choosing on test, which makes the
test scores optimistic. A program cannot forbid that, but it can count. An evaluation is recorded
before its scores are shown, one line each, and records are never removed. Training again into the
same folder (`--overwrite`) keeps the file, because the same person chooses.
"""

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StorageError

RECORD = "test-evaluations.jsonl"


def record_evaluation(run: Path, command: str) -> int:
    """Adds a line, which is on disk when this returns, and returns the number of lines.

    Raises StorageError where the run's folder cannot be written: an evaluation that cannot be
    counted is not shown.
    """
    path = run / RECORD
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "command": command})
    try:
        with path.open("a+b") as file:
            # Another process may be in the middle of its line, which then seems to be cut short.
            fcntl.flock(file, fcntl.LOCK_EX)
            # A line that a crash cut short counts as well, and must not swallow this one.
            torn = _last_byte(path) not in (b"", b"\n")
            file.write((b"\n" if torn else b"") + line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(run)
    except OSError as error:
        raise StorageError(f"cannot record the test evaluation in {path}: {error}") from error
    return count_evaluations(run)


def count_evaluations(run: Path) -> int:
    """Raises StorageError."""
    path = run / RECORD
    try:
        return sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error


def describe_evaluations(count: int, run: str = "this run") -> str:
    return f"test was evaluated {'once' if count == 1 else f'{count} times'} with {run}"


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        return file.read(1)


def _sync_folder(folder: Path) -> None:
    """Else a new file's name may be lost with the power, though its bytes are there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
