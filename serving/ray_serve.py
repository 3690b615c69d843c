"""The service on more than one machine: Ray Serve places it, watches it and starts it again.

    client -> Ray's proxy -> front (replicas, each on a machine) -> the service that owns the job
                                                                    (its folder, worker, port)

Each service is whole, `meld serve` itself, in a replica of its own deployment: its name and folder
outlive the replica. A job's id says which service owns it (`ServeConfig.shard`), so the fronts know
nothing and any of them may be asked. A new upload goes to the service with the least to do, and to
the next one where that is full or lost; its body is not read before one has a place for it.

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
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from yarl import URL

from pipeline.errors import MeldError, UsageError
from pipeline.settings import build_config
from serving.admission import JOBS, problem_response
from serving.config import ServeConfig
from serving.jobs import shard_of
from serving.problems import Busy
from serving.serve import serve as run_service

# Of one connection; what is asked for in it has the service's own limits.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    b"upgrade expect".split()
)
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
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1013})  # the live page needs one service
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
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ServerDisconnectedError,
            TimeoutError,
        ) as error:
            owner.address = None
            if body.was_read or body.was_answered:
                raise
            log.warning("a service does not answer: %s", error)
            return False
        finally:
            owner.ongoing -= 1

    async def _exchange(self, owner: _Owner, scope: Scope, body: "_Body", send: Send) -> bool:
        if owner.address is None:
            owner.address = await asyncio.wait_for(owner.handle.address.remote(), 10)
        query = scope["query_string"].decode("latin-1")
        url = owner.address + scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in _HOP_BY_HOP
        ]
        has_body = scope["method"] not in ("GET", "HEAD", "DELETE", "OPTIONS")
        async with self._client().request(
            scope["method"],
            URL(url, encoded=True),
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


class _Body:
    """A client's body, of which is known whether any was read."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.was_read = False
        self.was_answered = False

    async def parts(self) -> AsyncIterator[bytes]:
        """Raises ConnectionError where the client goes before it has sent all."""
        self.was_read = True
        while True:
            message: Message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError("the client went away")
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return
