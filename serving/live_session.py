"""One who speaks, without the network: what comes in, what is to be predicted, what is told.

    sound, pictures -> StretchFinder -> turns -> requests to the worker -> answers -> events

All times are milliseconds of the sound that has come: that is the session's clock. The caller hands
over what arrives, takes one request at a time to the worker, and hands back its answer; nothing in
here waits. What is behind is told by `lag_ms`, and when it grows pictures go first, then the
provisional answers; the caller ends the session when it is too much.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusion.inference.speech import StretchFinder
from fusion.inference.voice import RATE_HZ, SpeechRegion, as_samples, as_waveform
from pipeline.decode.pieces import MediaPieces, picture_size
from pipeline.errors import ClipError, UsageError
from pipeline.system.one_line import one_line
from serving.live_turns import HEARINGS, Answer, Before, Glimpse, Hearing, Turn

SessionEvent = dict[str, Any]
Request = Turn | Glimpse

BYTES_PER_MS = 2 * RATE_HZ // 1000
# A message may hold so much sound.
MOST_SOUND_MS = 10_000
MOST_PICTURE_BYTES = 256 * 2**10
# More side of a picture than any encoder looks at, and little to decode.
_MOST_SIDE = 2_048
_LEAST_BETWEEN_PICTURES_MS = 180  # of 5 a second, with the jitter of a browser's clock
# Of all that may be held at one time: 40 s of 4 pictures a second of 50 kB.
_MOST_HELD_BYTES = 8 * 2**20
# What an utterance may reach before its turn, and what a decoder wants to have before that.
_LEAD_MS = 1_000
PROVISIONAL_EVERY_MS = 3_000
# What a provisional answer looks at: as much as the longest utterance.
_GLIMPSE_MS = 12_000
# Shares of the lag at which a session is ended.
_NO_PICTURES, _NO_PROVISIONAL, _TELL, _TOLD_AGAIN_BELOW = 0.3, 0.5, 0.7, 0.5


@dataclass(frozen=True, kw_only=True)
class SessionChoice:
    """What a client asks for with `session.update`.

    hearing: "prompt" cuts utterances so that their answers come soon, "thorough" as `meld predict`
             does it by itself: they are heard together with what is said within 2 s after them
    words:   whether words are recognised
    language: code of the one that is spoken; None: it is detected, by a recogniser that knows
             several
    """

    hearing: Hearing = "prompt"
    words: bool = True
    language: str | None = None

    def __post_init__(self) -> None:
        if self.hearing not in HEARINGS:
            raise UsageError(f"hearing is one of {', '.join(HEARINGS)}")
        if not isinstance(self.words, bool):
            raise UsageError("words is true or false")


@dataclass(eq=False)
class _Turn:
    """A stretch of speech, from its first word on. regions: once it has ended"""

    number: int
    start_ms: int
    num_provisional: int = 0
    regions: tuple[SpeechRegion, ...] = ()
    is_last: bool = False

    @property
    def end_ms(self) -> int:
        return self.regions[-1].end_ms


@dataclass(kw_only=True)
class Counts:
    """Milliseconds of sound, pictures, and answers. The pictures that were left out, because they
    came too fast or the answers were behind, are in `pictures_dropped` alone."""

    audio_ms: int = 0
    pictures: int = 0
    pictures_dropped: int = 0
    utterances: int = 0
    provisional: int = 0


@dataclass(kw_only=True)
class LiveSession:
    """
    most_lag_ms:      the lag at which the caller ends the session
    gives_provisional: whether the model says anything without words
    takes_pictures:   whether it looks at any
    """

    most_lag_ms: int
    gives_provisional: bool
    takes_pictures: bool
    choice: SessionChoice = field(default_factory=SessionChoice)
    counts: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        """Raises WeightsMissing: the voice detector is not installed."""
        self._finder = StretchFinder(HEARINGS[self.choice.hearing])
        self._open: _Turn | None = None
        self._ended: deque[_Turn] = deque()  # those that are not answered, the oldest first
        self._asked: Request | None = None
        self._asked_of: _Turn | None = None
        self._pictures: deque[tuple[int, bytes]] = deque()
        self._num_turns = 0
        self._next_number = 1
        self._before: tuple[Before, ...] = ()
        self._is_finished = False
        self._is_told_of_lag = False

    # ------------------------------------------------------------------------- what comes in

    def take_sound(self, content: bytes) -> list[SessionEvent]:
        """content: signed 16 bits, little-endian, mono, 16 kHz.

        Raises UsageError for what is none.
        """
        if len(content) % 2 or not 0 < len(content) <= MOST_SOUND_MS * BYTES_PER_MS:
            raise UsageError(
                f"{len(content)} bytes of sound: whole samples of two bytes, and at most "
                f"{MOST_SOUND_MS // 1000} s of them"
            )
        waveform = as_waveform(np.frombuffer(content, "<i2").astype(np.int16))
        events: list[SessionEvent] = []
        for regions in self._finder.take(waveform):
            events += self._end_turn(regions, is_last=False)
        self.counts.audio_ms = self._finder.heard_ms
        events += self._begin_turn()
        self._forget()
        return [*events, *self._tell_lag()]

    def take_picture(self, at_ms: int, jpeg: bytes) -> None:
        """at_ms: on the session's clock.

        Raises UsageError for what is no JPEG, or one that is too large.
        """
        if len(jpeg) > MOST_PICTURE_BYTES:
            raise UsageError(f"a picture of {len(jpeg)} bytes; {MOST_PICTURE_BYTES} are the most")
        try:
            width, height = picture_size(jpeg)
        except ClipError as error:
            raise UsageError(f"a picture: {error.message}") from error
        if max(width, height) > _MOST_SIDE:
            raise UsageError(f"a picture of {width} x {height}; {_MOST_SIDE} are the most")
        last_ms = self._pictures[-1][0] if self._pictures else None
        num_bytes = sum(len(each) for _, each in self._pictures)
        if (
            (last_ms is not None and at_ms < last_ms + _LEAST_BETWEEN_PICTURES_MS)
            or abs(at_ms - self._finder.heard_ms) > MOST_SOUND_MS
            or self.lag_ms > _NO_PICTURES * self.most_lag_ms
            or num_bytes + len(jpeg) > _MOST_HELD_BYTES
        ):
            self.counts.pictures_dropped += 1
            return
        self.counts.pictures += 1
        if self.takes_pictures:
            self._pictures.append((at_ms, jpeg))

    def finish(self) -> list[SessionEvent]:
        """No sound comes any more: who is speaking has spoken."""
        events: list[SessionEvent] = []
        if not self._is_finished:
            self._is_finished = True
            groups = list(self._finder.finish())
            for regions in groups:
                events += self._end_turn(regions, is_last=regions is groups[-1])
        return events

    # --------------------------------------------------------------------- what is predicted

    @property
    def is_answered(self) -> bool:
        """Whether nobody who has spoken waits for an answer."""
        return not self._ended and self._asked is None

    @property
    def lag_ms(self) -> int:
        """How long ago the oldest utterance ended that is not answered."""
        return self._finder.heard_ms - self._ended[0].end_ms if self._ended else 0

    def next_request(self) -> Request | None:
        """What the worker is to be asked; None where there is nothing, or it is asked already."""
        if self._asked is not None:
            return None
        if self._ended:
            self._asked_of = self._ended[0]
            self._asked = self._turn_request(self._ended[0])
        elif self._is_provisional_due():
            assert self._open is not None
            self._asked_of = self._open
            self._asked = self._glimpse_request(self._open)
        return self._asked

    def take_answer(self, answer: Answer) -> list[SessionEvent]:
        """To the request that was the last."""
        asked, turn = self._asked, self._asked_of
        self._asked = self._asked_of = None
        assert turn is not None
        if isinstance(asked, Glimpse):
            if turn is not self._open:  # it has ended meanwhile: the final answer is on its way
                return []
            self.counts.provisional += 1
            [seen] = answer.utterances
            return [_result(turn, {**seen, "id": None}, is_final=False)]
        lag_ms = self.lag_ms
        self._ended.popleft()
        self._before = answer.before
        self._next_number += len(answer.utterances)
        self.counts.utterances += len(answer.utterances)
        ids = [each["id"] for each in answer.utterances]
        self._forget()
        return [
            *(_result(turn, each, is_final=True) for each in answer.utterances),
            _end(turn, ids, lag_ms),
        ]

    def take_failure(self, code: str, detail: str) -> list[SessionEvent]:
        """The worker cannot answer the request that was the last; what is said later it may."""
        asked, turn = self._asked, self._asked_of
        self._asked = self._asked_of = None
        assert turn is not None
        error = describe_error(code, detail, retryable=False)
        if isinstance(asked, Glimpse):
            return [error]
        lag_ms = self.lag_ms
        self._ended.popleft()
        return [error, _end(turn, [], lag_ms)]

    # --------------------------------------------------------------------------- the turns

    def _begin_turn(self) -> list[SessionEvent]:
        start_ms = self._finder.open_ms
        if self._open is not None or start_ms is None:
            return []
        self._num_turns += 1
        self._open = _Turn(number=self._num_turns, start_ms=start_ms)
        return [{"type": "utterance.start", "turn": self._num_turns, "start_ms": start_ms}]

    def _end_turn(self, regions: list[SpeechRegion], *, is_last: bool) -> list[SessionEvent]:
        events: list[SessionEvent] = []
        turn = self._open
        if turn is None:  # it began and ended in one piece of sound
            self._num_turns += 1
            turn = _Turn(number=self._num_turns, start_ms=regions[0].start_ms)
            events = [{"type": "utterance.start", "turn": turn.number, "start_ms": turn.start_ms}]
        self._open = None
        turn.regions, turn.is_last = tuple(regions), is_last
        self._ended.append(turn)
        return events

    def _is_provisional_due(self) -> bool:
        turn = self._open
        if turn is None or not self.gives_provisional:
            return False
        if self.lag_ms > _NO_PROVISIONAL * self.most_lag_ms:
            return False
        spoken_ms = self._finder.heard_ms - turn.start_ms
        return spoken_ms >= (turn.num_provisional + 1) * PROVISIONAL_EVERY_MS

    def _turn_request(self, turn: _Turn) -> Turn:
        end_ms = self._finder.heard_ms if turn.is_last else None
        return Turn(
            pieces=self._pieces(turn.start_ms, turn.end_ms + _LEAD_MS, is_last=turn.is_last),
            regions=turn.regions,
            end_ms=end_ms,
            hearing=self.choice.hearing,
            with_words=self.choice.words,
            language=self.choice.language,
            first_number=self._next_number,
            before=self._before,
        )

    def _glimpse_request(self, turn: _Turn) -> Glimpse:
        end_ms = self._finder.heard_ms
        # Those that were due while another was made are left out.
        turn.num_provisional = (end_ms - turn.start_ms) // PROVISIONAL_EVERY_MS
        start_ms = max(turn.start_ms, end_ms - _GLIMPSE_MS)
        pieces = self._pieces(start_ms, end_ms, is_last=False)
        return Glimpse(pieces=pieces, start_ms=start_ms, end_ms=end_ms)

    def _pieces(self, start_ms: int, end_ms: int, *, is_last: bool) -> MediaPieces:
        """From a whole second before the start on, so that what is made of it does not depend on
        where it begins."""
        first_ms = max(start_ms - _LEAD_MS, 0) // 1000 * 1000
        waveform = self._finder.sound(first_ms, end_ms)
        past_ms = first_ms + len(waveform) * 1000 // RATE_HZ
        pictures = [each for each in self._pictures if each[0] <= end_ms]
        if pictures and pictures[-1][0] < past_ms and not is_last:
            # The last one is still on the screen when the sound ends.
            pictures.append((past_ms, pictures[-1][1]))
        return MediaPieces(
            start_ms=first_ms,
            samples=as_samples(waveform),
            rate_hz=RATE_HZ,
            pictures=tuple(pictures),
        )

    def _forget(self) -> None:
        """What no turn needs any more, that is unanswered or still to come."""
        needed_ms = self._ended[0].start_ms if self._ended else self._finder.finished_ms
        kept_ms = max(needed_ms - _LEAD_MS, 0) // 1000 * 1000
        self._finder.forget_before(kept_ms)
        # Of those before, the last may be on the screen at that moment.
        while len(self._pictures) > 1 and self._pictures[1][0] <= kept_ms:
            self._pictures.popleft()

    def _tell_lag(self) -> list[SessionEvent]:
        lag_ms = self.lag_ms
        if lag_ms < _TOLD_AGAIN_BELOW * self.most_lag_ms:
            self._is_told_of_lag = False
        elif lag_ms > _TELL * self.most_lag_ms and not self._is_told_of_lag:
            self._is_told_of_lag = True
            detail = (
                f"the answers are {lag_ms / 1000:.1f} s behind, and the session is ended at "
                f"{self.most_lag_ms / 1000:.0f} s: pictures and provisional answers are left out"
            )
            return [{**describe_error("lagging", detail, retryable=True), "lag_ms": lag_ms}]
        return []


def describe_error(code: str, detail: str, *, retryable: bool) -> SessionEvent:
    return {"type": "error", "code": code, "detail": one_line(detail), "retryable": retryable}


def _result(turn: _Turn, utterance: Mapping[str, Any], *, is_final: bool) -> SessionEvent:
    return {
        "type": "measurement.result",
        "turn": turn.number,
        "final": is_final,
        "utterance": dict(utterance),
    }


def _end(turn: _Turn, ids: list[str], lag_ms: int) -> SessionEvent:
    return {
        "type": "utterance.end",
        "turn": turn.number,
        "start_ms": turn.start_ms,
        "end_ms": turn.end_ms,
        "utterances": ids,
        "lag_ms": lag_ms,
    }
