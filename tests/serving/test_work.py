"""What a worker leaves of a job for those who follow it, and for the next worker."""

import errno
import io
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from fusion.inference.media import PredictedUtterance
from pipeline.errors import StorageError, WeightsMissing
from serving import work
from serving.jobs import Job, JobFolder, JobWords
from serving.live_turns import Answer
from serving.live_work import LiveWork
from serving.process import WorkerProcess
from serving.work import KeptUtterances, WorkChoice, tell_bugs_without_words, words_of
from tests.failing_disk import files_of_at_most
from tests.fusion.inference.test_timeline import predicted

FIRST, SECOND, THIRD = (
    predicted(number, number * 1000, number * 1000 + 900, "joy", 0.9, text="one\u2028line")
    for number in (1, 2, 3)
)


def ids(folder: JobFolder) -> list[str]:
    return [json.loads(line)["id"] for line in folder.utterances.read_text().split("\n")[:-1]]


def test_each_utterance_is_there_as_soon_as_it_is_ready(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
        assert ids(folder) == ["u0001"]
        kept.add(SECOND)
        assert ids(folder) == ["u0001", "u0002"]


def test_the_next_worker_goes_on_behind_the_last_whole_one(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
    whole = folder.utterances.read_bytes()
    with folder.utterances.open("ab") as file:
        file.write(b'{"id": "u00')  # a kill
    with KeptUtterances(folder, "model") as kept:
        assert folder.utterances.read_bytes() == whole
        for each in (FIRST, SECOND, THIRD):
            kept.add(each)
    assert folder.utterances.read_bytes().startswith(whole)
    assert ids(folder) == ["u0001", "u0002", "u0003"]


def test_a_kill_in_the_first_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model"):
        folder.utterances.write_bytes(b'{"id"')
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
    assert ids(folder) == ["u0001"]


def test_a_full_disk_under_the_utterances_is_told_and_the_next_worker_goes_on(
    tmp_path: Path,
) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
    num_bytes = folder.utterances.stat().st_size
    with (
        files_of_at_most(num_bytes + 50),
        pytest.raises(StorageError, match=r"cannot write .*utterances"),
        KeptUtterances(folder, "model") as kept,
    ):
        kept.add(SECOND)
    with KeptUtterances(folder, "model") as kept:
        kept.add(SECOND)
    assert ids(folder) == ["u0001", "u0002"]


def test_a_full_disk_has_a_code_of_its_own() -> None:
    def code_of(number: int) -> str:
        first = StorageError("cannot write it")
        first.__cause__ = OSError(number, os.strerror(number))
        told = StorageError("told with the client's names")
        told.__cause__ = first
        return work._problem(told)["code"]

    assert [code_of(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EACCES)] == [
        "disk_full",
        "disk_full",
        "storage_error",
    ]
    assert work._problem(StorageError("no disk"))["code"] == "storage_error"


def test_saved_predictions_of_another_model_are_not_used(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
    with KeptUtterances(folder, "another") as kept:
        assert ids(folder) == []
        kept.add(FIRST)
    assert ids(folder) == ["u0001"]


def test_what_a_job_asks_for_is_what_is_looked_for(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    job = Job(
        id="0",
        file="talk.mp4",
        media_type="video/mp4",
        num_bytes=1,
        duration_ms=1000,
        words=JobWords(language="de", start_s=1.0),
        created_s=0.0,
    )
    words = words_of(folder, job)
    assert (words.speech.language, words.start_s) == ("de", 1.0)
    given = words_of(folder, replace(job, words=JobWords(subtitles="a.srt")))
    assert given.subtitles == folder.subtitles


def test_a_recogniser_that_is_not_there_is_reported_when_the_service_starts() -> None:
    pytest.importorskip("faster_whisper", reason="the extra asr is not installed")
    assert WorkChoice().describe_recogniser() in (None, {"name": "tiny.en", "languages": ["en"]})
    with pytest.raises(WeightsMissing, match="--asr no-such-model"):
        WorkChoice(asr="no-such-model").describe_recogniser()


def test_a_bug_is_told_by_its_place_and_kind_without_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (sys, threading):  # which are put back after the test
        monkeypatch.setattr(module, "excepthook", module.excepthook)
    tell_bugs_without_words()

    def find(said: str) -> int:
        try:
            return {"Hello": 1}[said]
        except KeyError as error:
            raise ValueError(f"{said} is no word") from error

    def check() -> None:
        told = capsys.readouterr().err
        assert told.splitlines()[-1] == "KeyError"
        assert "\nValueError\n" in told
        assert "in find" in told
        assert "never told" not in told

    words = "I never told you that"
    thread = threading.Thread(target=find, args=[words])
    thread.start()
    thread.join()
    check()
    try:
        find(words)
    except ValueError:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    check()


def test_what_nobody_waits_for_any_more_is_not_worked_on() -> None:
    """Of live sessions that were closed, before the worker came to them."""
    begun: queue.Queue[int] = queue.Queue()
    may_answer = threading.Event()

    class Slow:
        def answer(self, request: Mapping[str, Any]) -> Answer:
            begun.put(request["number"])
            may_answer.wait(10)
            return Answer(utterances=())

        def rest(self) -> None:
            """Its thread goes on after the test."""

    told: queue.Queue[int] = queue.Queue()
    work = LiveWork(Slow(), lambda kind, number, answer: told.put(number))  # type: ignore[arg-type]
    for number in (1, 2, 3):
        work.take({"number": number})
    assert begun.get(timeout=10) == 1
    work.forget(1)  # too late: it is answered all the same
    work.forget(2)
    may_answer.set()
    assert [told.get(timeout=10) for _ in range(2)] == [1, 3]
    assert begun.get(timeout=10) == 3


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> "Reader":
    made = Reader()
    monkeypatch.setattr(work, "time", made)
    monkeypatch.setattr(work, "predict_words", made.read)
    monkeypatch.setattr(os, "_exit", lambda status: None)  # as when the server has ended
    return made


class Reader:
    """A worker that takes 5 s for a turn, on a clock that stands still otherwise.

    on_turn: called before each with what it says
    """

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.answers = io.BytesIO()
        self.worker = work._Worker(self.answers)
        self.worker._predictor = self.worker._live = mock.Mock()
        self.on_turn: Callable[[str], None] = lambda text: None

    def hears(self, *requests: Mapping[str, Any]) -> None:
        self.worker.listen([json.dumps(each).encode() for each in requests])  # type: ignore[arg-type]

    def is_sent(self, number: int, *texts: str) -> None:
        self.hears({"do": "words", "number": number, "turns": [{"text": each} for each in texts]})

    def read(self, _: object, turns: Sequence[Any]) -> Iterator[PredictedUtterance]:
        for turn in turns:
            self.on_turn(turn.text)
            self.now_s += 5
            yield FIRST

    def monotonic(self) -> float:
        return self.now_s

    @property
    def answered(self) -> list[int]:
        return [json.loads(line)["number"] for line in self.answers.getvalue().splitlines()]


def test_who_sends_words_again_and_again_does_not_hold_up_a_job(
    reader: Reader, tmp_path: Path
) -> None:
    folder = JobFolder(tmp_path)

    def send_next(text: str) -> None:
        if len(reader.answered) < 50:
            reader.is_sent(len(reader.answered) + 2, "another")

    reader.on_turn = send_next
    reader.is_sent(1, "first")
    reader.worker._between(folder)
    assert reader.answered == [1]
    for seconds in (0, 4):  # in which the job did less than that
        reader.now_s += seconds
        reader.worker._between(folder)
        assert reader.answered == [1]
    reader.now_s += 1
    reader.worker._between(folder)
    assert reader.answered == [1, 2]


def test_a_job_is_begun_before_the_words_that_came_after_it(
    reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def begin(path: Path) -> None:
        assert path == tmp_path
        raise Begun

    monkeypatch.setattr(reader.worker, "_work_on", begin)
    reader.is_sent(1, "before")
    reader.hears({"do": "job", "folder": str(tmp_path)})
    reader.is_sent(2, "after")
    with pytest.raises(Begun):
        reader.worker.run()
    assert reader.answered == [1]


def test_words_that_nobody_waits_for_any_more_are_not_read(reader: Reader, tmp_path: Path) -> None:
    read = []

    def note(text: str) -> None:
        read.append(text)
        if text == "second":
            reader.hears({"do": "forget", "number": 1})

    reader.on_turn = note
    reader.is_sent(1, "first", "second", "third")
    reader.is_sent(2, "of another")
    reader.is_sent(3, "last")
    reader.hears({"do": "forget", "number": 2})
    reader.worker._between(JobFolder(tmp_path))
    assert read == ["first", "second", "last"]
    assert reader.answered == [3]


def test_a_worker_is_told_what_nobody_waits_for_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it says of it all the same is nobody's answer, and no mistake."""
    asked = io.BytesIO()
    reading, writing = os.pipe()

    class Process:
        pid, stdin, stdout = 1, asked, os.fdopen(reading, "rb")
        stderr = io.BytesIO()

        def __init__(self, *_: object, **__: object) -> None: ...

        def wait(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    worker = WorkerProcess({}, num_threads=1)
    first, second = worker.ask_live({"what": "warm"}), worker.ask_live({"what": "warm"})
    words = worker.read_words([{"text": "Hi"}])
    assert first.cancel()
    assert words.cancel()
    told = [json.loads(line) for line in asked.getvalue().splitlines()][1:]
    assert [(each["do"], each["number"]) for each in told] == [
        ("live", 1),
        ("live", 2),
        ("words", 3),
        ("forget", 1),
        ("forget", 3),
    ]
    with os.fdopen(writing, "wb") as answers:
        for number in (1, 2):
            line = {"is": "live", "number": number, "answer": {"of": number}}
            answers.write(json.dumps(line).encode() + b"\n")
        answers.flush()
        assert second.result(10) == {"of": 2}
