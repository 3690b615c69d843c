"""Many connections in one thread with little work, so that the times are those of the service.

A time is taken when the kernel reports that a socket can be read.
"""

import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

SECONDS_BETWEEN_PROBES = 0.02
_ENOUGH = 2**18


@dataclass
class Wire:
    """A connection with one request.

    first_s:  from the first byte sent to the first byte received; None without an answer
    received: the bytes received; is_reset: the server reset the connection
    """

    request: bytes
    first_s: float | None = None
    received: bytes = b""
    is_reset: bool = False
    num_sent: int = 0
    began_s: float = field(default=0, repr=False)

    @property
    def status(self) -> int | None:
        head = self.received[:12].split()
        return int(head[1]) if len(head) > 1 else None

    @property
    def is_refusal(self) -> bool:
        head = self.received.partition(b"\r\n\r\n")[0].lower()
        return self.status in (429, 503) and b"\r\nretry-after: " in head


@dataclass(frozen=True, kw_only=True)
class Burst:
    wires: list[Wire]
    probes: list[Wire]


def burst(port: int, requests: Sequence[bytes], probe: bytes, *, limit_s: float = 30) -> Burst:
    """Sends all requests at once, and the probe every 20 ms, each on a new connection, until all
    are answered and closed, or the time is over."""
    wires = [Wire(request) for request in requests]
    probes: list[Wire] = []
    with selectors.DefaultSelector() as selector:
        for wire in wires:
            _connect(selector, wire, port)
        deadline, next_probe = time.perf_counter() + limit_s, 0.0
        while (selector.get_map() or not probes) and time.perf_counter() < deadline:
            now = time.perf_counter()
            is_over = all(wire.first_s is not None or wire.is_reset for wire in wires)
            if now >= next_probe and not is_over:
                probes.append(Wire(probe))
                _connect(selector, probes[-1], port)
                next_probe = now + SECONDS_BETWEEN_PROBES
            for key, mask in selector.select(SECONDS_BETWEEN_PROBES):
                _serve(selector, key.fileobj, key.data, mask)  # type: ignore[arg-type]
        for key in list(selector.get_map().values()):
            _hang_up(selector, key.fileobj)  # type: ignore[arg-type]
    return Burst(wires=wires, probes=probes)


def _connect(selector: selectors.BaseSelector, wire: Wire, port: int) -> None:
    connection = socket.socket()
    connection.setblocking(False)
    connection.connect_ex(("127.0.0.1", port))
    selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, wire)


def _serve(
    selector: selectors.BaseSelector, connection: socket.socket, wire: Wire, mask: int
) -> None:
    try:
        if mask & selectors.EVENT_WRITE:
            wire.began_s = wire.began_s or time.perf_counter()
            part = wire.request[wire.num_sent : wire.num_sent + _ENOUGH]
            wire.num_sent += connection.send(part)
            if wire.num_sent == len(wire.request):
                selector.modify(connection, selectors.EVENT_READ, wire)
        if mask & selectors.EVENT_READ:
            part = connection.recv(_ENOUGH)
            if wire.first_s is None and part:
                wire.first_s = time.perf_counter() - wire.began_s
            wire.received += part
            if not part:
                _hang_up(selector, connection)
    except BlockingIOError:
        pass
    except OSError:
        wire.is_reset = not wire.received
        _hang_up(selector, connection)


def _hang_up(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    with suppress(KeyError):
        selector.unregister(connection)
    connection.close()
