"""The log of a command that runs for long, whoever reads it; errors of threads."""

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr

import pytest

from console import edge
from serving.logs import REQUEST, JsonLines, RequestNote

log = logging.getLogger("serving.test")


@contextmanager
def small_pipe() -> Iterator[int]:
    """stderr is one, and the log goes there as a command writes it; the pipe's other end.

    Only there: pytest would keep every line for its report.
    """
    root = logging.getLogger()
    handler = edge._ToStderr()
    handler.setFormatter(logging.Formatter("meld: %(message)s"))
    before, root.handlers[:] = root.handlers[:], [handler]
    loggers = [logging.getLogger(name) for name in edge._OURS]
    levels = [logger.level for logger in loggers]
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        with os.fdopen(writing, "w", buffering=1) as stderr, redirect_stderr(stderr):
            yield reading
    finally:
        root.handlers[:] = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        os.close(reading)


def read_until(reading: int, is_all: Callable[[bytes, float], bool]) -> list[str]:
    """is_all: is asked while nothing is there, with what came and for how many seconds none did"""
    os.set_blocking(reading, False)
    content, began = b"", time.perf_counter()
    quiet_since = began
    while True:
        try:
            content += os.read(reading, 65_536)
            quiet_since = time.perf_counter()
        except BlockingIOError:
            if is_all(content, time.perf_counter() - quiet_since):
                return content.decode().splitlines()
            assert time.perf_counter() - began < 60, content
            time.sleep(0.01)


def read_all(reading: int, *, num_lines: int = 1) -> list[str]:
    """At least so many lines, and then until nothing comes for a while."""
    return read_until(
        reading, lambda content, quiet_s: content.count(b"\n") >= num_lines and quiet_s > 0.3
    )


def test_who_stops_reading_the_log_holds_nobody_up_and_is_told_what_was_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge, "MOST_WAITING_LINES", 50)
    with small_pipe() as reading, edge.log_beside():
        for number in range(1000):
            log.warning("line %d of about forty characters, or more", number)
        lines = read_all(reading, num_lines=50)
        log.warning("read again")
        lines += read_all(reading, num_lines=2)
    assert lines.pop() == "meld: read again"
    lost = [int(line.split()[1]) for line in lines if "lines of the log were lost" in line]
    written = [int(line.split()[2]) for line in lines if line.startswith("meld: line")]
    assert written[:50] == list(range(50))
    assert sorted(written) == written
    assert 0 < sum(lost) == 1000 - len(written)
    assert len(lines) == len(lost) + len(written)


def test_a_line_keeps_the_request_that_it_is_about() -> None:
    with small_pipe() as reading:
        edge.log_as(JsonLines())
        with edge.log_beside():
            token = REQUEST.set(RequestNote(id="r-17"))
            log.warning("slow")
            REQUEST.reset(token)
            [line] = read_all(reading)
    assert '"request": "r-17"' in line
    assert '"text": "slow"' in line


def test_a_line_that_is_no_text_is_written_all_the_same_and_those_after_it_too() -> None:
    with small_pipe() as reading, edge.log_beside():
        log.warning("cannot write %s", os.fsdecode(b"talk-\xff.mp4"))
        log.warning("the next")
        lines = read_all(reading, num_lines=2)
    assert lines == ["meld: cannot write talk-\\udcff.mp4", "meld: the next"]


def test_what_was_logged_last_is_written_before_the_end() -> None:
    with small_pipe() as reading:
        with edge.log_beside():
            log.warning("the end")
        assert read_all(reading) == ["meld: the end"]
        log.warning("after it")
        assert read_all(reading) == ["meld: after it"]


def end_in_a_thread(error: Exception) -> None:
    def fail() -> None:
        raise error

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def test_what_a_librarys_thread_cannot_write_is_one_line_and_no_traceback(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_traceback: list[str] = []
    monkeypatch.setattr(
        threading, "excepthook", lambda failed: with_traceback.append(str(failed.exc_value))
    )

    @edge.reports_errors
    def command() -> None:
        end_in_a_thread(OSError(errno.ENOSPC, "No space left", "events.1"))
        end_in_a_thread(ValueError("a bug"))

    command()
    assert with_traceback == ["a bug"]
    assert caplog.messages == ["a thread could not write: [Errno 28] No space left: 'events.1'"]
    end_in_a_thread(OSError(errno.ENOSPC, "after the command"))
    assert with_traceback == ["a bug", "[Errno 28] after the command"]


def test_at_the_end_a_full_queue_is_written_to_a_slow_reader_and_what_was_lost_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge, "MOST_WAITING_LINES", 50)
    monkeypatch.setattr(edge, "_SECONDS_FOR_THE_REST", 60)
    lines: list[str] = []
    is_over = threading.Event()
    with small_pipe() as reading:
        reader = threading.Timer(
            0.2, lambda: lines.extend(read_until(reading, lambda *_: is_over.is_set()))
        )
        with edge.log_beside():
            for number in range(1000):
                log.warning("line %d of about forty characters, or more", number)
            reader.start()
        is_over.set()
        threads = [each.name for each in threading.enumerate()]
        reader.join()
    assert "log" not in threads  # the process may end: nothing waits any more
    lost = [int(line.split()[1]) for line in lines if "lines of the log were lost" in line]
    assert 0 < sum(lost) == 1000 - (len(lines) - len(lost))


def test_who_never_reads_the_log_holds_up_the_end_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(edge, "MOST_WAITING_LINES", 50)
    monkeypatch.setattr(edge, "_SECONDS_FOR_THE_REST", 0.2)
    with small_pipe() as reading:
        with edge.log_beside():
            for number in range(1000):
                # Of fifty that wait the pipe holds twenty, however late the thread begins.
                log.warning("line %d %s", number, 200 * "x")
            begun_s = time.perf_counter()
        assert 0.1 < time.perf_counter() - begun_s < 20
        read_all(reading)  # so that the thread ends
