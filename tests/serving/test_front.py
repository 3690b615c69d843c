"""The front of several services, without Ray: to whom requests and sockets are handed on."""

import asyncio
import importlib.util
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("websockets", reason="the extra serve is not installed")
pytest.importorskip("aiohttp_cors", reason="ray[serve] is not installed")

import httpx2
import uvicorn
from websockets.sync import client

from serving.jobs import shard_of
from serving.live import PATH, PROTOCOL, SOCKET_SETTINGS
from serving.ray_serve import HandOn
from tests.serving.answers import wait_until
from tests.serving.test_live import KEY, Door, StandIn, rest, serving, status_of

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        importlib.util.find_spec("faster_whisper") is None,
        reason="the voice detector (extra asr) is not installed",
    ),
]


class Handle:
    """In the place of Ray's."""

    def __init__(self, address: str) -> None:
        self.address, self._address = self, address

    async def remote(self) -> str:
        await asyncio.sleep(0)
        return f"http://{self._address}"


@contextmanager
def front_of(*addresses: str) -> Iterator[str]:
    app = HandOn([Handle(each) for each in addresses])
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, **SOCKET_SETTINGS)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@dataclass
class House:
    """Two services and their front."""

    front: str
    services: list[Door]

    def ticket(self) -> str:
        headers = {"Authorization": f"Bearer {KEY}"}
        found = httpx2.post(f"http://{self.front}{PATH}/tickets", headers=headers)
        assert found.status_code == 201
        ticket: str = found.json()["ticket"]
        return ticket

    def open(self, ticket: str, **options: Any) -> Any:
        protocols: Any = [PROTOCOL, f"meld.ticket.{ticket}"]
        return client.connect(f"ws://{self.front}{PATH}", subprotocols=protocols, **options)


@pytest.fixture
def house() -> Iterator[House]:
    with ExitStack() as stack:
        services = [
            stack.enter_context(serving(StandIn(), shard=number, num_shards=2, lag_s=600))
            for number in range(2)
        ]
        front = stack.enter_context(front_of(*(each.address for each in services)))
        yield House(front, services)


def test_a_live_session_is_that_of_the_service_whose_ticket_it_has(house: House) -> None:
    tickets = [house.ticket() for _ in range(2)]  # they are given by turns
    assert {shard_of(ticket, 2) for ticket in tickets} == {0, 1}
    for ticket in tickets:
        with house.open(ticket) as session:
            assert json.loads(session.recv(timeout=10))["type"] == "session.created"
            session.send('{"type": "session.update", "words": true}')
            assert json.loads(session.recv(timeout=10))["type"] == "session.updated"
            session.send(b"\x01" + bytes(3_200))
            session.send('{"type": "session.close"}')
            events, code = rest(session)
        assert (code, events[-1]["reason"]) == (1000, "client")
        assert events[-1]["received"]["audio_ms"] == 100
    assert [len(each.dispatcher.asked) for each in house.services] == [1, 1]


def test_how_a_service_ends_a_session_is_told_its_client(house: House) -> None:
    with house.open(house.ticket()) as session:
        session.send(b"\x07")
        events, code = rest(session)
    assert (code, events[-1]["reason"]) == (1008, "refused")


def test_a_client_that_goes_leaves_nothing_open(house: House) -> None:
    for _ in range(2):
        with house.open(house.ticket()) as session:
            session.recv(timeout=10)
            session.socket.shutdown(socket.SHUT_RDWR)
    endings = [each.dispatcher.metrics.live_sessions for each in house.services]
    wait_until(lambda: all(gauge._value.get() == 0 for gauge in endings))


def test_nobody_comes_in_without_a_ticket_or_from_another_site(house: House) -> None:
    assert status_of(lambda: house.open("of-my-own")) == (401, "unauthorised")
    ticket = house.ticket()
    refused = status_of(lambda: house.open(ticket, origin="http://elsewhere.example"))
    assert refused == (403, "wrong_origin")


def test_a_session_whose_service_is_gone_is_503_and_one_that_loses_it_is_closed() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(serving(StandIn(), lag_s=600))
        front = stack.enter_context(front_of(first.address))
        house = House(front, [first])
        ticket = house.ticket()
        session = stack.enter_context(house.open(house.ticket()))
        session.recv(timeout=10)
        first.dispatcher.is_draining = True  # as it says before it goes
        events, code = rest(session)
        assert (code, events[-1]["reason"]) == (1012, "going")
        first_port = int(first.address.rpartition(":")[2])
    assert first_port
    with front_of(f"127.0.0.1:{first_port}") as front:
        assert status_of(lambda: House(front, []).open(ticket)) == (503, "busy")


def test_an_upload_whose_service_goes_in_the_middle_is_told_to_be_sent_again() -> None:
    """It took a part of it, so no other service can have it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def take_some() -> None:
            taken, _ = listener.accept()
            with taken:
                taken.recv(65_536)
                taken.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                taken.recv(65_536)

        threading.Thread(target=take_some, daemon=True).start()
        with front_of(f"127.0.0.1:{listener.getsockname()[1]}") as front:
            lost = httpx2.post(f"http://{front}/v1/jobs", content=bytes(100_000), timeout=30)
    assert (lost.status_code, lost.json()["code"]) == (503, "busy")
    assert int(lost.headers["retry-after"]) > 0
    assert "lost before it answered" in lost.json()["detail"]
