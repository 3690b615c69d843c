"""The worker's part of what is said live: a thread of its own, beside the one that takes jobs.

Nobody who speaks waits for another's film: both threads compute at the same time and share the
cores, so that a job takes longer while somebody speaks, and an answer somewhat longer while there
is a job. The recogniser is a process of its own, started with the first session and ended when
nobody has spoken for a minute.
"""

import base64
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from fusion.inference.live import HeardStretch, keep_before, predict_glimpse, predict_stretch
from fusion.inference.predictor import Predictor
from fusion.inference.recogniser import BUNDLED_RECOGNISER, WhisperProcess, load_recogniser
from fusion.inference.timeline import describe_utterance
from pipeline.decode.process import DecoderProcess
from pipeline.errors import ClipError, InputError, MeldError
from pipeline.schema import MODALITIES, ClipFeatures, ClipKey, MediaSpan, Utterance
from serving.live_turns import HEARINGS, Answer, Before, Glimpse, Turn
from serving.problems import code_of

_SECONDS_TO_KEEP_THE_RECOGNISER = 60.0
_WARMING_S = 1.0


class LiveWork:
    """Takes requests from any thread, and tells their answers from its own."""

    def __init__(self, answers: "LiveAnswers", tell: Callable[..., None]) -> None:
        """tell: sends an answer to the server: `tell("live", number=..., ...)`"""
        self._answers = answers
        self._tell = tell
        self._requests: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._wanted: set[int] = set()  # numbers of those that wait
        threading.Thread(target=self._run, daemon=True).start()

    def take(self, request: Mapping[str, Any]) -> None:
        """request: as in `LiveAnswers.answer`, with its number"""
        self._wanted.add(request["number"])
        self._requests.put(request)

    def forget(self, number: int) -> None:
        """Nobody waits for its answer any more: it gets none, if it was not begun."""
        self._wanted.discard(number)

    def _run(self) -> None:
        while True:
            try:
                request = self._requests.get(timeout=_SECONDS_TO_KEEP_THE_RECOGNISER)
            except queue.Empty:
                self._answers.rest()
                continue
            number = request["number"]
            if number not in self._wanted:
                continue
            self._wanted.discard(number)
            try:
                answer = self._answers.answer(request)
            except MeldError as error:
                problem = {"code": code_of(type(error)), "detail": str(error)}
                self._tell("live", number=number, problem=problem)
            except ClipError as error:
                problem = {"code": code_of(InputError), "detail": error.message}
                self._tell("live", number=number, problem=problem)
            else:
                self._tell("live", number=number, answer=answer.to_json())


class LiveAnswers:
    """What a model says of turns and glimpses; it keeps nothing of them."""

    def __init__(self, predictor: Predictor, *, recogniser: str = BUNDLED_RECOGNISER) -> None:
        """recogniser: as in `find_recogniser`"""
        self._predictor = predictor
        self._name = recogniser
        self._decoder: DecoderProcess | None = None
        self._recogniser: WhisperProcess | None = None

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """
        request: a `Turn`, a `Glimpse` or a `Warm` as JSON

        Raises MeldError, ClipError.
        """
        match request["what"]:
            case "turn":
                return self._hear(Turn.from_json(request))
            case "glimpse":
                return self._glimpse(Glimpse.from_json(request))
            case _:
                self._warm(with_words=request["with_words"])
                return Answer(utterances=())

    def rest(self) -> None:
        """Gives back what is needed only while somebody speaks."""
        if self._recogniser is not None:
            self._recogniser.close()
            self._recogniser = None

    def close(self) -> None:
        self.rest()
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def _hear(self, turn: Turn) -> Answer:
        before = [_unpack(each, number) for number, each in enumerate(turn.before)]
        try:
            found = predict_stretch(
                self._predictor,
                self._decoder_here(),
                self._recogniser_here() if turn.with_words else None,
                HeardStretch(regions=turn.regions, pieces=turn.pieces, end_ms=turn.end_ms),
                replace(HEARINGS[turn.hearing], language=turn.language),
                before,
                first_number=turn.first_number,
            )
        except MeldError:
            self.rest()  # it may have ended: the next turn gets a new one
            raise
        kept = keep_before(self._predictor, [*before, *(features for _, features in found)])
        return Answer(
            utterances=tuple(describe_utterance(each) for each, _ in found),
            before=tuple(map(_pack, kept)),
        )

    def _glimpse(self, glimpse: Glimpse) -> Answer:
        span = MediaSpan(start_ms=glimpse.start_ms, end_ms=glimpse.end_ms)
        seen = predict_glimpse(self._predictor, self._decoder_here(), span, glimpse.pieces)
        return Answer(utterances=(describe_utterance(seen),))

    def _warm(self, *, with_words: bool) -> None:
        self._decoder_here()
        if with_words and self._recogniser is None:  # one that is there has been used
            second = np.zeros(round(_WARMING_S * 16_000), np.float32)
            self._recogniser_here().recognise(second, None)

    def _decoder_here(self) -> DecoderProcess:
        if self._decoder is None:
            self._decoder = DecoderProcess()
        return self._decoder

    def _recogniser_here(self) -> WhisperProcess:
        """Raises WeightsMissing, MismatchError."""
        if self._recogniser is None:
            self._recogniser = load_recogniser(self._name)
        return self._recogniser


def _pack(features: ClipFeatures) -> Before:
    tensors: dict[str, NDArray[np.float32]] = {
        name: np.ascontiguousarray(values) for name, values in features.raw.items()
    }
    packed = base64.b64encode(save(tensors)).decode() if tensors else ""
    return Before(text=features.utterance.text, features=packed)


def _unpack(before: Before, number: int) -> ClipFeatures:
    tensors = load(base64.b64decode(before.features)) if before.features else {}
    raw = {name: tensors[name] for name in MODALITIES if name in tensors}
    key = ClipKey("test", 0, number)
    return ClipFeatures(utterance=Utterance(key=key, text=before.text), raw=raw)
