"""How often test was evaluated with a run: `test-evaluations.jsonl` in the run's folder.

Whoever evaluates on test, changes something and evaluates again has begun to choose on test, and
its numbers turn into hopes. A program cannot forbid that, but it can count. An evaluation is
recorded before its numbers are shown, one line each, and nothing here takes one away. Training
again into the same folder (`--overwrite`) keeps the file: the person who chooses is the same.
"""

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StorageError

RECORD = "test-evaluations.jsonl"


def record_evaluation(run: Path, command: str) -> int:
    """Adds a line, on disk when this returns; how many there are now, this one included.

    Raises StorageError where the run's folder cannot be written: an evaluation that is not counted
    is not shown.
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
        raise StorageError(
            f"cannot write down in {path} that test is evaluated: {error}"
        ) from error
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
