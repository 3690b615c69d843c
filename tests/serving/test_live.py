"""The live socket, over a network of its own: who may come in, what is said, and when it ends."""

import asyncio
import importlib.util
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("websockets", reason="the extra serve is not installed")

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync import client

from pipeline.errors import MeldError
from serving import live
from serving.admission import Admission, Keys, problem_response
from serving.config import Limits, LiveLimits
from serving.connections import limited_protocol
from serving.live import MOST_MESSAGE_BYTES, PATH, PROTOCOL, SOCKET_SETTINGS, add_live
from serving.live_session import LiveSession, SessionEvent
from serving.metrics import Metrics
from serving.problems import Busy
from serving.process import WorkerEnded, WorkerReady
from tests.fusion.inference.planted import plant_speech
from tests.media import jpegs
from tests.serving.answers import wait_until

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        importlib.util.find_spec("faster_whisper") is None,
        reason="the voice detector (extra asr) is not installed",
    ),
]

KEY = "a key of more than sixteen characters"
PIECE = 32 * 100  # bytes of 100 ms
Say = Callable[[Mapping[str, Any]], Any]


LOADED: dict[str, Any] = {"utterances": [], "before": []}


def hears_hello(request: Mapping[str, Any]) -> dict[str, Any]:
    """The same of every turn, at once."""
    if request["what"] == "warm":
        return LOADED
    number = request.get("first_number", 1)
    said = {"id": f"u{number:04d}", "text": "hello", "emotion": {"label": "joy"}}
    return {"utterances": [said], "before": []}


@dataclass
class StandIn:
    """In the place of the dispatcher: what it is asked it answers as it is told to."""

    say: Say = hears_hello
    is_draining: bool = False
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    answers: "list[Future[Any]]" = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    ready: WorkerReady = field(
        default_factory=lambda: WorkerReady(
            model={
                "name": "stand-in",
                "modalities": ["text", "audio"],
                "recogniser": {"name": "tiny.en", "languages": ["en"]},
                "card": "long",
            },
            notice="Emotions are recognised.",
            reads_words=True,
        )
    )

    def ask_live(self, request: Mapping[str, Any]) -> "Future[Any]":
        self.asked.append(request)
        future: Future[Any] = Future()
        self.answers.append(future)
        answer = self.say(request)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        elif answer is not None:
            future.set_result(answer)
        return future


@dataclass
class Door:
    """A service with nothing but live sessions."""

    address: str
    dispatcher: StandIn

    def ticket(self, *, key: str = KEY, origin: str | None = None) -> str:
        headers = {"Authorization": f"Bearer {key}"}
        if origin is not None:
            headers["Origin"] = origin
        request = Request(f"http://{self.address}{PATH}/tickets", b"", headers)
        with urlopen(request) as answer:
            assert answer.status == 201
            found: str = json.loads(answer.read())["ticket"]
            return found

    def open(self, ticket: str | None = None, **options: Any) -> Any:
        ticket = self.ticket() if ticket is None else ticket
        return client.connect(
            f"ws://{self.address}{PATH}",
            subprotocols=[PROTOCOL, f"meld.ticket.{ticket}"],
            **options,
        )


@contextmanager
def serving(
    dispatcher: StandIn,
    *,
    header_s: float = 5,
    shard: int = 0,
    num_shards: int = 1,
    **limits: float,
) -> Iterator[Door]:
    app = FastAPI()

    @app.exception_handler(MeldError)
    async def tell(request: object, error: MeldError) -> JSONResponse:
        return problem_response(error)

    add_live(
        app,
        dispatcher,  # type: ignore[arg-type]
        LiveLimits(**limits),  # type: ignore[arg-type]
        shard=shard,
        num_shards=num_shards,
    )
    admission = Admission(
        app,
        keys=Keys(KEY),
        dispatcher=dispatcher,  # type: ignore[arg-type]
        limits=Limits(),
        is_private=True,
        headers={},
        routes=app.routes,
    )
    config = uvicorn.Config(
        admission,
        http=limited_protocol(header_s=header_s, unread_s=5, min_bytes_per_s=16),
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
        **SOCKET_SETTINGS,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Door(f"127.0.0.1:{listener.getsockname()[1]}", dispatcher)
        finally:
            server.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with serving(StandIn(), lag_s=600) as opened:
        yield opened


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two utterances; 16-bit sound."""
    parts = (600, "Good morning.", 1_500, "Where is the dog?", 1_000)
    planted = plant_speech(tmp_path_factory.mktemp("talk") / "talk.wav", parts)
    return planted.samples().astype("<i2").tobytes()


def send_sound(session: Any, sound: bytes) -> None:
    for at in range(0, len(sound), PIECE):
        session.send(b"\x01" + sound[at : at + PIECE])


def rest(session: Any) -> tuple[list[dict[str, Any]], int]:
    """What comes until it is closed, and the code of that."""
    events = []
    try:
        while True:
            events.append(json.loads(session.recv(timeout=30)))
    except ConnectionClosed as closed:
        return events, 0 if closed.rcvd is None else closed.rcvd.code


def say(session: Any, kind: str, **values: Any) -> None:
    session.send(json.dumps({"type": kind, **values}))


def status_of(opening: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        opening()
    response = refused.value.response
    return response.status_code, json.loads(response.body)["code"]


# ----------------------------------------------------------------------------------- a session


def test_a_session_from_its_ticket_to_its_end(door: Door, talk: bytes) -> None:
    with door.open() as session:
        assert session.subprotocol == PROTOCOL
        created = json.loads(session.recv())
        assert created["type"] == "session.created"
        assert created["model"]["name"] == "stand-in"
        assert "card" not in created["model"]
        assert created["notice"] == "Emotions are recognised."
        assert created["audio"] == {"format": "s16le", "rate_hz": 16_000, "channels": 1}
        say(session, "session.update", hearing="prompt")
        assert json.loads(session.recv()) == {
            "type": "session.updated",
            "hearing": "prompt",
            "words": True,
            "language": None,
        }
        send_sound(session, talk)
        say(session, "session.close")
        events, code = rest(session)
    assert code == 1000
    assert [event["type"] for event in events] == [
        *("utterance.start", "measurement.result", "utterance.end") * 2,
        "session.closed",
    ]
    texts = [event["utterance"]["text"] for event in events if "utterance" in event]
    assert texts == ["hello"] * 2
    assert events[-1] == {
        "type": "session.closed",
        "reason": "client",
        "received": {"audio_ms": len(talk) // 32, "pictures": 0, "pictures_dropped": 0},
        "produced": {"utterances": 2, "provisional": 0},
    }


def test_monitoring_sees_how_many_there_are_how_they_end_and_how_far_behind_answers_are(
    talk: bytes,
) -> None:
    dispatcher = StandIn()

    def figures() -> list[str]:
        lines = dispatcher.metrics.render().decode().splitlines()
        return [each for each in lines if each.startswith("meld_live")]

    with serving(dispatcher, lag_s=600) as door, door.open() as session:
        session.recv()
        assert "meld_live_sessions 1.0" in figures()
        send_sound(session, talk)
        say(session, "session.close")
        rest(session)
    assert {
        "meld_live_sessions 0.0",
        'meld_live_ended_total{reason="client"} 1.0',
        "meld_live_lag_seconds_count 2.0",
    } <= set(figures())


def test_pictures_go_to_the_worker_with_the_turn(door: Door, talk: bytes) -> None:
    door.dispatcher.asked.clear()
    with door.open() as session:
        for number, jpeg in enumerate(jpegs(len(talk) // PIECE // 3)):
            send_sound(session, talk[3 * number * PIECE : 3 * (number + 1) * PIECE])
            session.send(b"\x02" + (300 * number).to_bytes(4, "little") + jpeg)
        say(session, "session.close")
        events, _ = rest(session)
    assert events[-1]["received"]["pictures"] == len(talk) // PIECE // 3
    turns = [each for each in door.dispatcher.asked if each["what"] == "turn"]
    assert all(each["pieces"]["pictures"] for each in turns)


def test_silence_before_any_media_is_a_session_as_well(door: Door) -> None:
    with door.open() as session:
        session.recv()
        say(session, "session.close")
        events, code = rest(session)
    assert (events[0]["reason"], code) == ("client", 1000)


def test_a_session_outlives_what_the_head_of_a_request_may_take() -> None:
    with serving(StandIn(), header_s=0.5) as door, door.open() as session:
        session.recv()
        time.sleep(0.6)
        say(session, "session.close")
        _, code = rest(session)
    assert code == 1000


# -------------------------------------------------------------------------------- who comes in


def test_what_the_ticket_says_opens_the_socket(door: Door) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    with urlopen(Request(f"http://{door.address}{PATH}/tickets", b"", headers)) as answer:
        told = json.loads(answer.read())
    address = f"ws://{door.address}{told['address']}"
    with client.connect(address, subprotocols=told["protocols"]) as session:
        assert json.loads(session.recv())["type"] == "session.created"


def test_a_ticket_is_good_once(door: Door) -> None:
    ticket = door.ticket()
    with door.open(ticket) as session:
        session.recv()
    assert status_of(lambda: door.open(ticket)) == (401, "unauthorised")


@pytest.mark.parametrize("ticket", ["", "guessed"])
def test_without_one_nobody_comes_in(door: Door, ticket: str) -> None:
    assert status_of(lambda: door.open(ticket)) == (401, "unauthorised")


def test_nor_with_the_key_in_the_place_of_it(door: Door) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    opening = lambda: client.connect(  # noqa: E731
        f"ws://{door.address}{PATH}", additional_headers=headers
    )
    assert status_of(opening) == (401, "unauthorised")


def test_a_ticket_is_given_for_the_key_alone(door: Door) -> None:
    with pytest.raises(OSError, match="401"):
        door.ticket(key="another")


def test_an_old_ticket_opens_nothing() -> None:
    with serving(StandIn(), ticket_s=0.1) as door:
        ticket = door.ticket()
        time.sleep(0.2)
        assert status_of(lambda: door.open(ticket)) == (401, "unauthorised")


def test_a_page_of_another_site_comes_in_nowhere(door: Door) -> None:
    with pytest.raises(OSError, match="403"):
        door.ticket(origin="https://evil.example")
    ticket = door.ticket(origin=f"http://{door.address}")
    opening = lambda: door.open(ticket, origin="https://evil.example")  # noqa: E731
    assert status_of(opening) == (403, "wrong_origin")
    with door.open(ticket, origin=f"http://{door.address}") as session:
        session.recv()


@pytest.mark.parametrize(("path", "status"), [(PATH, 401), ("/livez", 404), ("/v1", 404)])
def test_a_refused_socket_has_an_id_and_is_counted(
    door: Door, caplog: pytest.LogCaptureFixture, path: str, status: int
) -> None:
    caplog.set_level("INFO", "serving")
    code = {401: "unauthorised", 404: "usage_error"}[status]
    refused_before = num_refused(door, code)
    with pytest.raises(InvalidStatus) as refused:
        client.connect(f"ws://{door.address}{path}", additional_headers={"X-Request-Id": "mine-1"})
    answer = refused.value.response
    problem = json.loads(answer.body)
    assert (answer.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert answer.headers["X-Request-Id"] == problem["request_id"] == "mine-1"
    deadline = time.monotonic() + 60  # both are noted after the answer
    while f"status={status} problem={code}" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert num_refused(door, code) == refused_before + 1


def num_refused(door: Door, code: str) -> float:
    counted: float = door.dispatcher.metrics.requests_refused.labels(code)._value.get()
    return counted


def test_fifty_sockets_are_open_and_no_more() -> None:
    with serving(StandIn(), idle_s=600, ticket_s=600) as door, ExitStack() as sessions:
        late = door.ticket()
        for _ in range(50):
            sessions.enter_context(door.open()).recv()
        assert status_of(lambda: door.open(late)) == (503, "busy")
        with pytest.raises(OSError, match="503"):
            door.ticket()
        sessions.close()
        deadline = time.monotonic() + 60
        while True:  # until their going is noticed
            try:
                ticket = door.ticket()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        with door.open(ticket) as session:
            session.recv()


# ------------------------------------------------------------------------------- how it ends


class Clock:
    """The module time, whose monotonic clock runs a hundred times as fast from `hurry` on."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def hurry(self) -> None:
        self._since_s = time.monotonic()

    def monotonic(self) -> float:
        now_s = time.monotonic()
        return now_s if self._since_s is None else now_s + 99 * (now_s - self._since_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(live, "time", clock)
    return clock


def until(session: Any, kind: str) -> list[dict[str, Any]]:
    """What comes until there is an event of this kind."""
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] != kind:
        events.append(json.loads(session.recv(timeout=30)))
    return events


def test_a_silent_client_is_disconnected_after_its_speech_is_answered(
    talk: bytes, clock: Clock
) -> None:
    with serving(StandIn(), idle_s=30, lag_s=600) as door, door.open() as session:
        session.send(b"\x01" + talk[: 32 * 1_200])  # in the middle of the first
        until(session, "utterance.start")
        clock.hurry()
        events, code = rest(session)
    assert code == 4408
    told = [event["type"] for event in events]
    assert told[-2:] == ["utterance.end", "session.closed"]
    assert [event["code"] for event in events if event["type"] == "error"] == ["idle"]


def test_a_client_that_waits_for_the_service_is_not_silent(clock: Clock) -> None:
    """Its recogniser is loaded, or many others were before it."""
    with serving(StandIn(say=lambda request: None), idle_s=30) as door, door.open() as session:
        say(session, "session.update")
        wait_until(lambda: door.dispatcher.answers)
        clock.hurry()
        time.sleep(0.6)  # a minute
        door.dispatcher.answers[0].set_result(LOADED)
        assert [json.loads(session.recv(timeout=10))["type"] for _ in range(2)] == [
            "session.created",
            "session.updated",
        ]
        events, code = rest(session)  # now it is its turn, and it says nothing
    assert (code, events[-1]["reason"]) == (4408, "idle")


def test_a_session_is_no_longer_than_it_may_be(talk: bytes, clock: Clock) -> None:
    limits = {"session_s": 60, "idle_s": 600, "lag_s": 600}
    with serving(StandIn(), **limits) as door, door.open() as session:
        session.send(b"\x01" + talk)
        until(session, "utterance.end")
        clock.hurry()
        events, code = rest(session)
    assert (code, events[-1]["reason"]) == (4413, "too_long")
    assert events[-1]["produced"]["utterances"] == 2


def test_a_session_that_is_over_hears_out_the_sound_that_it_was_at(
    talk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sound is heard in a thread, and the last of it in another: one at a time."""
    hearing, finishing = threading.Event(), threading.Event()
    at_one_time: list[bool] = []
    take_sound, finish = LiveSession.take_sound, LiveSession.finish

    def take_slowly(session: LiveSession, content: bytes) -> list[SessionEvent]:
        hearing.set()
        finishing.wait(0.5)
        events = take_sound(session, content)
        hearing.clear()
        return events

    def finish_after(session: LiveSession) -> list[SessionEvent]:
        at_one_time.append(hearing.is_set())
        finishing.set()
        return finish(session)

    async def its_time_is_over_then(_: object) -> None:
        while not hearing.is_set():
            await asyncio.sleep(0.01)
        raise live._Over("too_long")

    monkeypatch.setattr(LiveSession, "take_sound", take_slowly)
    monkeypatch.setattr(LiveSession, "finish", finish_after)
    monkeypatch.setattr(live._Socket, "_watch", its_time_is_over_then)
    with serving(StandIn(), lag_s=600) as door, door.open() as session:
        session.send(b"\x01" + talk[: 32 * 1_200])  # in the middle of the first
        events, code = rest(session)
    assert code == 4413
    assert at_one_time == [False]
    assert [event["type"] for event in events] == [
        *("session.created", "utterance.start", "measurement.result", "utterance.end"),
        "session.closed",
    ]
    assert events[-1]["received"]["audio_ms"] == 1_200


def test_sound_that_nobody_can_have_heard_yet_is_no_sound(talk: bytes) -> None:
    with serving(StandIn(), lag_s=2) as door, door.open() as session:
        send_sound(session, talk)
        events, code = rest(session)
    assert (code, events[-1]["reason"]) == (1008, "too_fast")


def test_where_answers_are_too_far_behind_it_is_reported_and_closed(talk: bytes) -> None:
    with serving(StandIn(say=lambda request: None), lag_s=1) as door, door.open() as session:
        with suppress(ConnectionClosed):
            for at in range(0, len(talk), PIECE):
                session.send(b"\x01" + talk[at : at + PIECE])
                time.sleep(0.09)  # as it sounds
        events, code = rest(session)
    assert (code, events[-1]["reason"]) == (1013, "lagging")
    told = [event for event in events if event["type"] == "error"]
    assert [event["code"] for event in told] == ["lagging", "lagging"]
    assert all(event["retryable"] for event in told)
    # The worker is told not to work on what it will not be asked for any more.
    assert door.dispatcher.answers[-1].cancelled()


def test_a_service_that_is_ended_says_so() -> None:
    dispatcher = StandIn()
    with serving(dispatcher) as door, door.open() as session:
        session.recv()
        dispatcher.is_draining = True
        events, code = rest(session)
    assert (code, events[-1]["reason"]) == (1012, "going")


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x03abc",
        b"\x01abc",
        b"\x02\0\0\0\0no picture",
        "no JSON",
        "[]",
        '{"type": "session.start"}',
        '{"type": "session.update", "hearing": "soon"}',
        '{"type": "session.update", "language": "fr"}',
        '{"type": "session.update", "speed": 2}',
        '{"type": "session.update", "words": 1}',
        '{"type": "' + "x" * 5_000 + '"}',
        "[" * 4_000,  # deeper than a parser goes
        r'{"type": "session.update", "\ud800": 1}',  # half a character, which no answer can hold
    ],
)
def test_a_message_that_is_none_is_reported_and_ends_it(door: Door, message: str | bytes) -> None:
    with door.open() as session:
        session.recv()
        session.send(message)
        events, code = rest(session)
    assert code == 1008
    assert [event["type"] for event in events] == ["error", "session.closed"]
    assert (events[0]["code"], events[0]["retryable"]) == ("usage_error", False)
    assert events[1]["reason"] == "refused"


def test_what_is_chosen_is_chosen_before_the_first_sound(door: Door) -> None:
    with door.open() as session:
        session.recv()
        session.send(b"\x01" + bytes(PIECE))
        say(session, "session.update", hearing="thorough")
        events, code = rest(session)
    assert code == 1008
    assert "before the first" in events[0]["detail"]


def test_a_model_that_is_not_loaded_in_time_is_no_fault_of_the_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_loading(request: Mapping[str, Any]) -> None:
        raise Busy("the model is being loaded; try again soon", 5)

    monkeypatch.setattr("serving.live._SECONDS_FOR_A_WORKER", 0.1)
    with serving(StandIn(say=is_loading)) as door, door.open() as session:
        say(session, "session.update")
        events, code = rest(session)
    assert (code, events[-1]["reason"]) == (1012, "going")
    assert [(each["code"], each["retryable"]) for each in events if each["type"] == "error"] == [
        ("busy", True)
    ]


def test_what_is_chosen_is_chosen_once(door: Door) -> None:
    with door.open() as session:
        session.recv()
        say(session, "session.update", hearing="thorough")
        say(session, "session.update", hearing="prompt")
        events, code = rest(session)
    assert code == 1008
    assert [event["type"] for event in events] == ["session.updated", "error", "session.closed"]
    assert "session.update is sent once" in events[1]["detail"]


def test_a_message_that_is_too_large_is_not_read(door: Door) -> None:
    with door.open() as session:
        session.recv()
        session.send(bytes(MOST_MESSAGE_BYTES + 1))
        _, code = rest(session)
    assert code == 1009


def test_what_is_not_answered_in_the_end_is_reported(
    talk: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.live._SECONDS_TO_FINISH", 0.3)
    with serving(StandIn(say=lambda request: None), lag_s=600) as door, door.open() as session:
        send_sound(session, talk)
        say(session, "session.close")
        events, code = rest(session)
    assert code == 1000
    assert [event["code"] for event in events if event["type"] == "error"] == ["unanswered"]
    assert events[-1]["produced"]["utterances"] == 0


# ------------------------------------------------------------------------------- the worker


def test_a_worker_that_ends_is_waited_for_and_the_next_one_asked(talk: bytes) -> None:
    deaths = iter([WorkerEnded("SIGKILL")])

    def dies_once(request: Mapping[str, Any]) -> Any:
        if request["what"] == "warm":
            return hears_hello(request)
        return next(deaths, None) or hears_hello(request)

    with serving(StandIn(say=dies_once), lag_s=600) as door, door.open() as session:
        send_sound(session, talk)
        say(session, "session.close")
        events, code = rest(session)
    assert code == 1000
    assert events[-1]["produced"]["utterances"] == 2


def test_a_turn_that_ends_two_workers_is_reported_and_the_session_goes_on(talk: bytes) -> None:
    deaths = iter([WorkerEnded("SIGKILL"), WorkerEnded("SIGSEGV")])

    def dies_twice(request: Mapping[str, Any]) -> Any:
        if request["what"] == "warm":
            return hears_hello(request)
        return next(deaths, None) or hears_hello(request)

    with serving(StandIn(say=dies_twice), lag_s=600) as door, door.open() as session:
        send_sound(session, talk)
        say(session, "session.close")
        events, _ = rest(session)
    [error] = [event for event in events if event["type"] == "error"]
    assert "SIGSEGV" in error["detail"]
    assert events[-1]["produced"]["utterances"] == 1
