"""The edge between a command and its user: log lines, and errors as one line and an exit status.

Any exception other than `MeldError` is a bug and keeps its traceback; but an optional part that is
not installed is a `UsageError`, wherever its import failed.
"""

import functools
import inspect
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from logging.handlers import QueueHandler
from typing import Annotated, Any

import typer

from pipeline.errors import MeldError
from pipeline.system.extras import missing_part
from pipeline.system.extras import needs_extra as needs_extra
from pipeline.system.one_line import one_line
from pipeline.system.os_errors import DISK_FAILS, storage_error

log = logging.getLogger(__name__)

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130
# Ends what is said where the service is not installed.
WITHOUT_TORCH = ", or 'meld[serve-onnx]' for bundles with ONNX graphs, without PyTorch"
# Packages whose log lines --verbose shows; other libraries' lines are not shown.
_OURS = ("pipeline", "fusion", "serving", "console", "meld")

Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show log lines on stderr: what is decided and done."),
]


def tell(line: str) -> None:
    """Prints a line on stderr. If stderr cannot be written, only the exit status tells the
    error."""
    with suppress(OSError):
        print(line, file=sys.stderr)


def reports_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Decorates a command: adds --verbose, and reports a `MeldError`, or that an optional part is
    not installed, as one line and its exit status."""

    @functools.wraps(command)
    def run(*args: Any, verbose: bool = False, **kwargs: Any) -> None:
        _show_log(verbose)
        try:
            with _disk_errors_of_threads_in_one_line():
                command(*args, **kwargs)
        except MeldError as error:
            raise _told(error) from error
        except ModuleNotFoundError as error:
            missing = missing_part(error)
            if missing is None:
                raise
            raise _told(missing) from error
        except OSError as error:
            failure = storage_error(error)
            if failure is None:
                raise
            raise _told(failure) from error
        except KeyboardInterrupt as error:
            tell(
                "meld: interrupted (the same command resumes a download, an extraction, an "
                "ablation or a prediction; --resume resumes a fine-tuning)"
            )
            raise typer.Exit(EXIT_INTERRUPTED) from error

    # Typer reads a command's options from these two.
    signature = inspect.signature(command)
    option = inspect.Parameter(
        "verbose", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose
    )
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), option]
    )
    run.__annotations__ = {**command.__annotations__, "verbose": Verbose}
    return run


@contextmanager
def _disk_errors_of_threads_in_one_line() -> Iterator[None]:
    """A library's thread that cannot write, such as TensorBoard's, ends with a traceback, and then
    the next event raises the error again. Here the thread's is one line."""
    before = threading.excepthook

    def tell_of(failed: threading.ExceptHookArgs) -> None:
        error = failed.exc_value
        if isinstance(error, OSError) and error.errno in DISK_FAILS:
            log.warning("a thread could not write: %s", one_line(str(error)))
        else:
            before(failed)

    threading.excepthook = tell_of
    try:
        yield
    finally:
        threading.excepthook = before


def _told(error: MeldError) -> typer.Exit:
    tell(f"meld: error: {one_line(str(error))}")
    return typer.Exit(error.exit_status)


class _ToStderr(logging.Handler):
    """Writes to the current sys.stderr of each line, because a progress bar replaces it."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record))


def _show_log(verbose: bool) -> None:
    root = logging.getLogger()
    if not root.handlers:
        handler = _ToStderr()
        handler.setFormatter(logging.Formatter("meld: %(message)s"))
        root.addHandler(handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)


def log_as(formatter: logging.Formatter) -> None:
    """From here on every line of the log is written so, and of ours all that -v would show."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _ToStderr):
            handler.setFormatter(formatter)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)


MOST_WAITING_LINES = 10_000
_SECONDS_FOR_THE_REST = 2


@contextmanager
def log_beside() -> Iterator[None]:
    """Inside it, a thread writes the log. Whoever reads stderr through a pipe and stops reading
    holds up that thread alone.

    `MOST_WAITING_LINES` wait at most; the lines above are lost, and a line tells how many. At the
    end the thread has `_SECONDS_FOR_THE_REST` for those that wait.
    """
    root = logging.getLogger()
    own = [each for each in root.handlers if isinstance(each, _ToStderr)]
    lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING_LINES)
    beside = [_ToQueue(lines, each.formatter) for each in own]
    root.handlers[:] = [*(each for each in root.handlers if each not in own), *beside]
    writer = threading.Thread(target=_write_all, args=[lines], name="log", daemon=True)
    writer.start()
    try:
        yield
    finally:
        root.handlers[:] = [*(each for each in root.handlers if each not in beside), *own]
        ends_s = time.monotonic() + _SECONDS_FOR_THE_REST
        with suppress(queue.Full):
            for each in beside:
                each.tell_lost(ends_s)
            lines.put(None, timeout=_until(ends_s))
            writer.join(_until(ends_s))


def _until(ends_s: float) -> float:
    return max(ends_s - time.monotonic(), 0)


class _ToQueue(QueueHandler):
    """Lines, as text: only who logs knows which request a line is about."""

    def __init__(self, lines: "queue.Queue[str | None]", formatter: logging.Formatter | None):
        super().__init__(lines)
        self._lines = lines
        self.setFormatter(formatter)
        self.num_lost = 0

    def prepare(self, record: logging.LogRecord) -> str:
        return self.format(record)

    def enqueue(self, record: logging.LogRecord) -> None:
        """record: what `prepare` made of it"""
        try:
            self.tell_lost()
            self.queue.put_nowait(record)
        except queue.Full:
            self.num_lost += 1

    def tell_lost(self, until_s: float = 0) -> None:
        """until_s: on the clock of time.monotonic, how long a full queue is waited for

        Raises queue.Full.
        """
        if self.num_lost:
            lost = f"{self.num_lost} lines of the log were lost: they were not read in time"
            told = logging.LogRecord(__name__, logging.WARNING, "", 0, lost, None, None)
            self._lines.put(self.format(told), timeout=_until(until_s))
            self.num_lost = 0


def _write_all(lines: "queue.Queue[str | None]") -> None:
    for line in iter(lines.get, None):
        try:
            stderr = sys.stderr.fileno()
        except ValueError:  # it is no file
            tell(line)
            continue
        with suppress(OSError):  # nobody can read it any more; the service goes on
            # Past the buffer of sys.stderr: its lock would be held while nobody reads, and with
            # it the end of the process.
            os.write(stderr, f"{line}\n".encode(errors="backslashreplace"))  # as sys.stderr does
