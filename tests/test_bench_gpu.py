"""`python -m bench.gpu` on a machine that has no GPU, with tiny sizes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_every_part_of_the_measurement_gives_a_figure(corpus: Path, tmp_path: Path) -> None:
    sizes = ("--clips", "16", "--steps", "1", "--batch-size", "4")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", *sizes, "--data", str(corpus), "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    values = {row["what"]: row["value"] for row in rows}
    assert all(math.isfinite(value) for value in values.values()), values
    for what in (
        *("decoding alone, all cores", "models alone", "extraction, steady state"),
        *("models in float32", "models in bfloat16"),
        *("fine-tuning: arithmetic", "text, dialogues read whole: fine-tuning: arithmetic"),
    ):
        assert values[what] > 0, what
    assert 0 < values["bfloat16: video, apart from float32"] < 0.1
    assert 0 < values["fine-tuning: of the peak of matrix products"] <= 110
