"""Work on clips in real Ray workers: deaths, errors, and a Ray that was there before."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.errors import InputError, MeldError, MismatchError, UsageError
from pipeline.parallel import cluster
from pipeline.parallel import engine as parallel
from pipeline.parallel.cluster import look_at_cluster, ray_cluster
from pipeline.parallel.engine import encode_shards, work_on_shards
from pipeline.parallel.work import ClipWork, Cluster, ShardTask
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipKey, LocatedClip, Utterance
from pipeline.system.device import native_precision

pytestmark = pytest.mark.usefixtures("ray_here")

CLUSTER = Cluster(workers=2)


def clips(*names: str) -> tuple[LocatedClip, ...]:
    return tuple(
        LocatedClip(
            utterance=Utterance(key=ClipKey("dev", 0, row), text=f"line {row}"), path=Path(name)
        )
        for row, name in enumerate(names)
    )


def task(index: int, *names: str) -> ShardTask:
    return ShardTask(split="dev", index=index, clips=clips(*names))


def working(do: Callable[[LocatedClip], Any], max_seconds: float = 60) -> ClipWork[Any]:
    # Functions made in functions travel to workers, which do not know this file.
    return ClipWork(
        modalities=("audio",),
        do=lambda clip, modalities: do(clip),
        give_up=lambda clip, modality, told: told,
        join=lambda parts: parts[0],
        what="reading",
        max_seconds=max_seconds,
    )


def results(*tasks: ShardTask, do: Callable[[LocatedClip], Any]) -> dict[int, tuple[Any, ...]]:
    done = work_on_shards(tasks, working(do), CLUSTER)
    return {shard.index: shard.clips for shard in done}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[LocatedClip], Any]:
    """The clip's name; clips called deadly kill their worker, and each time is counted."""
    counted = tmp_path / "deaths"

    def do(clip: LocatedClip) -> str:
        assert clip.path is not None
        if clip.path.name.startswith("deadly"):
            with counted.open("a") as file:
                file.write(f"{clip.path.name}\n")
            os.kill(os.getpid(), 9)
        return clip.path.name

    return do


def deaths(folder: Path) -> dict[str, int]:
    lines = (folder / "deaths").read_text().splitlines()
    return {name: lines.count(name) for name in set(lines)}


def test_every_shard_comes_back_with_its_clips_in_order(read: Any) -> None:
    shards = [task(index, f"{index}a", f"{index}b", f"{index}c") for index in range(12)]
    done = results(*shards, do=read)
    assert done == {index: (f"{index}a", f"{index}b", f"{index}c") for index in range(12)}


def test_a_clip_that_kills_its_worker_costs_only_itself(
    read: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        done = results(task(0, "a", "deadly", "b"), task(1, "c"), do=read)
    assert done == {0: ("a", "reading it killed the worker 2 times (SIGKILL)", "b"), 1: ("c",)}
    assert deaths(tmp_path) == {"deadly": 3}  # with its shard, then twice by itself
    assert "a worker died; 3 clips are processed again, one by one" in caplog.text


@pytest.mark.slow
def test_several_deadly_clips_of_one_shard_cost_one_worker_and_two_deaths_each(
    read: Any, tmp_path: Path
) -> None:
    names = ("a", "deadly-1", "deadly-2", "b", "deadly-3", "c")
    done = results(task(0, *names), do=read)
    assert [told if told in "abc" else "given up" for told in done[0]] == [
        *("a", "given up", "given up", "b", "given up", "c")
    ]
    assert deaths(tmp_path) == {"deadly-1": 3, "deadly-2": 2, "deadly-3": 2}


def test_a_worker_that_is_killed_from_outside_costs_nothing(
    read: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"

    def once(clip: LocatedClip) -> Any:
        if clip.path is not None and clip.path.name == "b" and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), 9)
        return read(clip)

    done = results(task(0, "a", "b", "c"), task(1, "d"), do=once)
    assert done == {0: ("a", "b", "c"), 1: ("d",)}


def test_a_clip_that_hangs_is_given_up_and_its_neighbours_are_not(read: Any) -> None:
    def hang(clip: LocatedClip) -> Any:
        if clip.path is not None and clip.path.name == "hangs":
            time.sleep(600)
        return read(clip)

    work = working(hang, max_seconds=1)
    done = {
        shard.index: shard.clips
        for shard in work_on_shards([task(0, "a", "hangs", "b"), task(1, "c")], work, CLUSTER)
    }
    told = "reading it killed the worker 2 times (stopped after 1 s)"
    assert done == {0: ("a", told, "b"), 1: ("c",)}


def test_an_error_of_ours_in_a_worker_reaches_the_caller_as_itself() -> None:
    def refuse(clip: LocatedClip) -> None:
        raise InputError(f"{clip.path}: not to my taste")

    with pytest.raises(InputError, match=r"^a: not to my taste$"):
        results(task(0, "a"), do=refuse)


def test_a_bug_in_a_worker_is_not_tried_again_and_not_hidden(tmp_path: Path) -> None:
    counted = tmp_path / "calls"

    def divide(clip: LocatedClip) -> float:
        with counted.open("a") as file:
            file.write("x")
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        results(task(0, "a"), do=divide)
    assert counted.read_text() == "x"


def test_weights_that_do_not_fit_are_reported_by_the_encoder(tmp_path: Path) -> None:
    (tmp_path / "spectrogram.safetensors").write_bytes(b"no weights")
    choice = replace(choose_encoder("audio", EncoderRequest(), "float32"), path=tmp_path)
    with pytest.raises(
        MismatchError, match=r"spectrogram\.safetensors: not this encoder's weights \(Error while"
    ):
        list(encode_shards([task(0, "a")], [choice], DecodeConfig(), CLUSTER))


def test_an_encoder_that_dies_is_started_again_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted = tmp_path / "deaths"

    class Dies:
        def __init__(self, *_: object) -> None: ...

        def load(self) -> None: ...

        def encode(self, shard: object) -> None:
            with counted.open("a") as file:
                file.write("encoder\n")
            os.kill(os.getpid(), 9)

    monkeypatch.setattr(parallel, "_ShardEncoder", Dies)
    with caplog.at_level(logging.WARNING), pytest.raises(MeldError, match="the workers failed"):
        list(encode_shards([task(0, "a")], [], None, CLUSTER))
    assert deaths(tmp_path) == {"encoder": parallel.MAX_ROUNDS}
    assert "a worker died; starting another for 1 shards" in caplog.text


def test_the_precision_is_that_of_the_clusters_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process is made to believe that its machine is of the other kind."""
    there = native_precision("cpu")
    (tmp_path / "cpuinfo").write_text(f"flags: {'fpu' if there == 'bfloat16' else 'amx_bf16'}")
    monkeypatch.setattr("pipeline.system.device._CPU_INFO", tmp_path / "cpuinfo")
    assert native_precision("cpu") != there
    monkeypatch.setattr(cluster, "ray_cluster", lambda cluster: nullcontext())
    assert look_at_cluster("here", "cpu", "auto") == ("cpu", there)


def test_a_cluster_whose_workers_lack_the_program_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacking(device: str) -> str:
        raise ModuleNotFoundError("No module named 'pipeline'")

    monkeypatch.setattr(cluster, "native_precision", lacking)
    monkeypatch.setattr(cluster, "ray_cluster", lambda cluster: nullcontext())
    with pytest.raises(UsageError, match=r"--address here: .*No module named 'pipeline'.*install"):
        look_at_cluster("here", "cpu", "auto")


def test_ray_that_was_there_before_is_used_and_left_as_it_is() -> None:
    with ray_cluster(CLUSTER):
        pass
    assert ray.is_initialized()
    with (
        pytest.raises(UsageError, match="Ray runs in this process already"),
        ray_cluster(Cluster(address="elsewhere:6379")),
    ):
        pass


def test_workers_wait_for_each_other_awake_for_a_moment_only() -> None:
    with ray_cluster(CLUSTER):
        told = ray.get(ray.remote(os.getenv).remote("GOMP_SPINCOUNT"))
    assert told == os.environ["GOMP_SPINCOUNT"]


def test_too_small_a_cluster_is_reported_instead_of_waited_for() -> None:
    with (
        pytest.raises(UsageError, match="has 2 CPUs; this needs at least 99"),
        ray_cluster(CLUSTER, least_cpus=99),
    ):
        pass
    with pytest.raises(UsageError, match="has no GPU"), ray_cluster(Cluster(device="cuda")):
        pass
