"""Clients that are slow, go away, or send what nobody waits for: on a socket of its own each."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from serving.serve import Service

pytestmark = pytest.mark.heavy

UPLOAD = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
)


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10)


def answer(client: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    content = b""
    while part := client.recv(2**16):
        content += part
    return content


def ask(client: socket.socket) -> None:
    """Whether the service lives, on a connection that goes on."""
    client.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    content = b""
    while not content.endswith(b"}"):
        part = client.recv(2**16)
        assert part, content
        content += part


def incoming(service: "Service") -> list[Path]:
    return list((service.store.folder("x").path.parents[1] / "incoming").iterdir())


def test_a_client_that_does_not_finish_its_request_head_is_disconnected(address: str) -> None:
    with connect(address) as slow:
        slow.sendall(b"GET /livez HT")
        assert answer(slow) == b""


def test_nor_is_the_second_head_of_a_connection_waited_for(address: str) -> None:
    with connect(address) as slow:
        ask(slow)
        slow.sendall(b"GET /li")
        assert answer(slow) == b""


def test_a_quick_client_is_not_disconnected(address: str) -> None:
    with connect(address) as client:
        for _ in range(3):
            time.sleep(0.4)  # longer than a head may take, in all
            ask(client)


def test_a_body_that_stops_coming_is_given_up_and_nothing_of_it_is_kept(
    address: str, service: "Service"
) -> None:
    with connect(address) as slow:
        slow.sendall(UPLOAD % (b"video/mp4", 1000) + b"a few bytes")
        told = answer(slow)
    assert told.startswith(b"HTTP/1.1 408 ")
    assert b"too_slow" in told
    assert incoming(service) == []


def test_of_a_client_that_goes_in_the_middle_nothing_is_kept_and_its_place_is_free(
    address: str, service: "Service", send: Callable[..., Any]
) -> None:
    for _ in range(6):
        with connect(address) as client:
            client.sendall(UPLOAD % (b"video/mp4", 100_000) + b"x" * 5000)
    deadline = time.monotonic() + 10
    while send(text="Hi").status_code != 202 or incoming(service):  # until that is noticed
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "length", "status"), [(b"video/mp4", 10**9, b"413"), (b"text/html", 10**9, b"415")]
)
def test_a_refusal_comes_before_the_body(
    address: str, kind: bytes, length: int, status: bytes
) -> None:
    with connect(address) as client:
        client.sendall(UPLOAD % (kind, length))
        assert client.recv(12) == b"HTTP/1.1 " + status


def test_many_waiting_requests_do_not_block_others(
    address: str, service: "Service", clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()

    def wait(turns: object) -> list[object]:
        let_go.wait(30)
        return []

    monkeypatch.setattr(service.dispatcher, "read_words", wait)
    words = b'{"turns": [{"text": "Hi"}]}'
    request = (
        b"POST /v1/text HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(words), words)
    )
    waiting = [connect(address) for _ in range(50)]
    try:
        for client in waiting:
            client.sendall(request)
        time.sleep(0.3)
        with connect(address) as other:
            other.settimeout(3)
            other.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert other.recv(12) == b"HTTP/1.1 200"
        with connect(address) as other:
            content = clip.read_bytes()
            other.sendall(UPLOAD % (b"video/mp4", len(content)) + content)
            assert other.recv(12) == b"HTTP/1.1 202"
    finally:
        let_go.set()
        for client in waiting:
            client.close()
