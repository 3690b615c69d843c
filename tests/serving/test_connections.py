"""What one connection may do: heads that are too large, answers that nobody reads."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

import uvicorn

from serving.connections import MOST_HEAD_BYTES, limited_protocol

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

LARGE = 32 * 2**20  # more than the kernel keeps of an answer that nobody reads
PIECE = b"x" * 2**16
ASK = b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def app(scope: "Scope", receive: "Receive", send: "Send") -> None:
    """Answers with LARGE bytes at /large, with none at /at-once before it reads what is sent, else
    with what was sent."""
    body, more = b"", scope["path"] != "/at-once"
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    pieces = [PIECE] * (LARGE // len(PIECE)) if scope["path"] == "/large" else [body]
    length = str(sum(map(len, pieces))).encode()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]}
    )
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextmanager
def listening(*, header_s: float, unread_s: float) -> Iterator[uvicorn.Server]:
    config = uvicorn.Config(
        app,
        http=limited_protocol(header_s=header_s, unread_s=unread_s, min_bytes_per_s=16),
        lifespan="off",
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.port = listener.getsockname()[1]  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield server
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def connected(server: Any) -> Iterator[socket.socket]:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**12)
        client.settimeout(30)
        client.connect(("127.0.0.1", server.port))
        yield client


@pytest.fixture(scope="module")
def server() -> Iterator[uvicorn.Server]:
    with listening(header_s=0.5, unread_s=0.5) as started:
        yield started


@pytest.fixture
def client(server: uvicorn.Server) -> Iterator[socket.socket]:
    with connected(server) as client:
        yield client


@pytest.fixture(scope="module")
def patient_server() -> Iterator[uvicorn.Server]:
    with listening(header_s=30, unread_s=1) as started:
        yield started


@pytest.fixture
def patient_client(patient_server: uvicorn.Server) -> Iterator[socket.socket]:
    with connected(patient_server) as client:
        yield client


def answer(client: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    content = b""
    with suppress(ConnectionError):  # what it had not read yet breaks the connection off
        while part := client.recv(2**16):
            content += part
    return content


def await_none(server: uvicorn.Server) -> None:
    """Until the server has no connection."""
    deadline = time.monotonic() + 30
    while server.server_state.connections or server.server_state.tasks:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_that_does_not_read_its_answer_is_disconnected(
    server: uvicorn.Server, client: socket.socket
) -> None:
    client.sendall(ASK % b"/large")
    assert client.recv(12) == b"HTTP/1.1 200"
    await_none(server)


def test_a_slow_reader_gets_the_whole_answer(patient_client: socket.socket) -> None:
    client = patient_client
    client.sendall(ASK % b"/large")
    head, _, first = client.recv(2**12).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    read, began = len(first), time.monotonic()
    while read < LARGE:
        if time.monotonic() - began < 1.2:  # longer than an answer may be left unread
            time.sleep(0.05)
        part = client.recv(2**18)
        assert part, f"hung up on after {read} bytes"
        read += len(part)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * MOST_HEAD_BYTES + b" HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-One: 12345678\r\n" * (MOST_HEAD_BYTES // 8),
        b"GET / HTTP/1.1\r\nX-One: " + b"x" * 6 * MOST_HEAD_BYTES,
        b"GET / HTTP/1.1\r\n" + b"x" * 6 * MOST_HEAD_BYTES,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        + b"X-One: 12345678\r\n" * (MOST_HEAD_BYTES // 8),
    ],
    ids=["address", "many lines", "one line", "a name", "trailers"],
)
def test_a_head_that_is_too_large_is_refused(patient_client: socket.socket, head: bytes) -> None:
    """At once, and not because it takes too long."""
    with suppress(ConnectionError):
        patient_client.sendall(head)
    told = answer(patient_client)
    assert told.startswith(b"HTTP/1.1 400 "), told


def test_what_is_no_request_is_refused_as_a_problem(patient_client: socket.socket) -> None:
    patient_client.sendall(b"hello\r\n\r\n")
    head, _, body = answer(patient_client).partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "usage_error"


def test_ends_of_lines_keep_no_connection_open(
    server: uvicorn.Server, client: socket.socket
) -> None:
    began = time.monotonic()
    with suppress(OSError):
        while time.monotonic() - began < 30:
            client.sendall(b"\r\n")
            time.sleep(0.1)
    assert time.monotonic() - began < 20


def test_requests_follow_one_another_on_a_connection(client: socket.socket) -> None:
    for _ in range(10):
        time.sleep(0.06)  # longer than a head may take, in all
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")
        content = b""
        while not content.endswith(b"hello"):
            part = client.recv(2**12)
            assert part, content
            content += part


def test_a_body_whose_request_is_answered_may_not_drip(
    server: uvicorn.Server, client: socket.socket
) -> None:
    client.sendall(b"POST /at-once HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n")
    assert client.recv(12) == b"HTTP/1.1 200"
    deadline = time.monotonic() + 30
    with suppress(ConnectionError):
        while server.server_state.connections:
            client.sendall(b"x")
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_body_that_comes_at_a_good_speed_is_read_after_its_answer_and_so_is_the_next_request(
    client: socket.socket,
) -> None:
    client.sendall(b"POST /at-once HTTP/1.1\r\nHost: localhost\r\nContent-Length: 70\r\n\r\n")
    for _ in range(7):
        client.sendall(b"x" * 10)
        time.sleep(0.1)
    client.sendall(b"POST /b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nnext")
    answered = b""
    while not answered.endswith(b"next"):
        part = client.recv(2**16)
        assert part, answered
        answered += part
    assert answered.count(b"HTTP/1.1 200") == 2
