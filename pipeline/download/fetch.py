"""Downloads one large file over HTTP and recovers from failures of server and network.

Downloaded bytes are kept in a `.part` file and not requested again if the server supports ranges.
Which bytes are right is decided by the checksum alone, so bytes may come from several addresses.
"""

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, NoReturn

import requests
import urllib3

from pipeline.errors import StorageError
from pipeline.system.one_line import one_line, without_secrets

logger = logging.getLogger(__name__)

OnBytes = Callable[[int, int | None], None]  # there, in all (None: the server does not say)

_CHUNK_BYTES = 1 << 20
_CONNECT_S = 10.0
_LONGEST_WAIT_S = 30.0
# A server that is asked too often may say when to come again; for hours nobody waits.
_LONGEST_RETRY_AFTER_S = 300
# Less than this is as good as nothing: MELD would take four months.
_LEAST_BYTES_PER_S = 1024
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_GZIP_MAGIC = b"\x1f\x8b"
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-\d+|\*)/(\d+|\*)")
_SHOWN_CHARS = 200


class DownloadFailed(StorageError):
    """No address gave the right file."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the file must be. `size` in bytes, None where it is not known before."""

    sha256: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for a server.

    stall_s:  seconds with (almost) no bytes after which a connection is closed
    attempts: number of attempts in a row without a new byte after which a URL is given up
    wait_s:   seconds to wait before the second attempt; doubled before each further one
    """

    stall_s: float = 30.0
    attempts: int = 4
    wait_s: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.stall_s <= 3600 or self.attempts < 1 or not 0 <= self.wait_s <= 60:
            raise ValueError(
                "patience takes stall_s in (0, 3600], attempts of at least 1 and wait_s in [0, 60]"
            )


class _TryAgain(Exception):
    """The connection or the server failed in a way that may pass, in `after_s` if it says so."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


class _WrongFile(Exception):
    """This address is of no use."""


def fetch(
    urls: Sequence[str],
    part: Path,
    expected: Expected,
    *,
    patience: Patience,
    on_bytes: OnBytes,
    on_checked: OnBytes,
    on_size: Callable[[int], None],
) -> str:
    """Fills `part` from the first address that gives the right file, which is returned; goes on
    where it stands.

    Args:
        on_bytes, on_checked: told what has arrived, and what of it was compared with the checksum.
        on_size: told how many bytes the file has before the first is written; may raise.

    Raises:
        DownloadFailed: no address gives the file; each is named with what it did.
        StorageError: the disk.
    """
    problems = []
    for url in urls:
        source = _Source(
            url=url,
            part=part,
            expected=expected,
            patience=patience,
            on_bytes=on_bytes,
            on_checked=on_checked,
            on_size=on_size,
        )
        have = part.stat().st_size if part.exists() else 0
        logger.info("asking %s; %s bytes are here", without_secrets(url), f"{have:,}")
        try:
            source.complete()
            return url
        except _WrongFile as problem:
            problems.append(f"{without_secrets(url)}: {_tell(problem)}")
            logger.warning("%s", problems[-1])
        except OSError as error:
            raise StorageError(f"{part}: cannot be written: {error.strerror or error}") from error
    kept = "the downloaded bytes are kept" if part.exists() else "no bytes are kept"
    raise DownloadFailed(
        f"the archive could not be downloaded ({'; '.join(problems)}); {kept}: run the same "
        "command again, name another address with --url, or get the file in another way and pass "
        "it with --from"
    )


def hash_file(path: Path, on_bytes: OnBytes = lambda *_: None) -> str:
    """SHA-256, hex. Raises OSError."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(file.tell(), size)
    return digest.hexdigest()


@dataclass(kw_only=True)
class _Source:
    """One address, and the part file that it fills; fields as `fetch` takes them."""

    url: str
    part: Path
    expected: Expected
    patience: Patience
    on_bytes: OnBytes
    on_checked: OnBytes
    on_size: Callable[[int], None]
    asks_for_ranges: bool = True

    def complete(self) -> None:
        """Raises _WrongFile; OSError from the disk."""
        resumed = self._have() > 0
        if resumed and self.expected.size is None and self._is_right():
            return  # complete, and the server need not be there any more
        self._fill()
        if self._is_right():
            return
        self.part.unlink()
        if not resumed:
            self._refuse_sum()
        # The wrong bytes may be older than this address's.
        logger.warning(
            "the bytes that were downloaded before are damaged; downloading the whole file again"
        )
        self._fill()
        if not self._is_right():
            self.part.unlink()
            self._refuse_sum()

    def _refuse_sum(self) -> NoReturn:
        raise _WrongFile(f"sent a file whose SHA-256 is not {self.expected.sha256[:12]}...")

    def _is_right(self) -> bool:
        return hash_file(self.part, self.on_checked) == self.expected.sha256

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _fill(self) -> None:
        most, failures = self._have(), 0
        while self.expected.size is None or self._have() != self.expected.size:
            try:
                self._request()
                return
            except (_TryAgain, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                failures = 1 if self._have() > most else failures + 1
                most = max(most, self._have())
                if isinstance(error, requests.exceptions.InvalidURL) or failures >= (
                    self.patience.attempts
                ):
                    raise _WrongFile(
                        f"gave up after {failures} attempts ({_tell(error)})"
                    ) from error
                wait_s = min(self.patience.wait_s * 2 ** (failures - 1), _LONGEST_WAIT_S)
                if isinstance(error, _TryAgain):
                    wait_s = max(wait_s, error.after_s)
                told = f"{without_secrets(self.url)}: {_tell(error)}"
                logger.warning("%s; again in %.0f s", told, wait_s)
                time.sleep(wait_s)

    def _request(self) -> None:
        """One request, to its end. Raises _TryAgain, _WrongFile or what requests raises."""
        have = self._have()
        if self.expected.size is not None and have > self.expected.size:
            self.part.unlink()
            have = 0
        # Of a compressed transfer, ranges would be of other bytes. (Some servers call the archive's
        # own packing an encoding: nothing is decoded here, whatever they call it.)
        headers = {"Accept-Encoding": "identity", "User-Agent": f"meld/{version('meld')}"}
        if have and self.asks_for_ranges:
            headers["Range"] = f"bytes={have}-"
        with self._ask(headers) as response:
            start, total = self._read_headers(response, have)
            if start == total:
                return
            self._receive(response, start, total)

    def _ask(self, headers: dict[str, str]) -> requests.Response:
        try:
            return requests.get(
                self.url,
                headers=headers,
                stream=True,
                timeout=(_CONNECT_S, self.patience.stall_s),
                hooks={"response": _leave_redirection_unread},
            )
        except requests.RequestException:
            raise
        # A redirection to what is no address; certificates that are configured and not there.
        except (ValueError, OSError) as error:
            raise _WrongFile(f"cannot be asked ({error})") from error

    def _read_headers(self, response: requests.Response, have: int) -> tuple[int, int | None]:
        """Where the reply begins, and how long the whole file is."""
        status = response.status_code
        if status in _TRY_AGAIN:
            after_s = min(_to_int(response.headers.get("Retry-After")) or 0, _LONGEST_RETRY_AFTER_S)
            raise _TryAgain(f"answers {status} {response.reason}", after_s)
        if status not in (200, 206, 416):
            raise _WrongFile(f"answers {status} {response.reason}")
        start, total = 0, _to_int(response.headers.get("Content-Length"))
        if status != 200:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None:
                self._forgo_ranges(
                    f"answers {status} without saying which part of the file that is"
                )
            start, total = int(match[1] or have), _to_int(match[2])
            if start > have or (status == 416 and total != have):
                self._forgo_ranges(f"has no bytes from {have:,} on")
        if total is None:
            total = self.expected.size
        elif self.expected.size not in (None, total):
            raise _WrongFile(f"has {total:,} bytes, the archive {self.expected.size:,}")
        if total == 0:
            raise _WrongFile("has no bytes")
        if total is not None:
            self.on_size(total)
        return start, total

    def _forgo_ranges(self, why: str) -> NoReturn:
        """What is there stays: it is recognised while it comes again."""
        self.asks_for_ranges = False
        raise _TryAgain(why)

    def _receive(self, response: requests.Response, start: int, total: int | None) -> None:
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.part.touch()
        with self.part.open("r+b") as file:
            file.seek(start)
            for chunk in self._chunks(response):
                if file.tell() == 0 and not chunk.startswith(_GZIP_MAGIC[: len(chunk)]):
                    raise _WrongFile(
                        f"does not send a gzip archive; its first bytes are {chunk[:20]!r}"
                    )
                _write_or_recognise(file, chunk)
                if total is not None and file.tell() > total:
                    raise _WrongFile(f"sends more than the {total:,} bytes of the archive")
                self.on_bytes(file.tell(), total)
            if total is not None and file.tell() < total:
                raise _TryAgain(f"ended {total - file.tell():,} bytes too early")

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        """What arrives, as it arrives; raises _TryAgain where that is hardly anything."""
        window_s = self.patience.stall_s
        began, arrived = time.monotonic(), 0
        # Not `iter_content`: it waits for whole pieces, and loses the last one of a cut connection.
        while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
            yield chunk
            arrived += len(chunk)
            if time.monotonic() - began > window_s:
                if arrived < window_s * _LEAST_BYTES_PER_S:
                    raise _TryAgain(f"sent only {arrived:,} bytes in {window_s:.0f} s")
                began, arrived = time.monotonic(), 0


def _leave_redirection_unread(response: requests.Response, **_: object) -> None:
    """requests would read all that comes with a redirection, and that may have no end."""
    if response.is_redirect:
        response.raw.close()


def _write_or_recognise(file: IO[bytes], chunk: bytes) -> None:
    """Bytes that are there already (a server without ranges sends all of them again) stay; from
    the first that differs on, what is there is replaced."""
    at = file.tell()
    there = file.read(len(chunk))
    if there == chunk:
        return
    file.seek(at)
    file.write(chunk)
    if not chunk.startswith(there):
        file.truncate()


def _to_int(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 20 else None


def _tell(error: Exception) -> str:
    """The innermost reason, as the outer ones are wrapping; servers may have worded it."""
    reason: BaseException = error
    while True:
        inner = getattr(reason, "reason", None) or next(
            (arg for arg in reason.args if isinstance(arg, BaseException)), None
        )
        if not isinstance(inner, BaseException) or inner is reason:
            told = one_line(without_secrets(str(reason))).strip() or type(reason).__name__
            return told if len(told) <= _SHOWN_CHARS else f"{told[:_SHOWN_CHARS]}..."
        reason = inner
