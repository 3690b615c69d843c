"""Progress of long work: a bar on stderr if that is a terminal, else a line now and then with the
remaining time. A bar is removed when the work is done.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from time import monotonic
from typing import TYPE_CHECKING, Any

from console.printing import say

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

# Intervals of the lines: short at first, to show that it works, and a few minutes in a log of
# hours.
_FIRST_LINE_S, _MOST_S_BETWEEN = 10.0, 300.0
_SHARE_BETWEEN = 0.1  # of the time that has passed


@contextmanager
def progress(what: str, note: str = "") -> Iterator[Callable[..., None]]:
    """Context of long work that is counted in pieces.

    Yields advance(done, total), advance(done, total, count) with a count of `note`, or
    advance(done, total, told="anything").
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = _bar(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    # Ray prints to stdout when a worker dies; stdout is for the result alone.
    with bar, redirect_stdout(sys.stderr):
        task = bar.add_task(what, total=None, note="")
        lines = _Lines()

        def advance(done: int, total: int, count: int = 0, told: str = "") -> None:
            shown = f"{count} {note}" if count else told
            bar.update(task, completed=done, total=total, note=shown)
            if total and not bar.console.is_terminal and lines.is_time(done, total):
                parts = (f"{what}: {done} of {total}", lines.time_left(done, total), shown)
                say(", ".join(filter(None, parts)))

        yield advance


@contextmanager
def byte_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Context of long reading and writing; shows bytes, rate and remaining time.

    Yields advance(stage, bytes done, bytes in all).
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = _bar(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        speed_estimate_period=60,
    )
    stage_of: dict[str, TaskID] = {}
    lines = _Lines()

    def advance(stage: str, done: int, total: int | None) -> None:
        if stage not in stage_of:
            for earlier in stage_of.values():
                bar.remove_task(earlier)
            stage_of.clear()
            stage_of[stage] = bar.add_task(stage, total=total, completed=done)
        bar.update(stage_of[stage], completed=done, total=total)
        if not bar.console.is_terminal and lines.is_time(done, total):
            size = f"{stage}: {done / 1e9:.2f} of {f'{total / 1e9:.2f}' if total else '?'} GB"
            say(", ".join(filter(None, (size, lines.time_left(done, total)))))

    with bar:
        yield advance


class _Lines:
    """Decides when a line is due, and estimates the remaining time. A smaller count, or another
    total, begins a new stage."""

    def __init__(self) -> None:
        now_s = monotonic()
        self._started_s = self._said_s = now_s
        self._stage: tuple[int | None, int, float] | None = None  # total, done and time at first
        self._last = 0

    def is_time(self, done: int, total: int | None) -> bool:
        now_s = monotonic()
        if self._stage is None or self._stage[0] != total or done < self._last:
            self._stage = (total, done, now_s)
        self._last = done
        wait_s = max(_FIRST_LINE_S, _SHARE_BETWEEN * (now_s - self._started_s))
        if now_s - self._said_s < min(wait_s, _MOST_S_BETWEEN):
            return False
        self._said_s = now_s
        return True

    def time_left(self, done: int, total: int | None) -> str:
        """ "about 3 min left", by the rate of this stage so far; "" where there is none yet."""
        if total is None or self._stage is None or done <= self._stage[1]:
            return ""
        _, first, since_s = self._stage
        left_s = (monotonic() - since_s) / (done - first) * (total - done)
        for unit, seconds in (("h", 3600), ("min", 60)):
            if left_s >= 2 * seconds:
                return f"about {left_s / seconds:.0f} {unit} left"
        return f"about {left_s:.0f} s left"


def _bar(*columns: "ProgressColumn", **settings: Any) -> "Progress":
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        **settings,
    )
