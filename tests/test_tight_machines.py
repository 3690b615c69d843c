"""Extractions on machines that lack shared memory, cores or memory, and where workers die.

Each is a process of its own, with limits of its own; features are those of an unlimited run.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("MELD_KILL_SEED", time.time()))
FILES = ("train.h5", "dev.h5", "test.h5", "projection.h5")
# Of all its processes together, as a container counts it.
LIMIT_BYTES = 2 * 1024**3
# How many threads compute decides the last bits: here it is the same wherever cores are fewer.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(corpus: Path, features: Path, settings: Path) -> list[str]:
    settings.write_text("rows_per_shard = 2\n")
    return [
        *(sys.executable, "-m", "cli", "extract", "--split", "all", "--data", str(corpus)),
        *("--features", str(features), "--modalities", "text,audio", "--text", "minilm"),
        *("--config", str(settings)),
    ]


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(
        command(corpus, folder / "features", folder / "settings.toml"),
        cwd=ROOT,
        env=ENVIRONMENT,
        check=True,
        capture_output=True,
    )
    return [(folder / "features" / name).read_bytes() for name in FILES]


def run(limited: Sequence[str], corpus: Path, folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*limited, *command(corpus, folder / "features", folder / "settings.toml")],
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def assert_same(running: "subprocess.Popen[str]", folder: Path, whole: list[bytes]) -> str:
    _, told = running.communicate(timeout=300)
    assert running.returncode == 0, told
    assert "Traceback" not in told
    assert [(folder / "features" / name).read_bytes() for name in FILES] == whole
    return told


SMALL_SHM = "mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts disks")
def test_64_mb_of_shared_memory_are_enough(
    corpus: Path, tmp_path: Path, whole: list[bytes]
) -> None:
    """As in a container of Docker that was given no more."""
    limited = ["unshare", "--mount", "sh", "-c", SMALL_SHM + '"$@"', "sh"]
    if subprocess.run([*limited, "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    assert_same(run(limited, corpus, tmp_path), tmp_path, whole)


@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset")
def test_one_core_is_enough(corpus: Path, tmp_path: Path, whole: list[bytes]) -> None:
    core = min(os.sched_getaffinity(0))
    assert_same(run(["taskset", "-c", str(core)], corpus, tmp_path), tmp_path, whole)


def test_2_gb_are_enough(corpus: Path, tmp_path: Path, whole: list[bytes]) -> None:
    """What it takes is watched: not everybody may set a limit."""
    most = 0

    def watch() -> None:
        nonlocal most
        while running.poll() is None:
            taken = 0
            with suppress(psutil.NoSuchProcess):
                mine = psutil.Process(running.pid)
                for process in [mine, *mine.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        taken += process.memory_full_info().pss
            most = max(most, taken)
            time.sleep(0.2)

    running = run([], corpus, tmp_path)
    watcher = threading.Thread(target=watch)
    watcher.start()
    assert_same(running, tmp_path, whole)
    watcher.join()
    print(f"{most / 1e9:.2f} GB at most")
    assert 0 < most < LIMIT_BYTES


def test_workers_that_are_killed_at_random_cost_nothing(
    corpus: Path, tmp_path: Path, whole: list[bytes]
) -> None:
    """As Ray's own WorkerKiller does: one after the other, while a corpus is extracted."""
    print(f"MELD_KILL_SEED={SEED}")
    rng = random.Random(SEED)
    killed = 0
    for number in range(2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        running = run([], corpus, folder)
        deaths = 0
        while running.poll() is None and deaths < 3:
            time.sleep(rng.uniform(0.2, 1.5))
            with suppress(psutil.NoSuchProcess, IndexError):  # one that is ending has no command
                workers = [
                    process
                    for process in psutil.Process(running.pid).children(recursive=True)
                    # Ray's agents are called so too, and Ray ends with them.
                    if (title := process.cmdline()[0]).startswith("ray::") and "Agent" not in title
                ]
                if workers:
                    rng.choice(sorted(workers, key=lambda each: each.pid)).send_signal(
                        signal.SIGKILL
                    )
                    deaths += 1
        assert_same(running, folder, whole)
        killed += deaths
    print(f"{killed} workers were killed")
    assert killed > 0
