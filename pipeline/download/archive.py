"""The members of a tar archive, read once from front to back; an archive is hostile input.

The archive's names are not trusted: `tarfile` only lists members and reads bytes; its own
extraction, which can write outside the folder (CVE-2026-11940), is not used.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, TypeVar

from pipeline.errors import InputError

_CHUNK_BYTES = 1 << 20
# A long name, or the extended header of one member; what announces more would fill the memory.
_MAX_HEADER_BYTES = 1 << 20
_BLOCK_BYTES = 512
_GZIP_MAGIC = b"\x1f\x8b"
_SHOWN_CHARS = 80

_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}

Result = TypeVar("Result")


class ArchiveError(InputError):
    """An archive that is damaged, or that holds what MELD's never do."""


class BadArchive(Exception):
    """What is wrong, without the archive's name."""


@dataclass
class Budget:
    """The limits of reading an archive, with all archives inside it.

    A byte counts at each level at which it is unpacked.
    """

    bytes_left: int
    entries_left: int

    def spend(self, num_bytes: int) -> None:
        self.bytes_left -= num_bytes
        if self.bytes_left < 0:
            raise BadArchive("it unpacks to far more than its own size")

    def enter(self) -> None:
        self.entries_left -= 1
        if self.entries_left < 0:
            raise BadArchive("it has far more entries than MELD's archives")


@dataclass(frozen=True, kw_only=True)
class Member:
    """A regular file in an archive: the parts of its name, its bytes, which can be read once."""

    parts: tuple[str, ...]
    size: int
    content: io.BufferedReader


def read_members(file: io.BufferedReader, budget: Budget) -> Iterator[Member]:
    """Regular files of a .tar or .tar.gz, in order; folders are passed over.

    Raises:
        BadArchive: a name that leads out of the archive, a link, device, pipe or sparse file, a
            budget that is spent, or an archive that is damaged or cut off.
        OSError: the file cannot be read.
    """
    stream = _Forward(file, budget)
    archive = _in_our_words(lambda: tarfile.TarFile(fileobj=stream, mode="r"))
    while True:
        stream.expect_header()
        member = _in_our_words(archive.next)
        if member is None:
            break
        stream.expect_content()
        budget.enter()
        parts = _check_name(member.name)
        if member.isdir():
            continue
        _check_kind(member)
        content = archive.extractfile(member)
        assert isinstance(content, io.BufferedReader)  # as of every regular file
        yield Member(parts=parts, size=member.size, content=content)
    stream.check_end()


def copy_chunks(content: IO[bytes]) -> Iterator[bytes]:
    """Raises BadArchive where the archive breaks off inside of the member."""
    while chunk := _in_our_words(lambda: content.read(_CHUNK_BYTES)):
        yield chunk


def shown(name: str) -> str:
    """A hostile name, fit for one line."""
    return repr(name if len(name) <= _SHOWN_CHARS else f"{name[:_SHOWN_CHARS]}...")


def _in_our_words(read: Callable[[], Result]) -> Result:
    try:
        return read()
    except RecursionError as error:  # extended headers of extended headers
        raise BadArchive("its headers are nested without end") from error
    # ValueError: also numbers that tarfile takes from a header without checking them.
    except (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError) as error:
        raise BadArchive(f"it is damaged ({error})") from error


def _check_name(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise BadArchive(f"{shown(name)} leads out of the folder")
    return path.parts


def _check_kind(member: tarfile.TarInfo) -> None:
    if member.issparse():
        raise BadArchive(f"{shown(member.name)} is a sparse file")
    if not member.isreg():
        kind = _KINDS.get(member.type, "no regular file")
        raise BadArchive(f"{shown(member.name)} is {kind}")


class _Forward:
    """What tarfile reads from: forwards alone, within the budget, headers within their own.

    `tarfile` reads a header's extension whole, whatever its size, and takes a damaged header for
    the end of the archive: both are caught here.
    """

    def __init__(self, file: io.BufferedReader, budget: Budget) -> None:
        packed = file.peek(len(_GZIP_MAGIC)).startswith(_GZIP_MAGIC)
        # Unlike tarfile's own stream, gzip compares the checksum at the end.
        self._stream: io.BufferedIOBase = gzip.GzipFile(fileobj=file, mode="rb") if packed else file
        self._budget = budget
        self._position = 0
        self._header_left: int | None = None
        self._last = b""
        self.expect_header()

    def expect_header(self) -> None:
        self._header_left = _MAX_HEADER_BYTES

    def expect_content(self) -> None:
        self._header_left = None

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise BadArchive("it is damaged (a size leads backwards)")
        while self._position < position:
            if not self._take(min(position - self._position, _CHUNK_BYTES)):
                raise BadArchive("it ends too early")

    def read(self, size: int) -> bytes:
        if self._header_left is not None:
            self._header_left -= size
            if self._header_left < 0:
                raise BadArchive(f"it has a header of more than {_MAX_HEADER_BYTES:,} bytes")
        self._last = self._take(size)
        return self._last

    def check_end(self) -> None:
        """The archive must end with its end mark, and what is packed must be whole."""
        if self._last != bytes(_BLOCK_BYTES):
            raise BadArchive("it is damaged or ends too early (no end mark)")
        while self._take(_CHUNK_BYTES):
            pass

    def write(self, data: bytes) -> int:  # which tarfile wants its files to have
        raise io.UnsupportedOperation("an archive is only read")

    def close(self) -> None:
        self._stream.close()

    def _take(self, size: int) -> bytes:
        try:
            taken = self._stream.read(size)
        except EOFError as error:
            raise BadArchive("it ends too early") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise BadArchive(f"it is damaged ({error})") from error
        self._position += len(taken)
        self._budget.spend(len(taken))
        return taken
