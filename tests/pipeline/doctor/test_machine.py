"""The machine: weights, memory and extras that are there or are not."""

import dataclasses
import importlib.metadata
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from console.show.doctor import render_machine
from pipeline.doctor.examine import DoctorConfig, look_around
from pipeline.doctor.machine import look_at_machine
from pipeline.encoders import weights
from pipeline.system import resources
from tests.pipeline.doctor.planted import NOWHERE, shown


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise AssertionError(f"{url} was asked")

    monkeypatch.setattr(weights, "_check_answers", refuse)


def test_missing_weights_are_named_with_the_ways_to_get_them_and_nothing_is_downloaded(
    no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    machine = look_at_machine(tmp_path, tmp_path, tmp_path / "weights")
    states = {each.name: each for each in machine.encoders}
    assert [name for name, each in states.items() if not each.is_present] == [
        "bert-base-uncased",
        "r3d_18",
    ]
    assert "--text minilm" in states["bert-base-uncased"].how
    assert "r3d_18-b3b3357e.pth" in states["r3d_18"].how
    lines = shown(render_machine(machine))
    assert any("NOT FOUND" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_weights_that_are_there_are_found_and_a_broken_off_download_is_not_taken_for_them(
    no_network: None, tmp_path: Path
) -> None:
    bert = tmp_path / "bert-base-uncased"
    bert.mkdir()
    (bert / "config.json").write_text("{}")
    (tmp_path / "r3d_18-b3b3357e.pth").write_bytes(b"weights")

    def present() -> dict[str, bool]:
        machine = look_at_machine(tmp_path, tmp_path, tmp_path)
        return {each.name: each.is_present for each in machine.encoders}

    assert present()["r3d_18"]
    assert not present()["bert-base-uncased"]
    (bert / "model.safetensors").write_bytes(b"weights")
    assert present()["bert-base-uncased"]


def test_weights_in_torch_hubs_folder_are_found_beside_a_weights_folder(
    no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    machine = look_at_machine(tmp_path, tmp_path, tmp_path / "texts")
    states = {each.name: each for each in machine.encoders}
    assert states["r3d_18"].where == str(cached)


def test_missing_system_information_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_MEMORY_INFO", "_MEMORY_LIMIT", "_SHARED_MEMORY"):
        monkeypatch.setattr(resources, name, tmp_path / "none")
    monkeypatch.setattr(os, "sysconf_names", {})
    assert resources.memory() == resources.Space(total_bytes=None, free_bytes=None)
    assert resources.shared_memory() is None
    told = "\n".join(shown(render_machine(NOWHERE)))
    assert "unknown" in told
    assert re.search(r"shared memory.*none", told)


def test_a_containers_limit_is_the_memory_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "info").write_text("MemTotal: 8000 kB\nMemAvailable: 6000 kB\nHugePages_Free: 0\n")
    (tmp_path / "limit").write_text("2048000\n")
    monkeypatch.setattr(resources, "_MEMORY_INFO", tmp_path / "info")
    monkeypatch.setattr(resources, "_MEMORY_LIMIT", tmp_path / "limit")
    assert resources.memory() == resources.Space(total_bytes=2_048_000, free_bytes=2_048_000)
    (tmp_path / "limit").write_text("max\n")
    assert resources.memory() == resources.Space(total_bytes=8_192_000, free_bytes=6_144_000)


def test_too_little_shared_memory_is_a_concern() -> None:
    small = resources.Space(total_bytes=2**26, free_bytes=2**26)
    [line] = dataclasses.replace(NOWHERE, shared_memory=small).concerns
    assert "0.1 GiB free of the 0.5 GiB that Ray wants" in line


def test_an_extra_that_is_not_installed_is_reported_with_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = ["torch>=2", "no-such-voice==1 ; extra == 'sample'", 'pytest>=9; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: told)
    [extra] = look_at_machine(tmp_path, tmp_path, None).extras
    assert (extra.missing, extra.command) == (("no-such-voice",), "pip install 'meld[sample]'")


@pytest.mark.parametrize("data", [Path("not/yet"), Path("a" * 300)])
def test_the_machine_is_looked_at_without_a_corpus(tmp_path: Path, data: Path) -> None:
    machine = look_around(DoctorConfig(data=tmp_path / data))
    assert machine.cores >= 1
    assert all(space.free_bytes for space in machine.disks.values())
