"""A pool of processes: a death is told, what waits is dropped, Ctrl-C is for the caller."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import MeldError
from pipeline.system.processes import spawn_pool

pytestmark = pytest.mark.heavy

SCRIPT = """
import signal, time
if __name__ == "__mp_main__":  # in the other process, which is not ready yet
    print("importing", flush=True)
    time.sleep(1)
if __name__ == "__main__":
    from pipeline.system.processes import spawn_pool
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with spawn_pool(1) as pool:
            pool.submit(abs, -1).result()
            time.sleep(60)
    except KeyboardInterrupt:
        print("answered")
"""


def test_a_process_that_died_is_reported_as_ours() -> None:
    with pytest.raises(MeldError, match="a worker process died"), spawn_pool(1) as pool:
        pool.submit(os._exit, 1).result()


def test_left_early_it_drops_what_waits() -> None:
    with spawn_pool(1) as pool:
        waiting = [pool.submit(time.sleep, 0.01) for _ in range(50)]
    assert any(future.cancelled() for future in waiting)
    assert all(future.done() for future in waiting)


def test_an_interrupt_is_for_the_caller_alone() -> None:
    with spawn_pool(1) as pool:
        blocked = pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result()
    assert signal.SIGINT in blocked


def test_an_interrupt_while_a_process_starts_is_the_callers_alone(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == ("answered\n", "")
