"""Ray's own processes are killed under an extraction."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    "who",
    [
        "ray::RuntimeEnvAgent",
        pytest.param("raylet/raylet", marks=pytest.mark.slow),
        pytest.param("ray::DashboardAgent", marks=pytest.mark.slow),
    ],
)
def test_without_rays_own_processes_an_extraction_ends_in_a_line(
    who: str, corpus: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "cli", "extract", "--split", "all", "--modalities", "audio"]
    command += ["--data", str(corpus), "--features", str(tmp_path / "features")]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        find(running.pid, "ray::_ShardEncoder")
        find(running.pid, who).kill()
        _, told = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 1, told
    last = told.strip().splitlines()[-1]
    assert last.startswith("meld: error: ")
    assert last.endswith("what is finished is kept: run the same command again")
    assert "Traceback" not in told


def find(root: int, what: str) -> psutil.Process:
    """The process below `root` whose command line has this, once it is there."""
    end_s = time.monotonic() + 300
    while time.monotonic() < end_s:
        for child in psutil.Process(root).children(recursive=True):
            try:
                if what in " ".join(child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.02)
    raise AssertionError(f"no {what} below {root}")
