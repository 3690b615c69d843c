"""Pools of worker processes."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

from pipeline.errors import MeldError


class SpawnPool(ProcessPoolExecutor):
    """A pool that knows its own processes, because the program may have others."""

    def __init__(self, size: int) -> None:
        self._context = _Context()
        super().__init__(size, mp_context=self._context)

    def kill(self) -> None:
        """Kills running work at once; its future then raises BrokenProcessPool."""
        for process in self._context.started:
            process.kill()


@contextmanager
def spawn_pool(size: int) -> Iterator[SpawnPool]:
    """Context of a pool. If it is left early, running work is finished and waiting work dropped.

    Processes are spawned, not forked, because the caller may have threads of Ray and PyTorch.
    Raises MeldError if a process died.
    """
    pool = SpawnPool(size)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise MeldError("a worker process died, perhaps for lack of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Process(SpawnProcess):
    """A process that ignores Ctrl-C. A terminal sends it to every process, and each would print a
    traceback. The signal is blocked from the start: a child inherits the mask of its parent.
    """

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    """Remembers every process that it started."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[_Process] = []

    def Process(self, *args: Any, **settings: Any) -> _Process:  # type: ignore[override] # noqa: N802
        process = _Process(*args, **settings)
        self.started.append(process)
        return process
