"""The worker process: it loads the model once and predicts one job after another.

    python -m serving.work < requests > answers

Requests and answers are JSON lines. The first request says what predicts; then come jobs, words
alone, and the wish to stop the running job. Words are answered between the utterances of a job, so
nobody who sends a sentence waits for another's film. The process ends when nobody asks any more,
also in the middle of a job, whose next worker goes on where this one stopped.
"""

import fcntl
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from fusion.inference.bundled import bundled_run
from fusion.inference.load import ModelChoice
from fusion.inference.media import PredictedUtterance
from fusion.inference.predict_media import WordsConfig, describe_model
from fusion.inference.recogniser import BUNDLED_RECOGNISER, find_recogniser, load_recogniser
from fusion.inference.timeline import NOTICE, Timeline, describe_utterance
from fusion.inference.words import Turn, predict_words
from fusion.prediction.formats import FORMATS, write_as
from fusion.prediction.one_file import FileResult, predict_file
from pipeline.decode.process import DecoderProcess
from pipeline.errors import InputError, MeldError, StorageError, WeightsMissing
from pipeline.settings import build_config
from pipeline.system.files import write_whole
from serving.jobs import Job, JobFolder
from serving.live_turns import HEARINGS
from serving.live_work import LiveAnswers, LiveWork
from serving.problems import DiskFull, code_of, in_service, is_of_full_disk
from serving.stopwatch import Stopwatch, TimedDecoder

# Relative to the page, which stands beside it.
_MEDIA_URL = "media"
# What the text endpoint leaves out of an utterance: it is on no clock.
_OF_MEDIA = ("start_ms", "end_ms")


@dataclass(frozen=True, kw_only=True)
class WorkChoice:
    """asr: who hears what comes without words, as in `find_recogniser`; None takes the small
    English one, if it is there"""

    model: ModelChoice = field(default_factory=ModelChoice)
    asr: str | None = None

    @property
    def recogniser(self) -> str:
        return self.asr or BUNDLED_RECOGNISER

    def describe_recogniser(self) -> dict[str, Any] | None:
        """Its name, and the languages that it knows; None where there is none, and none was asked
        for. Raises WeightsMissing, MismatchError."""
        if self.asr is None:
            try:
                find_recogniser(BUNDLED_RECOGNISER)
            except WeightsMissing:
                return None
            return {"name": BUNDLED_RECOGNISER, "languages": ["en"]}
        with load_recogniser(self.asr) as recogniser:
            return {"name": recogniser.name, "languages": list(recogniser.languages)}


class _Cancelled(Exception):
    """The running job was cancelled."""


def main() -> None:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the server decides when it is over
    tell_bugs_without_words()
    choice = build_config(WorkChoice, json.loads(requests.readline()))
    worker = _Worker(answers)
    threading.Thread(target=worker.listen, args=(requests,), daemon=True).start()
    try:
        worker.load(choice)
    except MeldError as error:
        worker.tell("refused", **_problem(error))
        return
    worker.run()


class _Worker:
    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers
        self._writing = threading.Lock()
        self._jobs: queue.Queue[Path | None] = queue.Queue()  # None: there are words to be read
        self._words: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._wanted: set[int] = set()  # numbers of the words that somebody waits for
        self._words_ended_s = self._words_took_s = 0.0
        self._unwanted: str | None = None
        self._watch = Stopwatch()

    def tell(self, kind: str, **values: Any) -> None:
        with self._writing:
            self._answers.write(json.dumps({"is": kind, **values}).encode() + b"\n")
            self._answers.flush()

    def listen(self, requests: IO[bytes]) -> None:
        for line in requests:
            request = json.loads(line)
            match request["do"]:
                case "job":
                    self._jobs.put(Path(request["folder"]))
                case "words":
                    self._wanted.add(request["number"])
                    self._words.put(request)
                    self._jobs.put(None)
                case "live":
                    self._live.take(request)
                case "forget":
                    self._wanted.discard(request["number"])
                    self._live.forget(request["number"])
                case "cancel":
                    self._unwanted = request["folder"]
        os._exit(0)  # the server has ended, and whoever comes next takes the job

    def load(self, choice: WorkChoice) -> None:
        """Raises what `ModelChoice.load` and `load_recogniser` raise."""
        self._decoder = DecoderProcess()  # it starts while the model is loaded
        self._recogniser = choice.recogniser
        recogniser = choice.describe_recogniser()
        self._predictor = predictor = choice.model.load()
        live = LiveAnswers(predictor, recogniser=self._recogniser)
        self._live = LiveWork(live, self.tell)
        run = choice.model.run if choice.model.run is not None else bundled_run()
        model = describe_model(self._predictor).to_dict()
        self.tell(
            "ready",
            model={**model, "recogniser": recogniser, "card": _read_card(run)},
            notice=NOTICE,
            reads_words=bool(predictor.word_modalities),
            needs_words=predictor.modalities == predictor.word_modalities,
        )

    def run(self) -> None:
        while True:
            folder = self._jobs.get()
            if folder is None:
                self._answer_words(most=1)  # jobs stand in the same queue
            else:
                self._work_on(folder)

    def _work_on(self, path: Path) -> None:
        folder = JobFolder(path)
        try:
            self._watch.take()  # what a failed job left
            with _alone(folder):
                lost = self._predict(folder, folder.read())
        except _Cancelled:
            self.tell("cancelled")
        except MeldError as error:
            self.tell("failed", **_problem(error))
        else:
            self.tell(
                "done",
                lost=[[*which, number] for which, number in lost.items()],
                seconds=self._watch.take(),
            )

    def _predict(self, folder: JobFolder, job: Job) -> Counter[tuple[str, str]]:
        """How many utterances lack which modality, and the code of why.

        Raises MeldError, _Cancelled.
        """
        lost: Counter[tuple[str, str]] = Counter()
        if folder.timeline("json").exists():  # the server ended before it was told
            return lost
        kept = KeptUtterances(folder, f"{self._predictor.identity} {self._recogniser}")

        def on_utterance(each: PredictedUtterance) -> None:
            self._between(folder)
            kept.add(each)
            lost.update(each.codes.items())

        def on_stage(name: str, done_ms: int, total_ms: int) -> None:
            self._between(folder)
            self.tell("progress", stage=name, done_ms=done_ms, total_ms=total_ms)

        with kept:
            result = predict_file(
                folder.media,
                words_of(folder, job),
                self._watch.timed(self._predictor),
                TimedDecoder(self._decoder, self._watch),
                saved_in=folder.path,
                on_utterance=on_utterance,
                on_progress=lambda done_ms, total_ms: on_stage("predicting", done_ms, total_ms),
                on_heard=lambda done_ms, total_ms: on_stage("hearing", done_ms, total_ms),
                recogniser=self._recogniser,
            )
        formats = ("json",) if job.is_awaited else tuple(FORMATS)
        _write(folder, _named(result, folder, job), formats)
        for saved in result.unfinished:
            saved.remove()
        return lost

    def _between(self, folder: JobFolder) -> None:
        if self._unwanted == str(folder.path):
            raise _Cancelled
        # Of those who send words one after another, the job gets its half of the time.
        if time.monotonic() - self._words_ended_s >= self._words_took_s:
            self._answer_words(most=self._words.qsize())

    def _answer_words(self, *, most: int) -> None:
        began_s, num_answered = time.monotonic(), 0
        while num_answered < most and not self._words.empty():
            request = self._words.get()
            if request["number"] in self._wanted:
                self._answer_one(request)
                num_answered += 1
        if num_answered:
            self._words_ended_s = time.monotonic()
            self._words_took_s = self._words_ended_s - began_s

    def _answer_one(self, request: Mapping[str, Any]) -> None:
        """No longer than somebody waits for it."""
        number = request["number"]
        read = []
        try:
            turns = [build_config(Turn, each) for each in request["turns"]]
            for each in predict_words(self._predictor, turns):
                if number not in self._wanted:
                    return
                told = describe_utterance(each)
                read.append({name: told[name] for name in told if name not in _OF_MEDIA})
        except MeldError as error:
            self.tell("words", number=number, problem=_problem(error))
        else:
            self.tell("words", number=number, utterances=read)
        self._wanted.discard(number)


class KeptUtterances:
    """The file of a job's utterances, each written as soon as it is ready and once, however often
    the job is begun: later workers come to the same ones."""

    def __init__(self, folder: JobFolder, identity: str) -> None:
        """
        identity: stands for all that decides the numbers; what another left is made anew

        Raises StorageError.
        """
        self._path = folder.utterances
        by = folder.path / "by"
        try:
            if not by.exists() or by.read_text() != identity:
                self._path.unlink(missing_ok=True)
                write_whole(by, identity.encode())
            self._file = self._path.open("a+b")
            self._file.seek(0)
            whole = self._file.read().rpartition(b"\n")[0]
            self._num_written = whole.count(b"\n") + 1 if whole else 0
            self._file.truncate(len(whole) + 1 if whole else 0)  # a kill may have cut the last
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error}") from error

    def add(self, each: PredictedUtterance) -> None:
        """Raises StorageError."""
        if each.number <= self._num_written:
            return
        line = json.dumps(describe_utterance(each), ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write {self._path}: {error}") from error
        self._num_written = each.number

    def __enter__(self) -> "KeptUtterances":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # of a line that the disk refused, which `add` told
            self._file.close()


@contextmanager
def _alone(folder: JobFolder) -> Iterator[None]:
    """Waits until a worker of a server that was killed has ended too. Raises StorageError."""
    try:
        descriptor = os.open(folder.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"cannot use {folder.path}: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def words_of(folder: JobFolder, job: Job) -> WordsConfig:
    words = job.words
    return WordsConfig(
        subtitles=None if words.subtitles is None else folder.subtitles,
        text=words.text,
        no_text=words.no_text,
        speech=replace(HEARINGS[words.hearing], language=words.language),
        start_s=words.start_s,
        end_s=words.end_s,
    )


def _named(result: FileResult, folder: JobFolder, job: Job) -> Timeline:
    """With the client's names in the place of ours. Raises InputError where the file is bad."""
    if result.error is not None:
        told = in_service(str(result.error)).replace(str(folder.media), job.file)
        told = told.replace(str(folder.subtitles), job.words.subtitles or "")
        raise type(result.error)(told) from result.error
    timeline = result.timeline
    assert timeline is not None
    words = timeline.segmentation
    if job.words.subtitles is not None:
        words = replace(words, file=job.words.subtitles)
    return replace(timeline, media=replace(timeline.media, file=job.file), segmentation=words)


def _write(folder: JobFolder, timeline: Timeline, formats: Sequence[str]) -> None:
    for name in sorted(formats, key="json".__eq__):  # the JSON last
        content = write_as(name, timeline, media_url=_MEDIA_URL)
        write_whole(folder.timeline(name), content.encode("utf-8", "replace"))


def _read_card(run: Path) -> str | None:
    card = run / "README.md"
    return card.read_text(encoding="utf-8") if card.is_file() else None


def tell_bugs_without_words() -> None:
    """What ends this process is told on stderr by its place and kind. The server logs that, so the
    message is left out: in it may be what was said."""
    sys.excepthook = lambda _, error, __: _tell_bug(error)
    threading.excepthook = lambda ended: _tell_bug(ended.exc_value)


def _tell_bug(error: BaseException | None) -> None:
    while error is not None:
        where = "".join(traceback.format_tb(error.__traceback__))
        sys.stderr.write(f"{where}{type(error).__name__}\n")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _problem(error: MeldError) -> dict[str, str]:
    kind = DiskFull if isinstance(error, StorageError) and is_of_full_disk(error) else type(error)
    # What is bad in a file has the client's name of it, which is left as it is (`_named`).
    detail = str(error) if isinstance(error, InputError) else in_service(str(error))
    return {"code": code_of(kind), "detail": detail}


if __name__ == "__main__":
    main()
