"""An HTTP/1.1 client on asyncio sockets. It must use little CPU time, because the service runs on
the same machine."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from bench.service.inputs import Clip

LIMIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """first_s: from the start of connecting to the end of the answer's head; headers: with names in
    lower case"""

    status: int
    headers: Mapping[str, str]
    body: bytes
    first_s: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_refusal(self) -> bool:
        """Whether it is a refusal because of load, with a time to try again."""
        return self.status in (429, 503) and self.headers.get("retry-after", "").isdecimal()


def head(method: str, path: str, headers: Mapping[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def upload_request(clip: Clip, *, key: str | None = None, **options: str) -> bytes:
    """A request with a raw body; the options are in the query. key: its Idempotency-Key"""
    query = "&".join(f"{name}={quote(value)}" for name, value in options.items())
    headers = {
        "Content-Type": "video/mp4",
        "Content-Length": str(len(clip.content)),
        "Connection": "close",
        **({} if key is None else {"Idempotency-Key": key}),
    }
    path = f"/v1/jobs?filename={quote(clip.name)}&{query}"
    return head("POST", path, headers) + clip.content


async def send(port: int, request: bytes) -> Answer:
    """Sends one request on a new connection. Raises OSError, TimeoutError, and EOFError if the
    server closes the connection before its answer is complete."""
    began = time.perf_counter()
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writing = asyncio.ensure_future(_write(writer, request))
            status, headers = await read_head(reader)
            first_s = time.perf_counter() - began
            body = b"".join([part async for part in read_body(reader, headers)])
            writing.cancel()
            return Answer(status=status, headers=headers, body=body, first_s=first_s)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


async def _write(writer: asyncio.StreamWriter, request: bytes) -> None:
    with suppress(OSError):  # the answer says why
        writer.write(request)
        await writer.drain()


async def ask(
    port: int, path: str, *, method: str = "GET", body: bytes = b"", **headers: str
) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body:
        named["Content-Length"] = str(len(body))
    return await send(port, head(method, path, {"Connection": "close", **named}) + body)


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Raises EOFError."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def read_body(
    reader: asyncio.StreamReader, headers: Mapping[str, str]
) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        return
    length = int(headers.get("content-length", "0"))
    if length:
        yield await reader.readexactly(length)


@dataclass(frozen=True, kw_only=True)
class Event:
    kind: str
    data: Any
    at_s: float


async def events(port: int, job: str) -> AsyncIterator[Event]:
    """The events of a job until its end. at_s: on the clock of time.perf_counter"""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head("GET", f"/v1/jobs/{job}/events", {}))
        _, headers = await read_head(reader)
        text = b""
        async for part in read_body(reader, headers):
            text += part
            while b"\n\n" in text:
                block, _, text = text.partition(b"\n\n")
                fields = dict(
                    line.split(": ", 1) for line in block.decode().split("\n") if line[:1] != ":"
                )
                if "event" in fields:
                    yield Event(
                        kind=fields["event"],
                        data=json.loads(fields["data"]),
                        at_s=time.perf_counter(),
                    )
    finally:
        writer.close()


async def await_end(port: int, job: str, *, limit_s: float = 300) -> Any:
    """Waits until the job has succeeded or failed, and returns it. Raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        while True:
            answer = await ask(port, f"/v1/jobs/{job}")
            if answer.status != 200 or answer.json["state"] in ("succeeded", "failed"):
                return answer.json
            await asyncio.sleep(0.05)
