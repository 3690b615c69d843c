"""Clients that disconnect, and clients that send slowly."""

import asyncio
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

from bench.service.client import ask, await_end, head, send, upload_request
from bench.service.figures import Figure, at_most, exactly, percentile, told
from bench.service.films import Film, film_upload, make_film
from bench.service.server import Costs, Server, serving
from bench.service.settings import Setting

DISCONNECTS = 100
SLOW = 200
_NORMAL = 100
_HEADER_S, _SILENCE_S = 3.0, 4.0


async def disconnects(setting: Setting) -> list[Figure]:
    """Disconnects 100 clients during an upload, an event stream, an answer or a job."""
    rng = random.Random(setting.seed)
    film = make_film(setting.work, setting.clips, minutes=1)
    with serving(
        setting.work / "disconnects", *setting.options, limits={"queued_jobs": 64}
    ) as server:
        job = (await send(server.port, film_upload(film))).json["id"]
        await await_end(server.port, job)
        for leave in (_leave_upload, _leave_events, _leave_answer, _leave_text):
            await leave(server, film, job, rng)  # excludes one-time allocations
        before = await _quiet(server)
        for number in range(DISCONNECTS):
            leave = (_leave_upload, _leave_events, _leave_answer, _leave_text)[number % 4]
            await leave(server, film, job, rng)
        after = await server.settle(before)
        free = await send(server.port, upload_request(setting.clips[0], text="Hello"))
        await await_end(server.port, free.json["id"])
        incoming = len(server.incoming())
        status, took_s = server.terminate()
    return [
        told("clients that disconnected", DISCONNECTS),
        at_most("additional file descriptors", after.descriptors - before.descriptors, 0),
        at_most("additional connections", after.connections - before.connections, 0),
        at_most("additional threads", after.threads - before.threads, 40),
        told("growth of the server's memory", (after.rss - before.rss) / 1e6, "MB"),
        exactly("uploads left on the disk", incoming, 0),
        exactly("status of the next upload", free.status, 202),
        exactly("exit status after SIGTERM", status, 0),
        at_most("SIGTERM to the end", took_s, 3, "s"),
    ]


async def _quiet(server: Server) -> Costs:
    await asyncio.sleep(1)
    return server.costs()


async def _leave(port: int, request: bytes, wait_s: float, rng: random.Random) -> None:
    """Half of the clients close the connection, half reset it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    with suppress(TimeoutError, OSError):
        await asyncio.wait_for(reader.read(1), wait_s)
    if rng.random() < 0.5:
        wire: socket.socket = writer.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()


async def _leave_upload(server: Server, film: Film, job: str, rng: random.Random) -> None:
    request = film_upload(film)
    await _leave(server.port, request[: rng.randrange(300, len(request))], 0.02, rng)


async def _leave_events(server: Server, film: Film, job: str, rng: random.Random) -> None:
    sent = await send(server.port, film_upload(film))
    path = f"/v1/jobs/{sent.json['id']}"
    await _leave(server.port, head("GET", f"{path}/events", {}), rng.uniform(0, 0.2), rng)
    await ask(server.port, path, method="DELETE")


async def _leave_answer(server: Server, film: Film, job: str, rng: random.Random) -> None:
    part = rng.choice(("media", "timeline?format=html", "timeline"))
    await _leave(server.port, head("GET", f"/v1/jobs/{job}/{part}", {}), 0.05, rng)


async def _leave_text(server: Server, film: Film, job: str, rng: random.Random) -> None:
    body = b'{"turns": [' + b", ".join([b'{"text": "How are you?"}'] * 100) + b"]}"
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    await _leave(server.port, head("POST", "/v1/text", headers) + body, rng.uniform(0, 0.1), rng)


# --------------------------------------------------------------------------------------- slow


async def slow(setting: Setting) -> list[Figure]:
    """Sends 200 slow heads, then 200 slow bodies, in parallel with normal requests."""
    limits = {"header_s": _HEADER_S, "silence_s": _SILENCE_S, "queued_jobs": 8}
    figures = [told("slow clients of each kind", SLOW)]
    film = make_film(setting.work, setting.clips, minutes=1)
    with serving(setting.work / "slow", *setting.options, limits=limits) as server:
        job = (await send(server.port, film_upload(film))).json["id"]
        await await_end(server.port, job)
        await _normal_s(server.port, job)
        before = server.costs()
        alone = await _normal_s(server.port, job)
        figures.append(told("p95 of normal requests, alone", 1000 * percentile(alone, 0.95), "ms"))
        kinds: list[tuple[str, Callable[[], bytes], float]] = [
            ("heads", lambda: b"GET /livez HT", _HEADER_S),
            ("bodies", _slow_body, _SILENCE_S),
            (
                "heads, a few bytes at a time",
                lambda: b"GET /livez HTTP/1.1\r\nHost: localhost\r\n",
                _HEADER_S,
            ),
        ]
        for name, request, limit_s in kinds:
            closed_s, during = await _beside(server, job, request(), name.endswith("drop"), limit_s)
            most = 1000 * max(percentile(alone, 0.95) * 2, 0.02)
            figures += [
                at_most(
                    f"p95 of normal requests, with slow {name}",
                    1000 * percentile(during, 0.95),
                    most,
                    "ms",
                ),
                at_most(
                    f"slow {name}: the last connection is closed after", closed_s, limit_s + 2, "s"
                ),
            ]
        after = await server.settle(before)
        figures += [
            at_most("additional file descriptors", after.descriptors - before.descriptors, 0),
            exactly("uploads left on the disk", len(server.incoming()), 0),
        ]
    return figures


def _slow_body() -> bytes:
    headers = {"Content-Type": "video/mp4", "Content-Length": "100000"}
    return head("POST", "/v1/jobs?text=Hi", headers) + b"a few bytes"


async def _beside(
    server: Server, job: str, request: bytes, drips: bool, limit_s: float
) -> tuple[float, list[float]]:
    """When the last slow connection was closed, and how long normal requests took."""
    began = time.perf_counter()

    async def one() -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        dripping = asyncio.ensure_future(_drip(writer)) if drips else None
        try:
            async with asyncio.timeout(limit_s + 20):
                with suppress(OSError):
                    await reader.read()
            return time.perf_counter() - began
        finally:
            if dripping is not None:
                dripping.cancel()
            writer.close()

    slow_ones = [asyncio.ensure_future(one()) for _ in range(SLOW)]
    await asyncio.sleep(0.5)
    during = await _normal_s(server.port, job)
    return max(await asyncio.gather(*slow_ones)), during


async def _drip(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while not writer.is_closing():
            writer.write(b"X-Drop: 1\r\n")
            await writer.drain()
            await asyncio.sleep(0.5)


async def _normal_s(port: int, job: str) -> list[float]:
    paths = (f"/v1/jobs/{job}", f"/v1/jobs/{job}/timeline", "/readyz")
    took = []
    for number in range(_NORMAL):
        answer = await ask(port, paths[number % len(paths)])
        assert answer.status == 200
        took.append(answer.first_s)
    return took
