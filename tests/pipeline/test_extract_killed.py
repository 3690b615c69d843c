"""Twenty kills at random moments: driver, a worker, or both; the file is always the same.

MELD_KILL_SEED repeats a run; MELD_KILL_MODALITIES=text,audio makes it half as long.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

NUM_KILLS = 20
MODALITIES = os.environ.get("MELD_KILL_MODALITIES", "text,video,audio")
FILES = ("train.h5", "dev.h5", "test.h5", "projection.h5")


@pytest.mark.slow
def test_after_each_of_twenty_random_kills_the_next_run_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("MELD_KILL_SEED", time.time()))
    print(f"MELD_KILL_SEED={seed}")
    rng = random.Random(seed)
    settings = tmp_path / "settings.toml"
    settings.write_text("rows_per_shard = 2\n")
    whole = tmp_path / "whole"
    seconds = _run_whole(corpus, whole, settings)
    for round_number in range(NUM_KILLS):
        folder = tmp_path / f"killed-{round_number}"
        who = rng.choice(("driver", "worker", "both"))
        after_s = rng.uniform(0, seconds)
        status = _run_and_kill(corpus, folder, settings, who=who, after_s=after_s, rng=rng)
        shards = len(list(folder.glob(".work/*/shard-*.h5")))
        print(f"{round_number}: {who} after {after_s:.1f} s, status {status}, {shards} shards left")
        _run_whole(corpus, folder, settings)
        _assert_same(folder, whole)
        shutil.rmtree(folder)


def _command(corpus: Path, folder: Path, settings: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "cli", "extract", "--split", "all", "--data", str(corpus)),
        *("--features", str(folder), "--config", str(settings)),
        *("--text", "minilm", "--weights", "video=random", "--modalities", MODALITIES),
    ]


def _run_whole(corpus: Path, folder: Path, settings: Path) -> float:
    started_s = time.monotonic()
    subprocess.run(_command(corpus, folder, settings), check=True, capture_output=True)
    return time.monotonic() - started_s


def _run_and_kill(
    corpus: Path, folder: Path, settings: Path, *, who: str, after_s: float, rng: random.Random
) -> int:
    """The status of a run of which something was killed; a lost worker alone may be survived."""
    running = subprocess.Popen(
        _command(corpus, folder, settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(after_s)
    if who in ("worker", "both"):
        workers = _ray_workers(running.pid)
        if workers:
            rng.choice(workers).kill()
    if who in ("driver", "both"):
        running.send_signal(signal.SIGKILL)
    return running.wait()


def _ray_workers(driver: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(driver).children(recursive=True)
        return sorted(
            (child for child in children if "ray::" in " ".join(child.cmdline())),
            key=lambda child: child.pid,
        )
    except psutil.NoSuchProcess:
        return []


def _assert_same(folder: Path, whole: Path) -> None:
    for name in FILES:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
