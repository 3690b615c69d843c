"""How long threads wait awake, as GNU's OpenMP itself tells when PyTorch loads it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.threads import SPINS

ROOT = Path(__file__).resolve().parents[3]
# The command alone would do; a computation of one line is quicker.
PROGRAM = """
import sys, cli
cli.app = lambda **_: __import__("torch")
cli.main()
"""


def load_pytorch(**variables: str) -> dict[str, str]:
    """Its OpenMP's settings, in a process that began as the command `meld` does."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={**os.environ, "OMP_DISPLAY_ENV": "VERBOSE", **variables},
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    ).stderr
    return dict(re.findall(r"(\w+) = '(.*)'", told))


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch brings another OpenMP elsewhere")
@pytest.mark.parametrize(
    ("variables", "rounds"),
    [({}, SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["by itself", "as told", "by OpenMP's own name"],
)
def test_threads_wait_awake_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rounds: str
) -> None:
    for each in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(each, raising=False)
    assert load_pytorch(**variables)["GOMP_SPINCOUNT"] == rounds
