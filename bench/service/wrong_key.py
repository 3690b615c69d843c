"""Requests with a wrong key, and what they cost."""

import asyncio
import time

from bench.service.client import head, read_body, read_head
from bench.service.figures import Figure, at_most, exactly, told
from bench.service.server import serving
from bench.service.settings import Setting

_ANNOUNCED = 10**9
_PIECE = b"x" * 1024
_TRIES = 20


async def key(setting: Setting) -> list[Figure]:
    """Sends a wrong key and announces and sends a body of 1 GB."""
    file = setting.work / "key.txt"
    file.write_text("the key of this trial\n")
    took_ms, sent, kinds = [], [], set()
    with serving(setting.work / "key", *setting.options, "--key-file", str(file)) as server:
        for _ in range(_TRIES):
            status, first_s, num_bytes = await _try(server.port)
            took_ms.append(1000 * first_s)
            sent.append(num_bytes)
            kinds.add(status)
        left = len(server.incoming())
    return [
        told("tries", _TRIES),
        exactly("answers that are 401", int(kinds == {401}), 1),
        at_most("slowest answer", max(took_ms), 50, "ms"),
        at_most("largest part of a body that was read", max(sent) / 1000, 64, "kB"),
        exactly("uploads left on the disk", left, 0),
    ]


async def _try(port: int) -> tuple[int, float, int]:
    """The status, seconds until it arrived, and bytes of the body sent at 1 MB/s until the server
    closed the connection."""
    headers = {
        "Authorization": "Bearer not the key of this trial",
        "Content-Type": "video/mp4",
        "Content-Length": str(_ANNOUNCED),
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(head("POST", "/v1/jobs", headers))
    sent = 0
    answer = asyncio.ensure_future(read_head(reader))
    try:
        while not reader.at_eof() and sent < 10 * 2**20:
            writer.write(_PIECE)
            await writer.drain()
            sent += len(_PIECE)
            await asyncio.sleep(0.001)
            if answer.done() and not answer.exception():
                took_s = time.perf_counter() - began
                break
        status, told_headers = await answer
        async for _ in read_body(reader, told_headers):
            pass
        while not reader.at_eof():  # the server closes the connection
            writer.write(_PIECE)
            await writer.drain()
            sent += len(_PIECE)
            await asyncio.sleep(0.001)
    except ConnectionError:
        pass
    finally:
        writer.close()
    status, _ = await answer
    return status, took_s, sent
