"""One connection: uvicorn's protocol with additional limits.

uvicorn waits for ever for the head of a request, takes heads of any size, and waits for ever for a
client that does not read its answer, or that goes on and on with a body whose answer it has.
"""

import asyncio
import fcntl
import json
import socket
import sys
import termios

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pipeline.errors import UsageError
from serving.problems import MEDIA_TYPE, code_of, make_problem

# Of a request's head, what follows its body ("trailers") included.
MOST_HEAD_BYTES = 64 * 2**10


class _HeadTooLarge(Exception):
    """The parser makes its own error of it."""


def limited_protocol(
    *, header_s: float, unread_s: float, min_bytes_per_s: float
) -> type[HttpToolsProtocol]:
    """
    header_s: until the head of a request must be there
    unread_s: for which a client may leave an answer unread
    min_bytes_per_s: of a body whose request is answered already, looked at every `header_s`
    """

    class Protocol(HttpToolsProtocol):
        _head_due: asyncio.TimerHandle | None = None
        _read_due: asyncio.TimerHandle | None = None
        _rest_due: asyncio.TimerHandle | None = None
        _is_in_request = False
        _is_in_body = False
        _is_upgraded = False
        _num_head_bytes = 0
        _num_body_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_upgraded or self.transport.is_closing():
                return
            is_idle = self.cycle is None or self.cycle.response_complete
            if not self._is_in_request and is_idle:  # ends of lines, which begin no request
                self._await_head()
            if self._head_due is not None:
                self._num_head_bytes += len(data)
                if self._num_head_bytes > 2 * MOST_HEAD_BYTES:  # of one line that has no end
                    self.send_400_response("the head of the request is too large")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._is_in_request = True
            self._num_head_bytes = 0
            self._await_head()

        def on_url(self, url: bytes) -> None:
            self._count(url)
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(name + value)
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._head_due = _cancel(self._head_due)
            self._is_in_body = True
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._num_body_bytes += len(body)
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._is_in_request = self._is_in_body = False
            self._rest_due = _cancel(self._rest_due)
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._is_in_body and self.cycle.response_complete:  # nobody else looks at the rest
                self._await_rest()

        def handle_websocket_upgrade(self) -> None:
            """From here on it is a socket's, which has limits of its own."""
            self._is_upgraded = True
            self._head_due = _cancel(self._head_due)
            super().handle_websocket_upgrade()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._read_due is None:
                self._await_reading()

        def resume_writing(self) -> None:
            self._read_due = _cancel(self._read_due)
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_due = _cancel(self._head_due)
            self._read_due = _cancel(self._read_due)
            self._rest_due = _cancel(self._rest_due)
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """As a problem, like every other refusal."""
            body = json.dumps(make_problem(400, code_of(UsageError), msg)).encode()
            head = (
                f"HTTP/1.1 400 Bad Request\r\ncontent-type: {MEDIA_TYPE}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

        def _count(self, part: bytes) -> None:
            self._num_head_bytes += len(part)
            if self._num_head_bytes > MOST_HEAD_BYTES:
                raise _HeadTooLarge

        def _await_head(self) -> None:
            if self._head_due is None:
                self._head_due = self.loop.call_later(header_s, self.transport.close)

        def _await_rest(self) -> None:
            self._rest_due = self.loop.call_later(header_s, self._check_rest, self._num_body_bytes)

        def _check_rest(self, num_bytes_before: int) -> None:
            if self._num_body_bytes - num_bytes_before < header_s * min_bytes_per_s:
                self.transport.close()
            else:
                self._await_rest()

        def _await_reading(self) -> None:
            self._read_due = self.loop.call_later(
                unread_s, self._check_reading, _unread_bytes(self.transport)
            )

        def _check_reading(self, unread_before: int) -> None:
            if _unread_bytes(self.transport) < unread_before:  # slowly, but it is read
                self._await_reading()
            else:
                self.transport.abort()

    return Protocol


def _unread_bytes(transport: asyncio.Transport) -> int:
    """What waits here, and what the kernel has and the other side has not taken."""
    connection: socket.socket = transport.get_extra_info("socket")
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    return transport.get_write_buffer_size() + int.from_bytes(answer, sys.byteorder)


def _cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """None, which stands for no timer."""
    if timer is not None:
        timer.cancel()
    return None
