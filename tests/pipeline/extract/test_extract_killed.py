"""A hundred kills at random moments: driver, a worker, or both; the file is always the same.

One to five kills come before an extraction may end. Starting takes most of a small extraction's
time, so every second kill waits for a shard that was not there before.
MELD_KILL_SEED repeats a run; MELD_KILLS takes another number;
MELD_KILL_MODALITIES=text,audio makes it half as long.
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

ROOT = Path(__file__).resolve().parents[3]
NUM_KILLS = int(os.environ.get("MELD_KILLS", "100"))
MODALITIES = os.environ.get("MELD_KILL_MODALITIES", "text,video,audio")
FILES = ("train.h5", "dev.h5", "test.h5", "projection.h5")


@pytest.mark.slow
def test_after_a_hundred_random_kills_the_runs_that_end_have_the_same_bytes(
    corpus: Path, tmp_path: Path
) -> None:
    seed = int(os.environ.get("MELD_KILL_SEED", time.time()))
    print(f"MELD_KILL_SEED={seed}")
    rng = random.Random(seed)
    settings = tmp_path / "settings.toml"
    settings.write_text("rows_per_shard = 2\n")
    whole = tmp_path / "whole"
    starting_s, working_s = _time_whole(corpus, whole, settings)
    print(f"starting {starting_s:.1f} s, then {working_s:.1f} s")
    number = 0
    while number < NUM_KILLS:
        folder = tmp_path / f"killed-{number}"
        for _ in range(rng.randint(1, 5)):
            _kill_once(
                number, _command(corpus, folder, settings), folder, starting_s, working_s, rng
            )
            number += 1
            if number == NUM_KILLS:
                break
        _run_whole(corpus, folder, settings)
        _assert_same(folder, whole)
        shutil.rmtree(folder)


def _kill_once(
    number: int,
    command: list[str],
    folder: Path,
    starting_s: float,
    working_s: float,
    rng: random.Random,
) -> None:
    who = rng.choice(("driver", "worker", "both"))
    in_the_middle = number % 2 == 1
    after_s = rng.uniform(0, working_s if in_the_middle else starting_s + working_s)
    status = _run_and_kill(
        command,
        who=who,
        after_s=after_s,
        one_more_shard_in=folder if in_the_middle else None,
        rng=rng,
    )
    since = "another shard" if in_the_middle else "the start"
    print(
        f"{number}: {who} {after_s:.1f} s after {since}, status {status}, "
        f"{_num_shards(folder)} shards left"
    )


def _command(corpus: Path, folder: Path, settings: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "cli", "extract", "--split", "all", "--data", str(corpus)),
        *("--features", str(folder), "--config", str(settings)),
        *("--text", "minilm", "--modalities", MODALITIES),
        *(("--weights", "video=random") if "video" in MODALITIES else ()),
    ]


def _run_whole(corpus: Path, folder: Path, settings: Path) -> None:
    command = _command(corpus, folder, settings)
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


def _time_whole(corpus: Path, folder: Path, settings: Path) -> tuple[float, float]:
    """Seconds until the first shard, and from there to the end."""
    started_s = time.monotonic()
    running = _start(_command(corpus, folder, settings))
    _wait_for_another_shard(running, folder)
    first_s = time.monotonic()
    assert running.wait() == 0
    return first_s - started_s, time.monotonic() - first_s


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=ROOT)


def _num_shards(folder: Path) -> int:
    return len(list(folder.glob(".work/*/shard-*.h5")))


def _wait_for_another_shard(running: "subprocess.Popen[bytes]", folder: Path) -> None:
    before = _num_shards(folder)
    while running.poll() is None and _num_shards(folder) <= before:
        time.sleep(0.02)


def _run_and_kill(
    command: list[str],
    *,
    who: str,
    after_s: float,
    one_more_shard_in: Path | None,
    rng: random.Random,
) -> int:
    """The status of a run of which something was killed; a lost worker alone may be survived."""
    running = _start(command)
    if one_more_shard_in is not None:
        _wait_for_another_shard(running, one_more_shard_in)
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
