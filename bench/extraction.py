"""Times whole extractions, each in a new process."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.memory import PeakMemory


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """One `meld extract` in a new process, from import to exit."""

    seconds: float
    steady_s: float
    steady_clips: int
    peak_bytes: int


def time_extraction(data: Path, features: Path, text_folder: Path, num_clips: int) -> Extraction:
    shutil.rmtree(features, ignore_errors=True)
    module = "bench.extract_once"
    command = [sys.executable, "-m", module, str(data), str(features), str(text_folder)]
    started_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with closing(PeakMemory(process.pid)) as memory:
        output, _ = process.communicate()
    seconds = time.monotonic() - started_s
    if process.returncode:
        raise SystemExit(f"extraction failed with status {process.returncode}")
    marks = [(at_s, done) for at_s, done in json.loads(output.splitlines()[-1]) if done]
    return Extraction(
        seconds=seconds,
        steady_s=marks[-1][0] - marks[0][0],
        steady_clips=num_clips - marks[0][1],
        peak_bytes=memory.peak_bytes,
    )
