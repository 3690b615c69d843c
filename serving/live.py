"""One WebSocket for who speaks now: tickets, the sockets that are open, and what goes over each.

    ticket -> socket -> session.created -> session.update -> sound, pictures -> events
           -> session.close -> session.closed

`docs/live.md` has the messages and the limits. What is said of the sound is decided in
`live_session`; here is what comes and goes, and when it is over.
"""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Response, WebSocket
from starlette.websockets import WebSocketDisconnect

from fusion.inference.voice import RATE_HZ, find_detector
from pipeline.errors import MeldError, UsageError, WeightsMissing
from pipeline.schema import MEDIA
from pipeline.settings import build_config
from pipeline.system.one_line import one_line
from pipeline.system.resources import num_cores
from serving.admission import problem_response
from serving.config import LiveLimits
from serving.dispatch import Dispatcher
from serving.jobs import shard_of
from serving.live_session import (
    MOST_PICTURE_BYTES,
    MOST_SOUND_MS,
    PROVISIONAL_EVERY_MS,
    LiveSession,
    Request,
    SessionChoice,
    SessionEvent,
    describe_error,
)
from serving.live_turns import HEARINGS, Answer, Warm
from serving.logs import Event
from serving.openapi import problems
from serving.problems import Busy, Unauthorised, code_of
from serving.process import WorkerEnded
from serving.schemas import TicketView

log = logging.getLogger(__name__)

PATH = "/v1/live"
PROTOCOL = "meld.live.v1"
TICKET_PROTOCOL = "meld.ticket."
SOUND, PICTURE = 1, 2
_TIME_BYTES = 4
# The largest is ten seconds of sound.
MOST_MESSAGE_BYTES = 1 + max(_TIME_BYTES + MOST_PICTURE_BYTES, 2 * RATE_HZ * MOST_SOUND_MS // 1000)
# Of uvicorn. Nothing is compressed: sound and pictures gain nothing, and a bomb would.
SOCKET_SETTINGS: Mapping[str, Any] = {
    "ws": "websockets-sansio",
    "ws_max_size": MOST_MESSAGE_BYTES,
    "ws_ping_interval": 20.0,  # who does not answer in as many seconds is gone
    "ws_ping_timeout": 20.0,
    "ws_per_message_deflate": False,
}
_MOST_TEXT_CHARS = 4_096
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_SEND = 10.0
_SECONDS_FOR_A_WORKER = 60.0
# For answers to what was said, once no more comes.
_SECONDS_TO_FINISH = 60.0
_MOST_DEATHS = 2

Reason = Literal["client", "idle", "too_long", "lagging", "too_fast", "refused", "going", "gone"]
# How a socket is closed (RFC 6455, 7.4), for each reason.
CLOSE_CODES: Mapping[Reason, int] = {
    "client": 1000,
    "idle": 4408,
    "too_long": 4413,
    "lagging": 1013,
    "too_fast": 1008,
    "refused": 1008,
    "going": 1012,
    "gone": 1011,
}
# What was said before is answered before the socket is closed.
_FINISHES: frozenset[Reason] = frozenset(("client", "idle", "too_long"))


class _Over(Exception):
    """The session ends; error: what is told before."""

    def __init__(self, reason: Reason, error: SessionEvent | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


def add_live(
    app: FastAPI,
    dispatcher: Dispatcher,
    limits: LiveLimits,
    *,
    shard: int = 0,
    num_shards: int = 1,
) -> None:
    """shard, num_shards: of tickets, as of jobs (`ServeConfig`)"""
    door = LiveDoor(dispatcher, limits, shard=shard, num_shards=num_shards)
    app.state.live = door

    @app.post(
        f"{PATH}/tickets",
        status_code=201,
        responses={201: {"description": "The ticket."}, **problems(401, 403, 503)},
        tags=["live"],
        summary="A ticket for one live session",
    )
    async def give_ticket() -> TicketView:
        """A WebSocket cannot send the key, and an address is no place for one: the ticket opens one
        socket at `/v1/live`, once and soon. It goes there as a subprotocol, beside
        `meld.live.v1`."""
        ticket = door.give_ticket()
        return TicketView(
            ticket=ticket,
            expires_in_s=limits.ticket_s,
            address=PATH,
            protocols=[PROTOCOL, f"{TICKET_PROTOCOL}{ticket}"],
        )

    @app.websocket(PATH)
    async def open_session(socket: WebSocket) -> None:
        try:
            door.take_ticket(ticket_of(socket.scope["subprotocols"]))
            door.enter()
        except MeldError as error:
            await refuse_socket(socket, error)
            return
        try:
            await _Socket(socket, door).run()
        finally:
            door.leave()


async def refuse_socket(socket: WebSocket, error: MeldError) -> None:
    """As any request is: before there is a socket, and with a problem that programs can read."""
    response: Response = problem_response(error)
    await socket.send_denial_response(response)


def ticket_of(offered: Sequence[str]) -> str | None:
    """offered: the subprotocols of a client"""
    tickets = [each for each in offered if each.startswith(TICKET_PROTOCOL)]
    return tickets[0].removeprefix(TICKET_PROTOCOL) if tickets and PROTOCOL in offered else None


class LiveDoor:
    """Who may come in: tickets that are good once, and so many sockets."""

    def __init__(
        self, dispatcher: Dispatcher, limits: LiveLimits, *, shard: int = 0, num_shards: int = 1
    ) -> None:
        self._shard, self._num_shards = shard, num_shards
        self.dispatcher = dispatcher
        self.limits = limits
        self.num_open = 0
        # For the sound of all sessions: threads that no request may be waiting in.
        self.listeners = CapacityLimiter(num_cores())
        self._tickets: dict[str, float] = {}  # until when each is good

    def give_ticket(self) -> str:
        """Raises WeightsMissing where nothing can hear, Busy."""
        find_detector()
        self._check_room()
        self._drop_old()
        if len(self._tickets) >= 2 * self.limits.sessions:
            raise Busy("many tickets are not used yet; try again later", 10)
        while shard_of(ticket := secrets.token_urlsafe(24), self._num_shards) != self._shard:
            pass
        self._tickets[ticket] = time.monotonic() + self.limits.ticket_s
        return ticket

    def take_ticket(self, ticket: str | None) -> None:
        """Raises Unauthorised."""
        self._drop_old()
        if ticket is None or self._tickets.pop(ticket, None) is None:
            raise Unauthorised(
                f"no ticket, or one that was used or is older than {self.limits.ticket_s:.0f} s: "
                f"POST {PATH}/tickets gives one, and the socket offers the subprotocols {PROTOCOL} "
                f"and {TICKET_PROTOCOL}TICKET"
            )

    def enter(self) -> None:
        """Raises Busy."""
        self._check_room()
        self.num_open += 1
        self.dispatcher.metrics.live_sessions.inc()

    def leave(self) -> None:
        self.num_open -= 1
        self.dispatcher.metrics.live_sessions.dec()

    def _check_room(self) -> None:
        if self.dispatcher.is_draining:
            raise Busy("the service is being ended; try again when it is back", 30)
        if self.num_open >= self.limits.sessions:
            raise Busy(f"{self.limits.sessions} sessions are open already; try again later", 10)

    def _drop_old(self) -> None:
        now_s = time.monotonic()
        for ticket, until_s in list(self._tickets.items()):
            if until_s < now_s:
                self._tickets.pop(ticket, None)


class _Socket:
    """One session, from its first message to its last.

    Three tasks share it: one takes what comes, one asks the worker, one looks at the clocks. The
    first that ends, ends the session; what was said by then may still be answered.
    """

    def __init__(self, socket: WebSocket, door: LiveDoor) -> None:
        self._socket = socket
        self._dispatcher, self._limits = door.dispatcher, door.limits
        self._listeners = door.listeners
        ready = door.dispatcher.ready
        assert ready is not None
        self._ready = ready
        self._modalities = ready.model["modalities"]
        self._choice = SessionChoice()
        self._session: LiveSession | None = None
        self._using = asyncio.Lock()  # of the session: its sound is heard in other threads
        self._sending = asyncio.Lock()
        self._changed = asyncio.Event()
        self._is_finishing = False
        self._is_taking = False  # a message: a client that waits for its answer is not silent
        self._began_s = self._last_s = time.monotonic()
        self._sound_since_s: float | None = None

    async def run(self) -> None:
        await self._socket.accept(subprotocol=PROTOCOL)
        reason: Reason = "gone"
        asking = asyncio.create_task(self._predict())
        try:
            await self._send([self._describe()])
            over = await self._until_over(asking)
            await self._send([] if over.error is None else [over.error])
            if over.reason in _FINISHES:
                await self._finish(asking)
            await self._send([self._describe_end(over.reason)])
            await self._socket.close(CLOSE_CODES[over.reason], over.reason)
            reason = over.reason
        except (WebSocketDisconnect, TimeoutError):  # who does not read is gone as well
            pass
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            self._dispatcher.metrics.live_ended.labels(reason).inc()
            took_s = round(time.monotonic() - self._began_s, 3)
            counts = {} if self._session is None else asdict(self._session.counts)
            log.info(Event("live_ended", reason=reason, took_s=took_s, **counts))

    async def _until_over(self, asking: "asyncio.Task[None]") -> _Over:
        """Raises WebSocketDisconnect, TimeoutError."""
        others = [asyncio.create_task(each) for each in (self._receive(), self._watch())]
        try:
            done, _ = await asyncio.wait([asking, *others], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except _Over as over:
            return over
        finally:
            async with self._using:  # a thread that hears would go on without its task
                for task in others:
                    task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        raise AssertionError("none of a session's tasks ends by itself")

    async def _finish(self, asking: "asyncio.Task[None]") -> None:
        """Answers to all that was said. Raises WebSocketDisconnect."""
        if self._session is not None:
            async with self._using:
                events = await to_thread.run_sync(self._session.finish, limiter=self._listeners)
            await self._send(events)
        self._is_finishing = True
        self._changed.set()
        try:
            await asyncio.wait_for(asking, _SECONDS_TO_FINISH)
        except TimeoutError:
            detail = (
                f"what was said last has no answer after {_SECONDS_TO_FINISH:g} s, and gets none"
            )
            await self._send([describe_error("unanswered", detail, retryable=True)])

    # ------------------------------------------------------------------------ what comes

    async def _receive(self) -> None:
        """Raises _Over, WebSocketDisconnect."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            self._is_taking = True
            try:
                if message.get("bytes") is not None:
                    await self._take_media(message["bytes"])
                else:
                    await self._take_text(message.get("text") or "")
            except MeldError as error:
                is_busy = isinstance(error, Busy)  # no fault of the message's
                told = describe_error(code_of(type(error)), str(error), retryable=is_busy)
                raise _Over("going" if is_busy else "refused", told) from error
            self._last_s, self._is_taking = time.monotonic(), False

    async def _take_text(self, text: str) -> None:
        """Raises MeldError, _Over."""
        try:
            values = json.loads(text) if len(text) <= _MOST_TEXT_CHARS else None
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise UsageError("a message in text is a JSON object of no more than 4,096 characters")
        kind = values.pop("type", None)
        if kind == "session.close":
            raise _Over("client")
        if kind != "session.update":
            raise UsageError("type is one of session.update, session.close")
        if self._session is not None:
            raise UsageError("session.update is sent once, before the first sound or picture")
        self._choice = build_config(SessionChoice, values)
        await self._open()
        await self._ask(Warm(with_words=self._choice.words))
        await self._send([{"type": "session.updated", **asdict(self._choice)}])

    async def _take_media(self, content: bytes) -> None:
        """Raises MeldError, _Over."""
        session = await self._open()
        kind, rest = content[:1], content[1:]
        if kind == bytes([SOUND]):
            async with self._using:
                events = await to_thread.run_sync(session.take_sound, rest, limiter=self._listeners)
                await self._send(events)
            self._check_pace(session)
        elif kind == bytes([PICTURE]):
            at_ms = int.from_bytes(rest[:_TIME_BYTES], "little")
            async with self._using:
                session.take_picture(at_ms, rest[_TIME_BYTES:])
        else:
            raise UsageError(
                f"the first byte of binary messages is {SOUND} (sound) or {PICTURE} (a picture)"
            )
        self._changed.set()

    async def _open(self) -> LiveSession:
        """The session, which what the client asks for decides. Raises MeldError."""
        if self._session is not None:
            return self._session
        sees_or_hears = any(name in MEDIA for name in self._modalities)
        if not self._choice.words and not sees_or_hears:
            raise UsageError("words: this model reads words alone, and would get none")
        self._check_recogniser()
        self._session = await to_thread.run_sync(
            lambda: LiveSession(
                most_lag_ms=round(self._limits.lag_s * 1000),
                gives_provisional=sees_or_hears,
                takes_pictures=sees_or_hears,
                choice=self._choice,
            ),
            limiter=self._listeners,
        )
        return self._session

    def _check_recogniser(self) -> None:
        """Raises UsageError, WeightsMissing."""
        language, recogniser = self._choice.language, self._ready.model.get("recogniser")
        if not self._choice.words:
            if language is not None:
                raise UsageError("language is that of words, and none are recognised")
            return
        if recogniser is None:
            raise WeightsMissing(
                "this service has no speech recogniser: send words false, or install one there: "
                "pip install 'meld[asr]'"
            )
        if language is not None and language not in recogniser["languages"]:
            raise UsageError(
                f"language {one_line(language)}: the service's recogniser knows "
                f"{', '.join(recogniser['languages'])}"
            )

    def _check_pace(self, session: LiveSession) -> None:
        """Raises _Over."""
        now_s, most_s = time.monotonic(), self._limits.lag_s
        if self._sound_since_s is None:
            self._sound_since_s = now_s
        heard_s = session.counts.audio_ms / 1000
        if heard_s - (now_s - self._sound_since_s) > most_s:
            detail = f"sound comes as it is heard, and not more than {most_s:.0f} s before"
            raise _Over("too_fast", describe_error("too_fast", detail, retryable=False))
        if session.lag_ms > 1000 * most_s:
            detail = (
                f"the answers are {session.lag_ms / 1000:.1f} s behind: this machine is too slow "
                "for all that it is asked; try again later"
            )
            raise _Over("lagging", describe_error("lagging", detail, retryable=True))

    # ------------------------------------------------------------------- what is predicted

    async def _predict(self) -> None:
        """Until all is answered, once no more comes. Raises WebSocketDisconnect, TimeoutError."""
        while True:
            self._changed.clear()
            session = self._session
            while session is not None and await self._predict_once(session):
                pass
            if self._is_finishing:
                return
            await self._changed.wait()

    async def _predict_once(self, session: LiveSession) -> bool:
        """Asks the worker what there is to be asked, and tells its answer; whether there was."""
        async with self._using:
            request = session.next_request()
        if request is None:
            return False
        try:
            answer = await self._ask(request)
        except MeldError as error:
            async with self._using:
                events = session.take_failure(code_of(type(error)), str(error))
        else:
            async with self._using:
                events = session.take_answer(answer)
        for event in events:
            if event["type"] == "utterance.end":
                self._dispatcher.metrics.live_lag.observe(event["lag_ms"] / 1000)
        await self._send(events)
        return True

    async def _ask(self, request: Request | Warm) -> Answer:
        """A worker that ends meanwhile is waited for once, and the next one asked: it needs to know
        nothing of what was before. Raises MeldError."""
        values = await to_thread.run_sync(request.to_json, limiter=self._listeners)
        deadline_s, num_deaths = time.monotonic() + _SECONDS_FOR_A_WORKER, 0
        while True:
            try:
                asked = self._dispatcher.ask_live(values)
                return Answer.from_json(await asyncio.wrap_future(asked))
            except WorkerEnded as error:
                num_deaths += 1
                if num_deaths >= _MOST_DEATHS:
                    raise MeldError(f"the worker ended twice on it, last by {error}") from error
            except Busy:
                if time.monotonic() > deadline_s:
                    raise
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    # ------------------------------------------------------------------------- the clocks

    async def _watch(self) -> None:
        """Raises _Over."""
        limits = self._limits
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
            now_s = time.monotonic()
            if self._dispatcher.is_draining:
                detail = "the service is being ended; try again when it is back"
                raise _Over("going", describe_error("going", detail, retryable=True))
            if not self._is_taking and now_s - self._last_s > limits.idle_s:
                detail = f"nothing came for {limits.idle_s:.0f} s"
                raise _Over("idle", describe_error("idle", detail, retryable=True))
            if now_s - self._began_s > limits.session_s:
                detail = f"a session lasts {limits.session_s:.0f} s at most"
                raise _Over("too_long", describe_error("too_long", detail, retryable=True))

    # ------------------------------------------------------------------------- what is told

    async def _send(self, events: list[SessionEvent]) -> None:
        """Raises WebSocketDisconnect, TimeoutError where nobody reads."""
        async with self._sending, asyncio.timeout(_SECONDS_TO_SEND):
            for event in events:
                await self._socket.send_text(json.dumps(event, ensure_ascii=False))

    def _describe(self) -> SessionEvent:
        limits = self._limits
        model: Mapping[str, Any] = self._ready.model
        return {
            "type": "session.created",
            "session": secrets.token_hex(8),
            "model": {name: value for name, value in model.items() if name != "card"},
            "notice": self._ready.notice,
            "hearing": list(HEARINGS),
            "provisional_every_ms": PROVISIONAL_EVERY_MS
            if any(name in MEDIA for name in self._modalities)
            else None,
            "audio": {"format": "s16le", "rate_hz": RATE_HZ, "channels": 1},
            "limits": {
                "idle_s": limits.idle_s,
                "session_s": limits.session_s,
                "lag_s": limits.lag_s,
                "message_audio_ms": MOST_SOUND_MS,
                "picture_bytes": MOST_PICTURE_BYTES,
            },
        }

    def _describe_end(self, reason: Reason) -> SessionEvent:
        counts = None if self._session is None else self._session.counts
        return {
            "type": "session.closed",
            "reason": reason,
            "received": {
                "audio_ms": 0 if counts is None else counts.audio_ms,
                "pictures": 0 if counts is None else counts.pictures,
                "pictures_dropped": 0 if counts is None else counts.pictures_dropped,
            },
            "produced": {
                "utterances": 0 if counts is None else counts.utterances,
                "provisional": 0 if counts is None else counts.provisional,
            },
        }
