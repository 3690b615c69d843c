"""Stopped or killed at any point, a fine-tuning goes on and ends with the same weights."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusion.finetuning import checkpoints
from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.finetune import FinetuneResult, finetune
from fusion.finetuning.job import FinetuneConfig
from fusion.finetuning.loop import StepResult
from fusion.finetuning.workers import Worker
from pipeline.errors import StorageError, UsageError
from tests.conftest import ROOT
from tests.fusion.finetuning.planted_words import (
    BRIEF,
    CPU,
    STEADY,
    Stopped,
    assert_same_weights,
    config_for,
)

pytestmark = pytest.mark.heavy


def test_progress_on_disk_is_whole_or_not_there(place: Path, unbroken: FinetuneResult) -> None:
    progress = ProgressFolder(unbroken.run)
    state = progress.load_last()
    assert state is not None
    assert state["epoch"] == STEADY.epochs + 1
    assert [each["epoch"] for each in state["history"]] == list(range(STEADY.epochs + 1))


@pytest.mark.parametrize(
    "step", [*(pytest.param(step, marks=pytest.mark.slow) for step in (1, 6, 20)), 7]
)
def test_stopped_at_any_step_it_ends_with_the_same_weights(
    place: Path, tmp_path: Path, unbroken: FinetuneResult, step: int
) -> None:
    tune = replace(STEADY, checkpoint_every_s=0.0)
    steps = 0

    def stop(_: StepResult) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise Stopped

    with pytest.raises(Stopped):
        finetune(config_for(place, tmp_path / "run", tune=tune), on_step=stop)
    leftover = tmp_path / "run" / "checkpoints" / ".last.pt.77-0a1b2c3d.tmp"
    leftover.write_bytes(b"half a checkpoint")
    resumed = finetune(FinetuneConfig.from_mapping({"resume": True, "out": tmp_path / "run"}))
    assert_same_weights(resumed.run, unbroken.run)
    assert [each.train_loss for each in resumed.history] == [
        each.train_loss for each in unbroken.history
    ]
    assert not leftover.exists()


def test_a_checkpoint_that_cannot_be_written_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error holds all that its functions held: Python 3.12 crashed when it cleared that up."""
    held: list[memoryview] = []

    def refuse(path: Path, content: memoryview) -> None:
        held.append(content)
        raise StorageError("full")

    monkeypatch.setattr(checkpoints, "write_whole", refuse)
    with pytest.raises(StorageError):
        ProgressFolder(tmp_path).save_last({"step": 1}, Worker(device=CPU))
    with pytest.raises(ValueError, match="released"):
        held[0].tobytes()


def test_resuming_takes_no_other_settings_and_needs_something_to_resume(
    place: Path, unbroken: FinetuneResult, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="seed: 0 != 7"):
        FinetuneConfig.from_mapping({"resume": True, "out": unbroken.run, "seed": 7})
    with pytest.raises(UsageError, match=r"settings \(tune\.ema: 0\.0 != 0\.5\); leave"):
        FinetuneConfig.from_mapping({"resume": True, "out": unbroken.run, "tune": {"ema": 0.5}})
    with pytest.raises(UsageError, match="no unfinished fine-tuning"):
        FinetuneConfig.from_mapping({"resume": True, "out": tmp_path})
    with pytest.raises(UsageError, match="--resume needs --out"):
        FinetuneConfig.from_mapping({"resume": True})
    with pytest.raises(UsageError, match="was begun with other settings"):
        finetune(config_for(place, unbroken.run, seed=7, resume=True))


def test_the_same_command_with_resume_goes_on_from_any_folder(
    place: Path, unbroken: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    again = FinetuneConfig.from_mapping(
        {"resume": True, "out": "unbroken", "run": "run", "data": "corpus", "workers": 2}
    )
    assert again.out == unbroken.run
    assert again.workers == 2


def test_killed_before_its_first_fusion_run_was_trained_it_still_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    config = config_for(place, tmp_path / "run", run=None, features=place / "features", tune=BRIEF)
    with monkeypatch.context() as patched:
        patched.setattr("fusion.finetuning.finetune.train_fusion", stop)
        with pytest.raises(Stopped):
            finetune(config)
    resumed = finetune(FinetuneConfig.from_mapping({"resume": True, "out": tmp_path / "run"}))
    assert resumed.start == tmp_path / "run" / "start"
    assert resumed.best.dev_emotion_f1 is not None


@pytest.mark.slow
def test_killed_in_the_middle_of_a_step_it_ends_with_the_same_weights(
    place: Path, tmp_path: Path
) -> None:
    tune = {**dataclasses.asdict(STEADY), "epochs": 12, "checkpoint_every_s": 0.05}
    settings = tmp_path / "tune.toml"
    settings.write_text(as_toml(tune))
    command = [
        *(sys.executable, "-m", "cli", "finetune", "--end-to-end", "--run", str(place / "run")),
        *("--data", str(place / "corpus"), "--weights-dir", str(place / "weights")),
        *("--precision", "float32", "--config", str(settings), "--out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, cwd=ROOT)
    for seed in range(3):
        out = tmp_path / f"killed-{seed}"
        running = subprocess.Popen([*command, str(out)], env=environment, cwd=ROOT)
        while running.poll() is None and not (out / "checkpoints" / "last.pt").is_file():
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 2))
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        resume = [*command[:5], "--resume", "--out", str(out)]
        subprocess.run(resume, check=True, env=environment, cwd=ROOT)
        assert_same_weights(out, tmp_path / "whole")


def as_toml(tune: dict[str, Any]) -> str:
    tables = {name: value for name, value in tune.items() if isinstance(value, dict)}
    lines = ["[tune]", *_lines(tune)]
    for name, table in tables.items():
        lines += [f"[tune.{name}]", *_lines(table)]
    return "\n".join(lines)


def _lines(table: dict[str, Any]) -> list[str]:
    plain = {k: v for k, v in table.items() if v is not None and not isinstance(v, dict)}
    return [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
