"""The worker process as the server sees it; what runs there is a few lines."""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator

import pytest

from serving import process
from serving.process import WorkerProcess

pytestmark = pytest.mark.heavy

READY = """
import json, sys
sys.stdin.readline()
print(json.dumps({
    "is": "ready", "model": {}, "notice": "", "reads_words": True, "needs_words": False,
}), flush=True)
"""
LINE = 12 * "as a library writes that has found something strange, and so it goes on for long "


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], WorkerProcess]]:
    """A worker that runs these lines of Python."""
    started: list[WorkerProcess] = []

    def run(lines: str) -> WorkerProcess:
        monkeypatch.setattr(process, "_PROGRAM", ("-I", "-S", "-c", lines))
        started.append(WorkerProcess({}, num_threads=1))
        return started[-1]

    yield run
    for each in started:
        each.end()


@pytest.fixture
def unread_stderr() -> Iterator[None]:
    """stderr of this process and of those that it starts is a small pipe that nobody reads."""
    kept = os.dup(2)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.dup2(writing, 2)
    os.close(writing)
    yield
    os.dup2(kept, 2)
    for each in (kept, reading):
        os.close(each)


def logged(caplog: pytest.LogCaptureFixture, *, num_lines: int) -> list[str]:
    """Once so many lines are there."""
    deadline = time.monotonic() + 60
    while len(caplog.records) < num_lines:
        assert time.monotonic() < deadline, len(caplog.records)
        time.sleep(0.01)
    return [each.getMessage() for each in caplog.records]


def test_a_worker_that_writes_a_megabyte_to_stderr_answers_and_its_words_are_in_the_log(
    start: Callable[[str], WorkerProcess], unread_stderr: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "serving")
    worker = start(f"import sys\nfor n in range(1100): print(n, {LINE!r}, file=sys.stderr){READY}")
    assert worker.await_ready(60).reads_words
    said = logged(caplog, num_lines=1100)
    assert said[0] == f"worker_said worker={worker.pid} text=0 {LINE}"


def test_a_line_of_a_worker_that_has_no_end_or_is_no_text_is_read_too(
    start: Callable[[str], WorkerProcess], caplog: pytest.LogCaptureFixture
) -> None:
    write = "import sys; sys.stderr.buffer.write(b'a\\x1b[31m\\xff' + b'x' * 100_000)"
    worker = start(f"{write}{READY}")
    worker.await_ready(60)
    said = logged(caplog, num_lines=51)
    assert said[0].startswith(f"worker_said worker={worker.pid} text=a\\x1b[31m\ufffdxxx")
    assert max(map(len, said)) < 3000
