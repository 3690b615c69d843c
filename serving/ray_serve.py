"""The service on more than one machine: Ray Serve places it, watches it and starts it again.

    client -> Ray's proxy -> front (replicas, each on a machine) -> the service that owns the job
                                                                    (its folder, worker, port)

Each service is whole, `meld serve` itself, in a replica of its own deployment: its name and folder
outlive the replica. A job's id says which service owns it (`ServeConfig.shard`), so the fronts know
nothing and any of them may be asked; a live ticket says it as well. A new upload or session goes to
the service with the least to do, and to the next one where that is full or lost; a body is not read
before one has a place for it.

    serve run serving.ray_serve:build num_shards=2 data_dir=/srv/meld key_file=/etc/meld/key

The folder must be one that all machines share, or services go on with their jobs only where they
were. Needs `pip install 'meld[serve]' 'ray[serve]'`.
"""

import asyncio
import itertools
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yarl import URL

from pipeline.errors import MeldError, UsageError
from pipeline.settings import build_config
from serving.admission import JOBS, problem_response
from serving.config import ServeConfig
from serving.jobs import shard_of
from serving.live import ticket_of
from serving.problems import Busy, Unauthorised, WrongOrigin
from serving.serve import serve as run_service

# Of one connection; what is asked for in it has the service's own limits.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade expect".split()
)
# Of a WebSocket, which is opened anew.
_OF_A_SOCKET = "sec-websocket-"
# A service that is gone, or goes while it is asked; how Ray says so has no class of its own.
_LOST = (aiohttp.ClientError, OSError, TimeoutError, RayError, RayServeException)
# Asked of one service by its number.
_OF_ONE = re.compile(r"/services/(\d{1,4})(/metrics|/readyz|/livez)")
_SECONDS_TO_LOAD = 900.0
_SECONDS_TO_CONNECT = 5.0
_RETRY_AFTER_S = 5

log = logging.getLogger(__name__)


class Settings(BaseModel):
    """What `serve run` and a RayService file say.

    num_shards: services, each with a folder, a worker and a model of its own
    fronts:     replicas of what hands requests on to them
    data_dir:   the folder of their folders
    num_cpus:   of each service, as Ray counts them
    config:     further settings of `meld serve`, such as model or limits
    """

    model_config = ConfigDict(extra="forbid")

    num_shards: int = 2
    fronts: int = 1
    data_dir: Path
    key_file: Path | None = None
    without_key: bool = False
    num_cpus: float = 1.0
    config: dict[str, Any] = {}


def build(settings: Settings) -> Any:
    """The application, as `serve run serving.ray_serve:build` deploys it. Raises UsageError."""
    named = {
        "host": "0.0.0.0",
        "port": 0,
        "without_key": settings.without_key,
        "num_shards": settings.num_shards,
    }
    if settings.key_file is not None:
        named["key_file"] = str(settings.key_file)
    for name in (*named, "key_file", "data_dir", "shard"):
        if name in settings.config:
            raise UsageError(f"config.{name}: it is decided here, or named beside config")
    base = build_config(ServeConfig, {**settings.config, **named})
    services = [
        serve.deployment(Service)
        .options(
            name=f"service-{shard}",
            ray_actor_options={"num_cpus": settings.num_cpus},
            health_check_period_s=2,
            health_check_timeout_s=10,
            graceful_shutdown_timeout_s=base.limits.drain_s,
        )
        .bind(replace(base, shard=shard, data_dir=settings.data_dir / str(shard)))
        for shard in range(settings.num_shards)
    ]
    front = serve.deployment(serve.ingress()(Front)).options(
        name="front",
        num_replicas=settings.fronts,
        # A stream of events is a request that lasts: many at one time, and a limit to them.
        max_ongoing_requests=256,
        max_queued_requests=64,
        ray_actor_options={"num_cpus": 0.1},
    )
    return front.bind(services)


class Service:
    """One `meld serve`, in a replica of its own deployment."""

    def __init__(self, config: ServeConfig) -> None:
        """Returns when it listens. Raises what `serve` raises."""
        self._address: str | None = None
        self._error: BaseException | None = None
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(config,), daemon=True)
        self._thread.start()
        if not self._listens.wait(_SECONDS_TO_LOAD):
            raise MeldError(f"the service does not start within {_SECONDS_TO_LOAD:.0f} s")
        self.check_health()

    def _run(self, config: ServeConfig) -> None:
        def tell(address: str, _: object) -> None:
            port = urlsplit(address).port
            self._address = f"http://{ray.util.get_node_ip_address()}:{port}"
            self._listens.set()

        try:
            run_service(config, tell)
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._listens.set()

    def address(self) -> str:
        """Where it listens, for the fronts."""
        assert self._address is not None
        return self._address

    def pid(self) -> int:
        """The replica's process, for those who look after it."""
        return os.getpid()

    def check_health(self) -> None:
        """Ray replaces a replica whose health is bad. Raises what ended the service."""
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            raise MeldError("the service has ended")


@dataclass
class _Owner:
    """A service as a front sees it.

    handle:  Ray's, which finds its replica anew when it was replaced
    address: of the replica that answered last
    ongoing: requests that this front has with it
    """

    handle: Any
    address: str | None = None
    ongoing: int = 0


class Front:
    """What Ray's proxy asks."""

    def __init__(self, services: Sequence[Any]) -> None:
        self._services = services

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return HandOn(self._services)


class HandOn:
    """Hands requests on to the service that owns the job."""

    def __init__(self, services: Sequence[Any]) -> None:
        self._owners = [_Owner(handle) for handle in services]
        self._turns = itertools.count()
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] == "websocket":
            await self._hand_on_socket(scope, receive, send)
            return
        if scope["path"] == "/livez":
            await JSONResponse({"status": "alive"})(scope, receive, send)
            return
        of_one = _OF_ONE.fullmatch(scope["path"])
        if of_one is not None and int(of_one[1]) < len(self._owners):
            candidates = [self._owners[int(of_one[1])]]
            scope = {**scope, "path": of_one[2], "raw_path": of_one[2].encode()}
        elif scope["path"] == "/metrics":
            error = UsageError("each service has figures of its own: ask /services/0/metrics")
            await problem_response(error)(scope, receive, send)
            return
        else:
            candidates = self._candidates(scope)
        body = _Body(receive)
        for owner in candidates:
            if await self._hand_on(owner, scope, body, send):
                return
        nobody = Busy("no service answers or has room; try again soon", _RETRY_AFTER_S)
        await problem_response(nobody)(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._session is not None:
            await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _candidates(self, scope: Scope) -> list[_Owner]:
        """One that must answer, or all that may, the one with the least to do first."""
        path = scope["path"]
        if path.startswith(f"{JOBS}/"):
            job_id = path.removeprefix(f"{JOBS}/").partition("/")[0]
            return [self._owners[shard_of(job_id, len(self._owners))]]
        sent_as = Headers(scope=scope).get("idempotency-key")
        if sent_as is not None:  # sent again, it must meet the job that it made
            return [self._owners[shard_of(sent_as.encode().hex(), len(self._owners))]]
        turn = next(self._turns)
        ordered = (
            self._owners[turn % len(self._owners) :] + self._owners[: turn % len(self._owners)]
        )
        return sorted(ordered, key=lambda owner: owner.ongoing)

    async def _hand_on(self, owner: _Owner, scope: Scope, body: "_Body", send: Send) -> bool:
        """Whether there was an answer for the client; if not, nothing of the body was read."""
        owner.ongoing += 1
        try:
            return await self._exchange(owner, scope, body, send)
        except _LOST as error:
            owner.address = None
            log.warning("a service does not answer: %s", error)
            if body.was_answered:  # half an answer is none
                raise
            if not body.was_read:
                return False
            lost = Busy("the service was lost before it answered; send it again", _RETRY_AFTER_S)
            await problem_response(lost)(scope, body.receive, send)
            return True
        finally:
            owner.ongoing -= 1

    async def _exchange(self, owner: _Owner, scope: Scope, body: "_Body", send: Send) -> bool:
        url, headers = await self._address(owner, scope), _headers_of(scope)
        has_body = scope["method"] not in ("GET", "HEAD", "DELETE", "OPTIONS")
        async with self._client().request(
            scope["method"],
            url,
            headers=headers,
            data=body.parts() if has_body else None,
            # The service says whether it wants the body before any of it is read.
            expect100=has_body,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        ) as answer:
            if answer.status == 503 and not body.was_read:
                return False
            body.was_answered = True
            raw = [
                (name.lower(), value)
                for name, value in answer.raw_headers
                if name.lower() not in _HOP_BY_HOP
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": raw})
            async for part in answer.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return True

    async def _address(self, owner: _Owner, scope: Scope) -> URL:
        """Where the service has what is asked for. Raises what Ray raises, TimeoutError."""
        if owner.address is None:
            owner.address = await asyncio.wait_for(owner.handle.address.remote(), 10)
        query = scope["query_string"].decode("latin-1")
        path = scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        return URL(owner.address + path, encoded=True)

    # ----------------------------------------------------------------------- live sessions

    async def _hand_on_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """To the service that gave the ticket, and back, message by message."""
        await receive()  # that somebody wants to connect
        ticket = ticket_of(scope["subprotocols"])
        owner = self._owners[shard_of(ticket or "", len(self._owners))]
        headers = [each for each in _headers_of(scope) if not each[0].startswith(_OF_A_SOCKET)]
        owner.ongoing += 1
        try:
            service = await self._client().ws_connect(
                await self._address(owner, scope),
                protocols=scope["subprotocols"],
                headers=headers,
                max_msg_size=0,  # the service's own limits hold
            )
        except aiohttp.WSServerHandshakeError as error:
            await _refuse_socket(error.status, scope, receive, send)
        except _LOST as error:
            owner.address = None
            log.warning("a service opens no socket: %s", error)
            await _refuse_socket(503, scope, receive, send)
        else:
            async with service:
                await send({"type": "websocket.accept", "subprotocol": service.protocol})
                await _join(service, receive, send)
        finally:
            owner.ongoing -= 1

    def _client(self) -> aiohttp.ClientSession:
        """Made in the loop that uses it."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS_TO_CONNECT),
                trust_env=False,
            )
        return self._session


def _headers_of(scope: Scope) -> list[tuple[str, str]]:
    """Those that are for the service."""
    return [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in scope["headers"]
        if name not in _HOP_BY_HOP
    ]


async def _refuse_socket(status: int, scope: Scope, receive: Receive, send: Send) -> None:
    """As the service did; its problem does not come with a refused handshake."""
    error: MeldError = Busy("no service can open a session; try again soon", _RETRY_AFTER_S)
    if status == 401:
        error = Unauthorised("no ticket, or one that was used or is too old")
    elif status == 403:
        error = WrongOrigin("pages of other sites may open no session")
    if "websocket.http.response" in scope.get("extensions", {}):
        await problem_response(error)(scope, receive, send)
    else:  # the proxy has no other answer than 403
        await send({"type": "websocket.close", "code": 1013, "reason": str(error)})


async def _join(service: aiohttp.ClientWebSocketResponse, receive: Receive, send: Send) -> None:
    """Until one of both ends closes; the other is closed in the same way."""

    async def to_service() -> None:
        while (message := await receive())["type"] == "websocket.receive":
            if message.get("bytes") is not None:
                await service.send_bytes(message["bytes"])
            else:
                await service.send_str(message.get("text") or "")
        await service.close()

    async def to_client() -> None:
        while True:
            message = await service.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                await send({"type": "websocket.send", "text": message.data})
            elif message.type is aiohttp.WSMsgType.CLOSE:
                close = {"code": message.data, "reason": message.extra or ""}
                await send({"type": "websocket.close", **close})
                return
            else:  # it was lost, or the client has gone
                await send({"type": "websocket.close", "code": 1012, "reason": "going"})
                return

    tasks = [asyncio.create_task(each) for each in (to_service(), to_client())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Body:
    """A client's body, of which is known whether any was read."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.was_read = False
        self.was_answered = False

    async def parts(self) -> AsyncIterator[bytes]:
        """Raises ConnectionError where the client goes before it has sent all."""
        self.was_read = True
        while True:
            message: Message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client went away")
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return
