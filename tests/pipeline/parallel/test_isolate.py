"""Clips that kill, hang or eat memory, each in a process of its own: who is given up, who not.

The processes are forked from this one, without Ray.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.decode import container
from pipeline.decode.container import one_packet
from pipeline.errors import InputError
from pipeline.parallel import isolate as isolating
from pipeline.parallel.isolate import isolate
from pipeline.parallel.work import ClipWork, ShardTask
from pipeline.schema import MEDIA, ClipKey, LocatedClip, Modality, Utterance

Do = Callable[[str, Sequence[Modality]], Any]


def task(*names: str) -> ShardTask:
    return ShardTask(
        split="dev",
        index=0,
        clips=tuple(
            LocatedClip(utterance=Utterance(key=ClipKey("dev", 0, row), text=""), path=Path(name))
            for row, name in enumerate(names)
        ),
    )


def working(
    do: Do, modalities: tuple[Modality, ...] = MEDIA, max_seconds: float = 60
) -> ClipWork[Any]:
    """Of a clip, the results of its modalities: what is done, or what is told."""

    def do_clip(clip: LocatedClip, *, modalities: tuple[Modality, ...]) -> dict[str, Any]:
        assert clip.path is not None
        return dict.fromkeys(modalities, do(clip.path.name, modalities))

    return ClipWork(
        modalities=modalities,
        do=do_clip,
        give_up=lambda clip, modality, told: {modality: told},
        join=lambda parts: {name: value for part in parts for name, value in part.items()},
        what="reading",
        max_seconds=max_seconds,
    )


def die() -> None:
    os.kill(os.getpid(), 9)


class Log:
    """What was begun, in a file, as those who wrote it are dead."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log"

    def add(self, line: str) -> None:
        with self._path.open("a") as file:
            file.write(f"{line}\n")

    def count(self) -> Counter[str]:
        return Counter(self._path.read_text().splitlines())


pytestmark = pytest.mark.heavy


def test_a_file_whose_sound_kills_keeps_its_picture(tmp_path: Path) -> None:
    log = Log(tmp_path)

    def do(name: str, modalities: Sequence[Modality]) -> str:
        log.add(f"{name}: {' and '.join(modalities)}")
        if name == "b" and "audio" in modalities:
            die()
        return name

    clips = isolate(task("a", "b", "c"), working(do)).clips
    told = "reading its audio killed the worker 2 times (SIGKILL)"
    assert clips == (
        {"video": "a", "audio": "a"},
        {"video": "b", "audio": told},
        {"video": "c", "audio": "c"},
    )
    assert log.count() == {
        "a: video and audio": 1,
        "b: video and audio": 1,
        "b: video": 1,
        "b: audio": 2,
        "c: video and audio": 1,
    }


def test_a_file_that_kills_on_opening_loses_each_modality_after_two_deaths(tmp_path: Path) -> None:
    log = Log(tmp_path)

    def do(name: str, modalities: Sequence[Modality]) -> str:
        log.add(" and ".join(modalities))
        die()
        return name

    [clip] = isolate(task("a"), working(do)).clips
    assert set(clip) == {"video", "audio"}
    assert all("2 times" in told for told in clip.values())
    assert log.count() == {"video and audio": 1, "video": 2, "audio": 2}


def test_of_a_single_modality_the_second_death_is_the_last(tmp_path: Path) -> None:
    log = Log(tmp_path)

    def do(name: str, modalities: Sequence[Modality]) -> str:
        log.add(name)
        if name.startswith("deadly"):
            die()
        return name

    names = ["a", *(f"deadly-{number}" for number in range(5)), "b"]
    clips = isolate(task(*names), working(do, ("audio",))).clips
    told = "reading it killed the worker 2 times (SIGKILL)"
    assert [clip["audio"] for clip in clips] == ["a", *[told] * 5, "b"]
    assert log.count() == {"a": 1, "b": 1, **dict.fromkeys(names[1:-1], 2)}


def test_a_clip_that_dies_only_beside_others_is_not_given_up(tmp_path: Path) -> None:
    def do(name: str, modalities: Sequence[Modality]) -> str:
        mine = tmp_path / f"{os.getpid()}"
        mine.touch()
        time.sleep(0.3 if name == "innocent" else 0.1)
        is_alone = len(list(tmp_path.iterdir())) == 1
        if name == "innocent" and not is_alone:
            mine.unlink()
            die()
        mine.unlink()
        return name

    work = working(do)
    clips = isolate(task("innocent", "a", "b", "c", "d"), work, max_at_once=2).clips
    assert [clip["audio"] for clip in clips] == ["innocent", "a", "b", "c", "d"]
    assert [clip["video"] for clip in clips] == ["innocent", "a", "b", "c", "d"]


def test_a_hanging_clip_is_killed_and_given_up() -> None:
    def do(name: str, modalities: Sequence[Modality]) -> str:
        while name == "hangs" and "audio" in modalities:
            time.sleep(0.01)
        return name

    began = time.monotonic()
    clips = isolate(task("a", "hangs", "b"), working(do, max_seconds=1)).clips
    assert [clip["video"] for clip in clips] == ["a", "hangs", "b"]
    told = "reading its audio killed the worker 2 times (stopped after 1 s)"
    assert [clip["audio"] for clip in clips] == ["a", told, "b"]
    assert time.monotonic() - began < 30  # and not 60, as it would hang


def test_who_computes_on_one_packet_for_ever_is_ended_long_before_who_is_only_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (container, isolating):
        monkeypatch.setattr(module, "CORE_SECONDS_PER_PACKET", 0.2)

    def compute(seconds: float) -> None:
        began = time.process_time()
        while time.process_time() < began + seconds:
            pass

    def do(name: str, modalities: Sequence[Modality]) -> str:
        if name == "many packets":
            for _ in range(5):
                with one_packet():
                    compute(0.1)
            compute(0.3)
        if name == "waits":
            with one_packet():
                time.sleep(0.5)
        if name == "hangs":
            with one_packet():
                compute(600)
        return name

    names = ("many packets", "waits", "hangs")
    clips = isolate(task(*names), working(do, ("audio",), max_seconds=500)).clips
    told = "reading it killed the worker 2 times (stopped after 0.2 s of computing on one packet)"
    assert [clip["audio"] for clip in clips] == ["many packets", "waits", told]


def test_a_process_is_killed_before_it_takes_all_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    most = 64 << 20  # less than this process has, which is not what a clip takes
    assert psutil.Process().memory_info().rss > most
    monkeypatch.setattr(isolating, "_share_memory", lambda *_: (2, most))

    def do(name: str, modalities: Sequence[Modality]) -> str:
        taken = []
        while name == "greedy" and len(taken) < 2000:
            taken.append(b"x" * (1 << 20))
            time.sleep(0.0005)
        return name

    clips = isolate(task("a", "greedy", "b"), working(do, ("audio",))).clips
    assert [clip["audio"] for clip in clips[::2]] == ["a", "b"]
    assert "GiB of memory)" in clips[1]["audio"]


def test_processes_are_fewer_where_memory_is_short() -> None:
    gib = 1 << 30
    assert isolating._share_memory(8, 64 * gib) == (8, 2 * gib)
    assert isolating._share_memory(8, 9 * gib) == (2, 2 * gib)
    assert isolating._share_memory(8, gib) == (1, gib // 2)
    assert isolating._share_memory(8, None) == (8, 2 * gib)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        (lambda: os._exit(3), "exit status 3"),
        (lambda: sys.exit(2), "exit status 1"),
        (lambda: os.kill(os.getpid(), 10), "SIGUSR1"),
    ],
)
def test_how_a_worker_ended_is_reported(end: Callable[[], None], how: str) -> None:
    [clip] = isolate(task("a"), working(lambda name, modalities: end(), ("audio",))).clips
    assert clip == {"audio": f"reading it killed the worker 2 times ({how})"}


def test_an_error_of_ours_and_a_bug_are_raised_as_themselves() -> None:
    def refuse(name: str, modalities: Sequence[Modality]) -> None:
        raise InputError(f"{name}: not to my taste")

    def divide(name: str, modalities: Sequence[Modality]) -> float:
        return 1 / 0

    class OneWay(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(first + second)

    def one_way(name: str, modalities: Sequence[Modality]) -> None:
        raise OneWay("cannot ", "be copied")

    with pytest.raises(InputError, match=r"^a: not to my taste$"):
        isolate(task("a"), working(refuse))
    with pytest.raises(ZeroDivisionError):
        isolate(task("a"), working(divide))
    with pytest.raises(RuntimeError, match="cannot be copied"):
        isolate(task("a"), working(one_way))


def test_a_hundred_killers_among_a_thousand_cost_five_attempts_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The accounting alone: nothing is forked."""
    begun: Counter[int] = Counter()

    class Pretended:
        def __init__(self, clips: Sequence[LocatedClip], *_: object) -> None:
            self._clips = clips

        def run(self, attempts: Sequence[Any]) -> list[tuple[Any, Any]]:
            ends = []
            for attempt in attempts:
                number = self._clips[attempt.position].utterance.key.utterance_id
                begun[number] += 1
                deadly = number % 10 == 7
                end: Any = dict.fromkeys(attempt.modalities, number)
                ends.append((attempt, isolating._Death("SIGKILL") if deadly else end))
            return ends

    monkeypatch.setattr(isolating, "_Processes", Pretended)
    given_up = 0
    for first in range(0, 1000, 16):
        numbers = range(first, min(first + 16, 1000))
        shard = ShardTask(
            split="dev",
            index=first,
            clips=tuple(
                LocatedClip(utterance=Utterance(key=ClipKey("dev", 0, number), text=""))
                for number in numbers
            ),
        )
        clips = isolate(shard, working(lambda name, modalities: name)).clips
        for number, clip in zip(numbers, clips, strict=True):
            is_lost = all("killed the worker 2 times" in str(value) for value in clip.values())
            assert is_lost == (number % 10 == 7)
            given_up += is_lost
    assert given_up == 100
    assert {number: count for number, count in begun.items() if count > 1} == dict.fromkeys(
        range(7, 1000, 10), 5
    )
