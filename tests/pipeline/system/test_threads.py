"""How long threads wait awake, as GNU's OpenMP itself tells when PyTorch loads it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.system.threads import ROUNDS, ROUNDS_BESIDE_A_DECODER

ROOT = Path(__file__).resolve().parents[3]
# What a command does between its start and its work, and then nothing but loading PyTorch.
PROGRAM = """
import sys, types, cli
cli.start(types.SimpleNamespace(invoked_subcommand=sys.argv[1]))
import torch
"""


def load_pytorch(command: str, **variables: str) -> dict[str, str]:
    """Its OpenMP's settings, in a process that began as `meld COMMAND` does."""
    told = subprocess.run(
        [sys.executable, "-c", PROGRAM, command],
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
    ("command", "variables", "rounds"),
    [
        ("finetune", {}, ROUNDS),
        ("predict", {}, ROUNDS_BESIDE_A_DECODER),
        ("predict", {"GOMP_SPINCOUNT": "7"}, 7),
        ("finetune", {"OMP_WAIT_POLICY": "PASSIVE"}, 0),
    ],
)
def test_threads_wait_awake_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch, command: str, variables: dict[str, str], rounds: int
) -> None:
    for each in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(each, raising=False)
    assert load_pytorch(command, **variables)["GOMP_SPINCOUNT"] == str(rounds)
