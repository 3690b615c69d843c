"""Processes beside this one."""

import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess

from pipeline.errors import MeldError


@contextmanager
def spawn_pool(size: int) -> Iterator[ProcessPoolExecutor]:
    """Left early, it waits for what runs and drops what waits.

    Spawned, not forked: the caller may hold threads, of Ray and of PyTorch.
    Raises MeldError where a process died.
    """
    pool = ProcessPoolExecutor(size, mp_context=_Context())
    try:
        yield pool
    except BrokenProcessPool as error:
        raise MeldError("a worker process died, perhaps for lack of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Process(SpawnProcess):
    """Deaf to a terminal's Ctrl-C, which reaches every process: it would answer with a traceback.

    From its first moment on: what is blocked where it is started is blocked in it.
    """

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(SpawnContext):
    Process = _Process
