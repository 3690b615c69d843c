"""A live session without a network: planted speech comes in, and a stand-in answers."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.fusion.inference.planted import plant_speech
from tests.media import jpegs

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from pipeline.errors import UsageError
from serving.live_session import (
    PROVISIONAL_EVERY_MS,
    LiveSession,
    SessionChoice,
    SessionEvent,
)
from serving.live_turns import Answer, Before, Glimpse, Turn

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("faster_whisper") is None,
    reason="the voice detector (extra asr) is not installed",
)
PIECE_MS = 100
LONG = (
    "This is a very long sentence that goes on and on and on without any pause that is worth "
    "speaking of because whoever says it has a great deal of breath and nothing at all to say"
)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two short utterances, and from 5 s on one of ten seconds; 16-bit sound."""
    parts = (600, "Good morning.", 1_500, "Where is the dog?", 1_500, LONG, 50, LONG, 1_500)
    planted = plant_speech(tmp_path_factory.mktemp("talk") / "talk.wav", parts)
    return planted.samples().astype("<i2").tobytes()


def pieces(sound: bytes) -> Sequence[bytes]:
    size = 32 * PIECE_MS
    return [sound[at : at + size] for at in range(0, len(sound), size)]


def start(**options: Any) -> LiveSession:
    given = {"most_lag_ms": 10_000, "gives_provisional": True, "takes_pictures": True}
    return LiveSession(**{**given, **options})


def answer(request: Turn | Glimpse) -> Answer:
    """One utterance a turn, and one that is remembered."""
    if isinstance(request, Glimpse):
        seen = {"id": "u0001", "start_ms": request.start_ms, "end_ms": request.end_ms}
        return Answer(utterances=(seen,))
    said = {
        "id": f"u{request.first_number:04d}",
        "start_ms": request.regions[0].start_ms,
        "end_ms": request.regions[-1].end_ms,
    }
    return Answer(utterances=(said,), before=(*request.before, Before(text=said["id"])))


def play(session: LiveSession, sound: bytes) -> list[SessionEvent]:
    """The sound piece by piece, where the worker answers at once; all that is told."""
    events: list[SessionEvent] = []
    for piece in pieces(sound):
        events += session.take_sound(piece)
        events += answered(session)
    events += session.finish()
    return events + answered(session)


def answered(session: LiveSession) -> list[SessionEvent]:
    events: list[SessionEvent] = []
    while (request := session.next_request()) is not None:
        events += session.take_answer(answer(request))
    return events


def of_type(events: Sequence[SessionEvent], kind: str) -> list[SessionEvent]:
    return [event for event in events if event["type"] == kind]


def finals(events: Sequence[SessionEvent]) -> list[SessionEvent]:
    return [event for event in of_type(events, "measurement.result") if event["final"]]


def test_each_utterance_is_begun_answered_and_ended_in_this_order(talk: bytes) -> None:
    events = play(start(gives_provisional=False), talk)
    kinds = ["utterance.start", "measurement.result", "utterance.end"]
    num = len(events) // 3
    assert num >= 3
    assert [event["type"] for event in events] == kinds * num
    assert [event["turn"] for event in events] == [n for n in range(1, num + 1) for _ in kinds]
    ids = [event["utterance"]["id"] for event in finals(events)]
    assert ids == [f"u{number:04d}" for number in range(1, num + 1)]
    assert [event["utterances"] for event in of_type(events, "utterance.end")] == [
        [each] for each in ids
    ]


def test_the_end_of_a_voice_is_noticed_half_a_second_after_it(talk: bytes) -> None:
    events = play(start(), talk)
    for event in of_type(events, "utterance.end")[:2]:
        assert event["lag_ms"] <= 480 + PIECE_MS


def test_while_somebody_speaks_there_is_a_provisional_answer_every_three_seconds(
    talk: bytes,
) -> None:
    events = play(start(), talk)
    given = [event for event in of_type(events, "measurement.result") if not event["final"]]
    long_turn = given[0]["turn"]
    assert {event["turn"] for event in given} == {long_turn}
    begun = next(event for event in events if event.get("turn") == long_turn)
    moments = [event["utterance"]["end_ms"] - begun["start_ms"] for event in given]
    assert len(moments) >= 2
    for number, moment in enumerate(moments, start=1):
        assert number * PROVISIONAL_EVERY_MS <= moment < number * PROVISIONAL_EVERY_MS + 200
    assert {event["utterance"]["id"] for event in given} == {None}
    assert all(event["utterance"]["start_ms"] == begun["start_ms"] for event in given)


def test_a_model_of_words_alone_gives_none(talk: bytes) -> None:
    events = play(start(gives_provisional=False), talk)
    assert finals(events) == of_type(events, "measurement.result")


def test_the_sizes_of_messages_change_nothing_of_the_final_answers(talk: bytes) -> None:
    session, events = start(), []
    for at in range(0, len(talk), 2 * 7_777):
        events += session.take_sound(talk[at : at + 2 * 7_777])
        events += answered(session)
    events += session.finish() + answered(session)
    assert finals(events) == finals(play(start(), talk))


def test_what_was_said_before_goes_with_the_next_turn(talk: bytes) -> None:
    session, asked = start(gives_provisional=False), []
    for piece in pieces(talk):
        session.take_sound(piece)
        while (request := session.next_request()) is not None:
            asked.append(request)
            session.take_answer(answer(request))
    assert asked[0].before == ()
    assert asked[1].before == (Before(text="u0001"),)
    assert [each.first_number for each in asked] == list(range(1, len(asked) + 1))


def test_a_request_comes_out_of_json_as_it_went_in(talk: bytes) -> None:
    session = start()
    [jpeg] = jpegs(1)
    asked: list[Turn | Glimpse] = []
    for number, piece in enumerate(pieces(talk)):
        session.take_sound(piece)
        if number == 1:
            session.take_picture(200, jpeg)
        while (request := session.next_request()) is not None:
            asked.append(request)
            session.take_answer(answer(request))
    assert {type(each) for each in asked} == {Turn, Glimpse}
    for each in asked:
        again = type(each).from_json(each.to_json())
        np.testing.assert_array_equal(again.pieces.samples, each.pieces.samples)
        assert again.pieces.pictures == each.pieces.pictures
        assert again.to_json() == each.to_json()


def test_a_turn_brings_the_picture_that_was_on_the_screen_and_those_after_it(talk: bytes) -> None:
    session, pictures = start(gives_provisional=False), iter(jpegs(200))
    asked: list[Turn] = []
    for number, piece in enumerate(pieces(talk)):
        session.take_sound(piece)
        if number % 3 == 0:
            session.take_picture(number * PIECE_MS, next(pictures))
        while (request := session.next_request()) is not None:
            assert isinstance(request, Turn)
            asked.append(request)
            session.take_answer(answer(request))
    for each in asked:
        times = [at_ms for at_ms, _ in each.pieces.pictures]
        assert times[0] <= each.regions[0].start_ms
        assert times[-1] >= each.regions[-1].end_ms
        assert max(np.diff(times)) <= 3 * PIECE_MS
    # The third began seconds after the first: the first one's pictures are forgotten.
    assert asked[2].pieces.pictures[0][0] > asked[0].regions[-1].end_ms


# ------------------------------------------------------------------------------ what is behind


def test_where_nobody_answers_pictures_go_first_then_provisional_answers_then_it_is_reported(
    talk: bytes,
) -> None:
    session, pictures = start(most_lag_ms=10_000), iter(jpegs(400))
    events: list[SessionEvent] = []
    dropped_at_ms = None
    for number, piece in enumerate([*pieces(talk), *pieces(bytes(32 * 9_000))]):
        events += session.take_sound(piece)
        session.next_request()  # the first is asked, and never answered
        if number % 3 == 0:
            session.take_picture(number * PIECE_MS, next(pictures))
        if dropped_at_ms is None and session.counts.pictures_dropped:
            dropped_at_ms = session.lag_ms
    assert dropped_at_ms is not None
    assert 3_000 < dropped_at_ms < 3_500
    [told] = of_type(events, "error")
    assert told["code"] == "lagging"
    assert told["retryable"]
    assert 7_000 < told["lag_ms"] < 7_200
    assert session.lag_ms > 10_000  # who hands over sound ends it now
    assert not of_type(events, "measurement.result")


def test_when_it_has_caught_up_it_would_be_told_again(talk: bytes) -> None:
    session = start(most_lag_ms=2_000, gives_provisional=False)
    events: list[SessionEvent] = []
    for _ in range(2):
        for piece in pieces(talk[: 32 * 5_000]):
            events += session.take_sound(piece)
        events += answered(session)
    assert len(of_type(events, "error")) == 2


def test_what_is_answered_is_forgotten_however_long_it_goes_on(talk: bytes) -> None:
    session, [jpeg] = start(), jpegs(1)
    for number, piece in enumerate(pieces(talk * 3 + bytes(32 * 20_000))):
        session.take_sound(piece)
        session.take_picture(number * PIECE_MS, jpeg)
        answered(session)
    held_ms = sum(map(len, session._finder._blocks)) // 16
    assert held_ms <= 2_500
    assert len(session._pictures) <= 15


# ------------------------------------------------------------------------------------ failures


def test_a_turn_that_cannot_be_answered_costs_no_other(talk: bytes) -> None:
    session, events, failed = start(gives_provisional=False), [], False
    for piece in pieces(talk):
        events += session.take_sound(piece)
        while (request := session.next_request()) is not None:
            if not failed:
                failed = True
                events += session.take_failure("meld_error", "the recogniser ended")
            else:
                events += session.take_answer(answer(request))
    [error] = of_type(events, "error")
    assert (error["code"], error["retryable"]) == ("meld_error", False)
    ends = of_type(events, "utterance.end")
    assert ends[0]["utterances"] == []
    assert ends[1]["utterances"] == ["u0001"]


def test_a_provisional_answer_that_comes_too_late_is_not_told(talk: bytes) -> None:
    session, events, late = start(), [], None
    for piece in pieces(talk):
        events += session.take_sound(piece)
        if late is None:
            request = session.next_request()
            if isinstance(request, Glimpse):
                late = request
            elif request is not None:
                events += session.take_answer(answer(request))
    assert late is not None
    assert session.take_answer(answer(late)) == []
    assert session.counts.provisional == 0
    assert finals(answered(session))


@pytest.mark.parametrize("content", [b"", b"\0\0\0", bytes(32 * 10_000 + 2)])
def test_sound_is_whole_samples_and_not_too_many(content: bytes) -> None:
    with pytest.raises(UsageError, match="whole samples"):
        start().take_sound(content)


def test_a_picture_is_a_jpeg_of_a_camera() -> None:
    session, [jpeg] = start(), jpegs(1)
    with pytest.raises(UsageError, match="no JPEG"):
        session.take_picture(0, b"\x89PNG")
    with pytest.raises(UsageError, match="are the most"):
        session.take_picture(0, jpeg + bytes(2**18))
    huge = jpeg.replace((128).to_bytes(2, "big") + (160).to_bytes(2, "big"), b"\x40\x00\x40\x00", 1)
    with pytest.raises(UsageError, match="16384 x 16384"):
        session.take_picture(0, huge)
    assert session.counts.pictures == 0


def test_pictures_that_come_too_fast_or_from_another_time_are_left_out() -> None:
    session, [jpeg] = start(), jpegs(1)
    for at_ms in (0, 50, 250, 240, 99_000):
        session.take_picture(at_ms, jpeg)
    assert (session.counts.pictures, session.counts.pictures_dropped) == (2, 3)


def test_a_choice_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="prompt, thorough"):
        replace(SessionChoice(), hearing="soon")  # type: ignore[arg-type]


def test_silence_is_no_turn() -> None:
    assert play(start(), bytes(32 * 5_000)) == []


def test_the_last_utterance_is_ended_by_the_end(talk: bytes) -> None:
    """In the middle of the long one."""
    cut = talk[: 32 * 7_000]
    session = start()
    events = [event for piece in pieces(cut) for event in session.take_sound(piece)]
    assert len(of_type(events, "utterance.start")) == 3
    events += answered(session) + session.finish() + answered(session)
    ends = of_type(events, "utterance.end")
    assert len(ends) == 3
    assert ends[-1]["end_ms"] <= 7_000
    assert session.is_answered
