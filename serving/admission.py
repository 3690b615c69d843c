"""Admission of requests: what is checked before the first byte of a body is read, and how it is
read.

It stands before FastAPI, which reads a whole body before it asks anybody (pure ASGI: Starlette's
own middleware hides a client's going).
"""

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import MeldError, UsageError
from serving.config import Limits
from serving.dispatch import SECONDS_OF_GRACE, Dispatcher, Place
from serving.logs import REQUEST, Event, RequestNote, choose_request_id
from serving.problems import (
    MEDIA_TYPE,
    TooLarge,
    TooSlow,
    Unauthorised,
    WrongKind,
    WrongOrigin,
    code_of,
    describe_problem,
    headers_of,
    make_problem,
)

log = logging.getLogger(__name__)

COOKIE = "meld-session"
PLACE = "meld.place"  # in the scope: the queue's place that an upload holds
JOBS, PREDICT = "/v1/jobs", "/v1/predict"
# Without a key: whether it is alive, and the page, on which a key is entered.
_OPEN = ("/livez", "/readyz", "/", "/live", "/favicon.ico", "/v1/session")
_OPEN_BELOW = "/page/"
_SAFE = ("GET", "HEAD", "OPTIONS")
_METHODS = (*_SAFE, "POST", "PUT", "PATCH", "DELETE")
_HOME = frozenset(("localhost", "127.0.0.1", "::1"))
# A client that is refused while it sends would not read why if nobody listened any more.
_LINGER_S = 1.0
_LINGER_BYTES = 2**20
_MEDIA_KIND = re.compile(r"application/octet-stream|(?:video|audio)/[a-z0-9][a-z0-9.+-]*")
_JOB = re.compile(r"[0-9a-f]{32}")
# Uploads that are let in, or refused, in one round of the event loop.
_UPLOADS_IN_A_ROUND = 8


class Keys:
    """The one key, which clients send and browsers keep a token of; None lets everybody in."""

    def __init__(self, key: str | None) -> None:
        self._key = key
        self.is_needed = key is not None
        # Nobody can make it, or the key from it.
        self.token = hmac.new((key or "").encode(), b"meld session", hashlib.sha256).hexdigest()

    def fits(self, key: str) -> bool:
        """In constant time."""
        return hmac.compare_digest(key.encode(), (self._key or "").encode())

    def admits(self, headers: Headers) -> bool:
        if self._key is None:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return self.fits(key.strip())
        # Others of this machine set cookies too, whatever their port, and Python's own parser stops
        # at the first that it does not like.
        token = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return hmac.compare_digest(token.encode(), self.token.encode())


class _Turns:
    """Lets few go on in each round of the event loop. A round works on all that is there, so
    without turns who asks for little waits until a whole burst of uploads is refused.

    Whoever serves one application in several loops has turns in each: none of them wakes another.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Future[None]]] = (
            WeakKeyDictionary()
        )

    async def wait(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(loop, deque())
        turn: asyncio.Future[None] = loop.create_future()
        waiting.append(turn)
        if len(waiting) == 1:
            loop.call_soon(self._give, loop, waiting)
        await turn

    def _give(self, loop: asyncio.AbstractEventLoop, waiting: deque[asyncio.Future[None]]) -> None:
        for _ in range(min(self._most, len(waiting))):
            turn = waiting.popleft()
            if not turn.done():  # it may have been cancelled
                turn.set_result(None)
        if waiting:
            loop.call_soon(self._give, loop, waiting)


class Admission:
    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        dispatcher: Dispatcher,
        limits: Limits,
        is_private: bool,
        headers: Mapping[str, str],
        routes: Sequence[BaseRoute],
    ) -> None:
        """
        is_private: no other machine can reach the service. Without a key, requests with another
            Host header are then refused, because they come from pages of other sites
        headers: of every answer
        routes: by whose patterns the log names addresses: what a client wrote may be anything
        """
        self._app = app
        self._keys = keys
        self._dispatcher = dispatcher
        self._limits = limits
        self._is_private = is_private
        self._routes = routes
        self._turns = _Turns(_UPLOADS_IN_A_ROUND)
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        note = RequestNote(id=choose_request_id(Headers(scope=scope).get("x-request-id")))
        noted = REQUEST.set(note)
        began_s, told = time.monotonic(), [0]
        always = [*self._headers, (b"x-request-id", note.id.encode())]

        async def answer(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                told[0] = message["status"]
                own = {name for name, _ in message["headers"]}
                extra = [each for each in always if each[0] not in own]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            if scope["type"] == "websocket":
                await self._pass_socket_on(scope, receive, answer)
                return
            if _is_upload(scope):
                await self._turns.wait()
            try:
                most_bytes = self._check(scope)
            except MeldError as error:
                await _refuse(error, receive, answer)
            else:
                await self._pass_on(scope, receive, answer, most_bytes)
        finally:
            if told[0] or scope["type"] == "http":  # an open socket tells its own end
                self._note(scope, note, told[0], time.monotonic() - began_s)
            REQUEST.reset(noted)

    async def _pass_socket_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page of another site may open no WebSocket: browsers let it, and do not ask. It has no
        key, which its address would show: `serving.live` looks at its ticket."""
        try:
            self._check_origin("websocket", Headers(scope=scope))
        except MeldError as error:
            await problem_response(error)(scope, receive, send)
            return
        if self._place_of(scope)[0] == "-":  # the framework would refuse it without a word
            status = HTTPStatus.NOT_FOUND
            problem = make_problem(status, code_of(UsageError), status.phrase)
            await answer_problem(problem)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _note(self, scope: Scope, note: RequestNote, status: int, took_s: float) -> None:
        if note.problem is not None:
            self._dispatcher.metrics.requests_refused.labels(note.problem).inc()
        if not log.isEnabledFor(logging.INFO):  # whoever is refused costs as little as can be
            return
        method = scope.get("method", "GET")  # a socket is asked for by it
        route, job = self._place_of(scope)
        log.info(
            Event(
                "request",
                method=method if method in _METHODS else "other",
                route=route,
                job=job,
                status=status,
                problem=note.problem,
                ms=round(took_s * 1000, 1),
                request=note.id,
            )
        )

    def _place_of(self, scope: Scope) -> tuple[str, str | None]:
        """The pattern of the address, "-" where there is none of it, and the job in it."""
        for route in self._routes:
            match, found = route.matches(scope)
            if match is not Match.NONE:
                job = found["path_params"].get("job_id")
                is_one = isinstance(job, str) and _JOB.fullmatch(job)
                return getattr(route, "path", "-"), job if is_one else None
        return "-", None

    def _check(self, scope: Scope) -> int:
        """How large the body may be. Raises MeldError."""
        headers, path = Headers(scope=scope), scope["path"]
        self._check_origin(scope["method"], headers)
        is_open = path in _OPEN or path.startswith(_OPEN_BELOW)
        if not is_open and not self._keys.admits(headers):
            raise Unauthorised("the key is missing or wrong: send Authorization: Bearer KEY")
        is_upload = _is_upload(scope)
        most_bytes = self._limits.max_bytes if is_upload else self._limits.max_text_bytes
        if is_upload and path == PREDICT:
            most_bytes = min(most_bytes, self._limits.predict_bytes)
        if is_upload:
            check_kind(headers.get("content-type"))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > most_bytes:
            raise TooLarge(f"a body of {length} bytes; {most_bytes} are the most")
        if is_upload:
            scope[PLACE] = self._dispatcher.hold_place()
        return most_bytes

    def _check_origin(self, method: str, headers: Headers) -> None:
        """Pages of other sites can send requests to everything that their visitor's machine can
        reach."""
        host = headers.get("host", "")
        is_home = _split(f"//{host}")[1] in _HOME
        if self._is_private and not self._keys.is_needed and not is_home:
            raise WrongOrigin(f"this service is asked as localhost or 127.0.0.1, not as {host}")
        origin = headers.get("origin")
        if method not in _SAFE and origin is not None and _split(origin)[0] != host:
            raise WrongOrigin(f"a page of {origin} may not send anything to {host}")

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, most_bytes: int) -> None:
        body = _Body(receive, self._limits, most_bytes, scope.get(PLACE))
        try:
            await self._app(scope, body.receive, send)
        finally:
            if PLACE in scope:
                scope[PLACE].release()
                self._dispatcher.metrics.upload_bytes.inc(body.num_bytes)


class _Body:
    """A request body with a limit of size and a minimum speed."""

    def __init__(
        self, receive: Receive, limits: Limits, most_bytes: int, place: Place | None
    ) -> None:
        self._receive = receive
        self._limits = limits
        self._most_bytes = most_bytes
        self._place = place
        self.num_bytes = 0
        self._began_s: float | None = None
        self._is_whole = False

    async def receive(self) -> Message:
        """Raises TooLarge, TooSlow."""
        if self._is_whole:  # who waits for the client's going may wait
            return await self._receive()
        if self._began_s is None:
            self._began_s = time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), self._limits.silence_s)
        except TimeoutError as error:
            raise TooSlow(f"nothing came for {self._limits.silence_s:.0f} s") from error
        self.num_bytes += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._place is not None:
            if self._place.is_lost:
                raise TooSlow(
                    "the queue is full, and another was given the place of this slow upload; try "
                    "again later"
                )
            self._place.num_bytes, self._place.is_whole = self.num_bytes, self._is_whole
        if self.num_bytes > self._most_bytes:
            raise TooLarge(f"the body has more than {self._most_bytes} bytes")
        took_s = time.monotonic() - self._began_s - SECONDS_OF_GRACE
        if took_s > 0 and self.num_bytes < took_s * self._limits.min_bytes_per_s:
            raise TooSlow(f"fewer than {self._limits.min_bytes_per_s} bytes a second came")
        return message


def _split(address: str) -> tuple[str | None, str | None]:
    """Its host with the port, and without; None where it is no address."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return None, None
    return parts.netloc, parts.hostname


def _is_upload(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"] in (JOBS, PREDICT)


def check_kind(content_type: str | None) -> None:
    """Raises WrongKind."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data" or _MEDIA_KIND.fullmatch(kind):
        return
    raise WrongKind(
        f"{kind or 'no Content-Type'}: send video/*, audio/*, application/octet-stream, or "
        "multipart/form-data with a part named media"
    )


def problem_response(error: MeldError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    problem = describe_problem(error)
    return answer_problem(problem, {**headers_of(error), **(headers or {})})


def answer_problem(
    problem: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """With the id of the request, which notes what it was."""
    note = REQUEST.get()
    if note is not None:
        note.problem = problem["code"]
        problem = {**problem, "request_id": note.id}
    return JSONResponse(
        problem, status_code=problem["status"], media_type=MEDIA_TYPE, headers=headers
    )


async def _refuse(error: MeldError, receive: Receive, send: Send) -> None:
    """Answers, and for a moment reads and discards what the client is still sending.

    With a wrong key, the body is not read.
    """
    response = problem_response(error, {"Connection": "close"})
    await send(
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": response.raw_headers,
        }
    )
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if not isinstance(error, Unauthorised):
        try:
            async with asyncio.timeout(_LINGER_S):
                await _hear_out(receive)
        except TimeoutError:
            pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _hear_out(receive: Receive) -> None:
    num_bytes = 0
    while num_bytes < _LINGER_BYTES:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if not message.get("more_body", False):
            return
