"""Processes beside this one."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from pipeline.errors import MeldError


@contextmanager
def spawn_pool(size: int) -> Iterator[ProcessPoolExecutor]:
    """Left early, it waits for what runs and drops what waits.

    Spawned, not forked: the caller may hold threads, of Ray and of PyTorch.
    Raises MeldError where a process died.
    """
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(size, mp_context=spawn, initializer=_leave_interrupts_to_the_caller)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise MeldError("a worker process died, perhaps for lack of memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_caller() -> None:
    # A terminal's Ctrl-C reaches every process; the others would answer with tracebacks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
