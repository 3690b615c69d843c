"""Server and worker of `meld serve` are killed at random moments, and every accepted job ends with
the timeline of an unbroken run. MELD_KILL_SEED repeats a run; MELD_KILLS takes another number."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytest.importorskip("fastapi", reason="the extra serve is not installed")
SEED = os.environ.get("MELD_KILL_SEED", str(int(time.time())))
NUM_KILLS = os.environ.get("MELD_KILLS", "100")


@pytest.mark.slow
def test_no_accepted_job_is_lost_by_a_hundred_kills(tmp_path: Path) -> None:
    print(f"MELD_KILL_SEED={SEED}")
    command = [sys.executable, "-m", "bench.service", "crashes", "--seed", SEED]
    done = subprocess.run(
        [*command, "--kills", NUM_KILLS, "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
