"""A pool of processes: a death is told, what waits is dropped, Ctrl-C is for the caller."""

import os
import signal
import time

import pytest

from pipeline.errors import MeldError
from pipeline.processes import spawn_pool


def test_a_process_that_died_is_told_as_ours() -> None:
    with pytest.raises(MeldError, match="a worker process died"), spawn_pool(1) as pool:
        pool.submit(os._exit, 1).result()


def test_left_early_it_drops_what_waits() -> None:
    with spawn_pool(1) as pool:
        waiting = [pool.submit(time.sleep, 0.01) for _ in range(50)]
    assert any(future.cancelled() for future in waiting)
    assert all(future.done() for future in waiting)


def test_an_interrupt_is_for_the_caller_alone() -> None:
    with spawn_pool(1) as pool:
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN
