"""What a worker leaves of a job for those who follow it, and for the next worker."""

import io
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import WeightsMissing
from serving.jobs import Job, JobFolder, JobWords
from serving.live_turns import Answer
from serving.live_work import LiveWork
from serving.process import WorkerProcess
from serving.work import KeptUtterances, WorkChoice, tell_bugs_without_words, words_of
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
    assert first.cancel()
    told = [json.loads(line) for line in asked.getvalue().splitlines()][1:]
    assert [(each["do"], each["number"]) for each in told] == [
        ("live", 1),
        ("live", 2),
        ("forget", 1),
    ]
    with os.fdopen(writing, "wb") as answers:
        for number in (1, 2):
            line = {"is": "live", "number": number, "answer": {"of": number}}
            answers.write(json.dumps(line).encode() + b"\n")
        answers.flush()
        assert second.result(10) == {"of": 2}
