"""How far long work is: a bar on stderr where that is a terminal.

Elsewhere nothing is shown of work that is counted in pieces, and a line a minute of work that is
counted in bytes. A bar is gone when its work is done.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from console.printing import say

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn, TaskID

# Where no bar is shown, so that a log of hours is not silent.
_SAY_EVERY_S = 60.0


@contextmanager
def progress(what: str, note: str = "") -> Iterator[Callable[..., None]]:
    """Around long work that is counted in pieces.

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

        def advance(done: int, total: int, count: int = 0, told: str = "") -> None:
            shown = f"{count} {note}" if count else told
            bar.update(task, completed=done, total=total, note=shown)

        yield advance


@contextmanager
def byte_progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Around long reading and writing: bytes, rate and time left.

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
    said_s = time.monotonic()

    def advance(stage: str, done: int, total: int | None) -> None:
        nonlocal said_s
        if stage not in stage_of:
            for earlier in stage_of.values():
                bar.remove_task(earlier)
            stage_of.clear()
            stage_of[stage] = bar.add_task(stage, total=total, completed=done)
        bar.update(stage_of[stage], completed=done, total=total)
        if not bar.console.is_terminal and time.monotonic() - said_s > _SAY_EVERY_S:
            said_s = time.monotonic()
            say(f"{stage}: {done / 1e9:.2f} of {f'{total / 1e9:.2f}' if total else '?'} GB")

    with bar:
        yield advance


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
