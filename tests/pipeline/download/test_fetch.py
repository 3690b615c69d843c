"""One file over HTTP from servers that cut, stall, lie, crawl or know no ranges: the right file or
a clear error, never a wrong file. Real sockets, a real server."""

import gzip
import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.download.fetch import DownloadFailed, Expected, Patience, fetch
from pipeline.errors import StorageError

CONTENT = gzip.compress(random.Random(3).randbytes(300_000), mtime=0)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATIENT = Patience(stall_s=30, attempts=3, wait_s=0)
IMPATIENT = Patience(stall_s=0.4, attempts=3, wait_s=0)  # for servers that stall


class Reply:
    """What a server does with one request; the plain one is a good server."""

    def __init__(
        self,
        *,
        content: bytes = CONTENT,
        status: int | None = None,
        ranges: bool = True,
        cut_after: int | None = None,
        stall_after: int | None = None,
        pause_s: float = 0.0,
        piece: int = 65536,
        length: int | None = None,
        chunked: bool = False,
        headers: dict[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        self.content = content
        self.status = status
        self.ranges = ranges
        self.cut_after = cut_after
        self.stall_after = stall_after
        self.pause_s = pause_s
        self.piece = piece
        self.length = length
        self.chunked = chunked
        self.headers = headers or {}
        self.reason = reason

    def answer(self, handler: BaseHTTPRequestHandler, stop: threading.Event) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.ranges else 0
        body, headers = self.content[start:], {}
        status = 206 if asked and self.ranges else 200
        if status == 206:
            whole = len(self.content)
            headers["Content-Range"] = f"bytes {start}-{whole - 1}/{whole}"
        if status == 206 and not body:
            status, headers = 416, {"Content-Range": f"bytes */{len(self.content)}"}
        if self.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) if self.length is None else self.length)
        if self.reason is not None:
            status = 404
        handler.send_response(self.status or status, self.reason)
        for name, value in {**headers, **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        self._send(handler, body, stop)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, stop: threading.Event) -> None:
        end = len(body)
        for limit in (self.cut_after, self.stall_after):
            end = end if limit is None else min(end, limit)
        for at in range(0, end, self.piece):
            piece = body[at : min(at + self.piece, end)]
            if self.chunked:
                piece = b"%x\r\n%s\r\n" % (len(piece), piece)
            handler.wfile.write(piece)
            handler.wfile.flush()
            if stop.wait(self.pause_s):
                return
        if self.chunked and end == len(body):
            handler.wfile.write(b"0\r\n\r\n")
        if self.stall_after is not None:
            stop.wait(30)


class Server:
    """Answers request n with `replies[n]`, and every later one with the last."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies = replies
        self.asked: list[str | None] = []
        self._stop = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                number = len(server.asked)
                server.asked.append(self.headers.get("Range"))
                self.close_connection = True
                reply = server.replies[min(number, len(server.replies) - 1)]
                with suppress(ConnectionError):  # a stalled connection is given up
                    reply.answer(self, server._stop)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/MELD.Raw.tar.gz"

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[Server] = []

    def start(*replies: Reply) -> Server:
        servers.append(Server(replies))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "archive.part"


def get(
    part: Path,
    *servers: Server,
    size: int | None = len(CONTENT),
    patience: Patience = PATIENT,
    on_size: Callable[[int], None] = lambda total: None,
) -> str:
    return fetch(
        [server.url for server in servers],
        part,
        Expected(sha256=SHA256, size=size),
        patience=patience,
        on_bytes=lambda *_: None,
        on_checked=lambda *_: None,
        on_size=on_size,
    )


def test_a_good_server_gives_the_file_in_one_request(serve: Serve, part: Path) -> None:
    server = serve(Reply())
    assert get(part, server) == server.url
    assert part.read_bytes() == CONTENT
    assert server.asked == [None]


def test_what_has_arrived_is_not_asked_for_again(serve: Serve, part: Path) -> None:
    part.write_bytes(CONTENT[:123_456])
    server = serve(Reply())
    get(part, server)
    assert part.read_bytes() == CONTENT
    assert server.asked == ["bytes=123456-"]


def test_a_complete_file_is_only_checked(serve: Serve, part: Path) -> None:
    part.write_bytes(CONTENT)
    server = serve(Reply())
    get(part, server)
    assert server.asked == []


def test_a_server_that_cuts_every_connection_still_gives_the_file(serve: Serve, part: Path) -> None:
    server = serve(Reply(cut_after=40_000))
    get(part, server)
    assert part.read_bytes() == CONTENT
    assert server.asked == [None, *(f"bytes={at}-" for at in range(40_000, len(CONTENT), 40_000))]


def test_a_server_without_ranges_may_be_cut_as_well(serve: Serve, part: Path) -> None:
    server = serve(
        Reply(ranges=False, cut_after=100_000),
        Reply(ranges=False, cut_after=200_000),
        Reply(ranges=False),
    )
    get(part, server)
    assert part.read_bytes() == CONTENT


def test_a_server_that_always_cuts_at_the_same_place_is_given_up_with_what_arrived(
    serve: Serve, part: Path
) -> None:
    server = serve(Reply(ranges=False, cut_after=100_000))
    with pytest.raises(DownloadFailed, match=r"gave up after 3 attempts.*bytes are kept"):
        get(part, server)
    assert part.read_bytes() == CONTENT[:100_000]


@pytest.mark.heavy
def test_a_stalling_server_is_left_and_asked_for_the_rest(serve: Serve, part: Path) -> None:
    server = serve(Reply(stall_after=100_000, piece=100_000), Reply())
    get(part, server, patience=IMPATIENT)
    assert part.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-"]


@pytest.mark.heavy
def test_a_server_that_never_says_a_word_is_given_up(serve: Serve, part: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"gave up after 3 attempts .*timed out"):
        get(part, serve(Reply(stall_after=0)), patience=IMPATIENT)


@pytest.mark.heavy
def test_a_slow_server_gives_the_file(serve: Serve, part: Path) -> None:
    get(part, serve(Reply(piece=30_000, pause_s=0.1)), patience=IMPATIENT)
    assert part.read_bytes() == CONTENT


@pytest.mark.heavy
def test_a_server_that_drips_is_as_good_as_stalled(serve: Serve, part: Path) -> None:
    """A byte now and then resets the timeout of every read."""
    server = serve(Reply(piece=1, pause_s=0.05, cut_after=12), Reply())
    began = time.monotonic()
    get(part, server, patience=IMPATIENT)
    assert part.read_bytes() == CONTENT
    assert len(server.asked) > 1
    assert time.monotonic() - began < 10


def test_wrong_bytes_never_become_the_file(serve: Serve, part: Path) -> None:
    wrong = bytearray(CONTENT)
    wrong[200_000] ^= 1
    server = serve(Reply(content=bytes(wrong)))
    with pytest.raises(DownloadFailed, match=r"SHA-256 is not .* no bytes are kept"):
        get(part, server)
    assert not part.exists()


def test_after_wrong_bytes_the_next_address_is_asked_for_all_of_it(
    serve: Serve, part: Path
) -> None:
    wrong = bytearray(CONTENT)
    wrong[200_000] ^= 1
    bad, good = serve(Reply(content=bytes(wrong))), serve(Reply())
    assert get(part, bad, good) == good.url
    assert part.read_bytes() == CONTENT
    assert good.asked == [None]


def test_a_damaged_beginning_is_found_and_all_of_it_fetched_anew(serve: Serve, part: Path) -> None:
    part.write_bytes(CONTENT[:1000] + b"\0" + CONTENT[1001:50_000])
    server = serve(Reply())
    get(part, server)
    assert part.read_bytes() == CONTENT
    assert server.asked == ["bytes=50000-", None]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(status=404), "answers 404"),
        (Reply(content=b"<!doctype html><p>Sign in", chunked=True), "not send a gzip archive"),
        (Reply(content=CONTENT[:-1]), "bytes, the archive"),
        (Reply(content=CONTENT + b"x"), "bytes, the archive"),
        (Reply(content=CONTENT + b"x" * 9, chunked=True), "sends more than"),
        (Reply(content=CONTENT[:-9], chunked=True), "bytes, the archive"),
        (Reply(status=503), "gave up after 3 attempts .*503"),
        (Reply(length=len(CONTENT) * 2), "bytes, the archive"),
        (Reply(status=302, headers={"Location": "http://[::1"}), "cannot be asked"),
        (Reply(status=302, headers={"Location": "\xff\xfe"}), "cannot be asked"),
        (Reply(status=302, headers={"Location": "file:///etc/passwd"}), "No connection adapters"),
        (Reply(reason="gone\rmeld: all is well \x1b[2J"), r"gone\\rmeld.*\\x1b"),
        (Reply(reason="x" * 60_000), r"x{100}\.\.\."),
    ],
)
def test_what_is_no_such_file_is_refused_in_one_line(
    serve: Serve, part: Path, reply: Reply, words: str
) -> None:
    with pytest.raises(DownloadFailed, match=words) as caught:
        get(part, serve(reply))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert "--from" in str(caught.value)
    assert not part.exists() or CONTENT.startswith(part.read_bytes()) or reply.chunked


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
def test_a_server_that_calls_the_archives_packing_an_encoding_gives_the_file(
    serve: Serve, part: Path, encoding: str
) -> None:
    """As Apache does for .gz files where it is told to."""
    get(part, serve(Reply(headers={"Content-Encoding": encoding}, cut_after=200_000)))
    assert part.read_bytes() == CONTENT


def test_a_server_that_was_busy_is_asked_again(serve: Serve, part: Path) -> None:
    get(part, serve(Reply(status=503), Reply(status=429), Reply()))
    assert part.read_bytes() == CONTENT


@pytest.mark.heavy
def test_a_server_that_says_when_to_come_again_is_waited_for(serve: Serve, part: Path) -> None:
    began = time.monotonic()
    get(part, serve(Reply(status=429, headers={"Retry-After": "1"}), Reply()))
    assert part.read_bytes() == CONTENT
    assert time.monotonic() - began > 1


@pytest.mark.heavy
def test_a_complete_file_of_unknown_size_needs_no_server(part: Path) -> None:
    part.write_bytes(CONTENT)
    server = Server([Reply()])
    server.close()
    get(part, server, size=None)
    assert part.read_bytes() == CONTENT


def test_a_file_sent_without_a_length_is_whole(serve: Serve, part: Path) -> None:
    get(part, serve(Reply(chunked=True)), size=None)
    assert part.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "odd",
    [
        Reply(status=206, headers={"Content-Range": "none of your business"}),
        Reply(status=206, headers={"Content-Range": f"bytes 60000-{len(CONTENT)}/*"}),
        Reply(status=416, headers={"Content-Range": f"bytes */{len(CONTENT)}"}),
        Reply(status=206, headers={"Content-Range": f"bytes {'1' * 5000}-2/3"}),
    ],
)
def test_an_odd_answer_about_ranges_costs_nothing_that_has_arrived(
    serve: Serve, part: Path, odd: Reply
) -> None:
    """The next request asks for no range, and what is there is recognised."""
    part.write_bytes(CONTENT[:50_000])
    server = serve(odd, Reply(ranges=False, cut_after=40_000), Reply(ranges=False))
    get(part, server)
    assert part.read_bytes() == CONTENT
    assert server.asked == ["bytes=50000-", None, None]


def test_a_reply_that_begins_earlier_than_asked_is_used(serve: Serve, part: Path) -> None:
    part.write_bytes(CONTENT[:50_000])
    early = Reply(
        content=CONTENT[40_000:],
        ranges=False,
        status=206,
        headers={"Content-Range": f"bytes 40000-{len(CONTENT) - 1}/{len(CONTENT)}"},
    )
    get(part, serve(early))
    assert part.read_bytes() == CONTENT


def test_a_redirection_is_followed(serve: Serve, part: Path) -> None:
    good = serve(Reply())
    away = serve(Reply(status=302, content=b"", headers={"Location": good.url}))
    get(part, away)
    assert part.read_bytes() == CONTENT


def test_nobody_waits_for_what_a_redirection_says_beside_its_address(
    serve: Serve, part: Path
) -> None:
    good = serve(Reply())
    away = serve(Reply(status=302, stall_after=10, headers={"Location": good.url}))
    get(part, away, patience=IMPATIENT)
    assert part.read_bytes() == CONTENT


def test_nothing_is_written_where_the_size_is_refused(serve: Serve, part: Path) -> None:
    def refuse(total: int) -> None:
        raise StorageError(f"{total} bytes are too many")

    with pytest.raises(StorageError, match=f"{len(CONTENT)} bytes are too many"):
        get(part, serve(Reply()), on_size=refuse)
    assert not part.exists()


def test_an_empty_file_is_refused_where_no_size_is_known(serve: Serve, part: Path) -> None:
    with pytest.raises(DownloadFailed, match="has no bytes"):
        get(part, serve(Reply(content=b"")), size=None)


@pytest.mark.heavy
def test_certificates_that_are_configured_and_not_there_are_no_matter_of_the_disk(
    part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere")
    server = Server([Reply()])
    server.close()
    server.url = server.url.replace("http:", "https:")
    with pytest.raises(DownloadFailed, match=r"cannot be asked .*CA certificate bundle"):
        get(part, server)


@pytest.mark.heavy
def test_an_address_where_nobody_listens_is_named(part: Path) -> None:
    server = Server([Reply()])
    server.close()
    with pytest.raises(DownloadFailed, match=rf"{server.url}: gave up .*refused"):
        get(part, server)


def test_a_part_of_something_larger_is_thrown_away(serve: Serve, part: Path) -> None:
    part.write_bytes(bytes(len(CONTENT) + 1))
    get(part, serve(Reply()))
    assert part.read_bytes() == CONTENT


def test_a_disk_that_cannot_be_written_is_a_storage_error(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        get(tmp_path / "file" / "archive.part", serve(Reply()))


def test_impossible_patience_is_refused() -> None:
    for wrong in ({"stall_s": 0.0}, {"attempts": 0}, {"wait_s": -1.0}, {"stall_s": float("nan")}):
        with pytest.raises(ValueError, match="patience takes"):
            Patience(**wrong)
