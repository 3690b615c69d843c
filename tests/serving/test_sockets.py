"""Clients that are slow, go away, or send what nobody waits for: on a socket of its own each."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.answers import parts_of, wait_until
from tests.serving.conftest import behind_a_socket

if TYPE_CHECKING:
    from serving.serve import Service

pytestmark = pytest.mark.heavy

UPLOAD = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
)


@pytest.fixture(scope="module")
def impatient(service: "Service") -> Iterator[str]:
    """The address of the same service, which waits for a slow client half a second."""
    from serving.app import create_app

    parts = parts_of(service)
    limits = replace(parts.config.limits, silence_s=0.5)
    app = create_app(replace(parts, config=replace(parts.config, limits=limits)))
    with behind_a_socket(app, header_s=0.5) as found:
        yield found


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=30)


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


def test_a_client_that_does_not_finish_its_request_head_is_disconnected(impatient: str) -> None:
    with connect(impatient) as slow:
        slow.sendall(b"GET /livez HT")
        assert answer(slow) == b""


def test_nor_is_the_second_head_of_a_connection_waited_for(impatient: str) -> None:
    with connect(impatient) as slow:
        ask(slow)
        slow.sendall(b"GET /li")
        assert answer(slow) == b""


def test_a_quick_client_is_not_disconnected(impatient: str) -> None:
    with connect(impatient) as client:
        for _ in range(10):
            time.sleep(0.06)  # longer than a head may take, in all
            ask(client)


def test_a_body_that_stops_coming_is_given_up_and_nothing_of_it_is_kept(
    impatient: str, service: "Service"
) -> None:
    with connect(impatient) as slow:
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
    deadline = time.monotonic() + 60
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
    begun: list[object] = []

    def wait(turns: object) -> list[object]:
        begun.append(turns)
        let_go.wait(60)
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
        wait_until(lambda: len(begun) == len(waiting))
        with connect(address) as other:
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
