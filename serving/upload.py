"""Receives an upload, a raw body or a form, and writes it to the disk as it arrives.

Nothing is held in memory but a chunk, and nothing is written elsewhere than into the job's folder.
"""

import os
import re
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from anyio import to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from pipeline.errors import StorageError, UsageError
from pipeline.system.one_line import one_line
from serving.admission import check_kind
from serving.config import Limits
from serving.jobs import JobFolder, JobWords
from serving.live_turns import Hearing
from serving.problems import DiskFull, TooLarge, is_of_full_disk

_MOST_NAME_CHARS = 200
_UNKNOWN = "application/octet-stream"
# What stays free on the disk for results and for others.
_SPARE_BYTES = 256 * 2**20
_OPTIONS = ("text", "no_text", "language", "hearing", "start", "end")
_FILES = ("media", "subtitles")
_YES, _NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


@dataclass(frozen=True, kw_only=True)
class Upload:
    """file: the client's name of the media; media_type: as it may be sent to browsers"""

    file: str
    media_type: str
    words: JobWords


async def receive_upload(
    chunks: AsyncIterator[bytes],
    folder: JobFolder,
    *,
    content_type: str,
    query: Mapping[str, str],
    limits: Limits,
) -> Upload:
    """Writes media and subtitles into the folder, on the disk when this returns.

    Raises UsageError for a form that is none or asks for what does not go together, WrongKind or
    TooLarge, StorageError, and whatever the chunks raise.
    """
    kind, options = parse_options_header(content_type)
    try:
        if kind != b"multipart/form-data":
            return await _receive_raw(chunks, folder, kind.decode("latin-1"), query)
        if query:
            raise UsageError(f"{', '.join(query)}: what a form asks for is in its parts")
        boundary = options.get(b"boundary")
        if not boundary:
            raise UsageError("multipart/form-data without a boundary")
        return await _receive_form(chunks, folder, boundary, limits)
    except OSError as error:
        refusal = DiskFull if is_of_full_disk(error) else StorageError
        raise refusal(f"cannot write {folder.path}: {error}") from error


def check_space(folder: Path, num_bytes: int) -> None:
    """Raises DiskFull, StorageError."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise StorageError(f"cannot use {folder}: {error}") from error
    if num_bytes + _SPARE_BYTES > free:
        raise DiskFull(f"there is no room for {num_bytes} bytes")


async def _receive_raw(
    chunks: AsyncIterator[bytes], folder: JobFolder, kind: str, query: Mapping[str, str]
) -> Upload:
    options = {name: value for name, value in query.items() if name != "filename"}
    words = _read_words(options)
    with folder.media.open("xb") as file:
        async for chunk in chunks:
            await to_thread.run_sync(file.write, chunk)
        await to_thread.run_sync(_sync, file)
        if not file.tell():
            raise UsageError("the body is empty: send the media, or a form with a part named media")
    name = _name(query.get("filename", ""), otherwise="media")
    return Upload(file=name, media_type=kind, words=words)


async def _receive_form(
    chunks: AsyncIterator[bytes], folder: JobFolder, boundary: bytes, limits: Limits
) -> Upload:
    form = _Form(folder, limits)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_field": form.add_header_name,
                "on_header_value": form.add_header_value,
                "on_header_end": form.end_header,
                "on_headers_finished": form.open,
                "on_part_data": form.write,
                "on_part_end": form.close,
                "on_end": form.end,
            },
        )
        async for chunk in chunks:
            await to_thread.run_sync(parser.write, chunk)
        parser.finalize()
    except FormParserError as error:
        raise UsageError(f"no multipart/form-data: {error}") from error
    finally:
        form.close_file()
    if not form.has_ended:
        raise UsageError("the form ends in the middle")
    if "media" not in form.names:
        raise UsageError("the form has no part named media")
    subtitles = form.names.get("subtitles")
    return Upload(
        file=form.names["media"],
        media_type=form.media_type,
        words=_read_words(form.values, subtitles=subtitles),
    )


class _Form:
    """The parts of a form as they come: files go to the disk, options into memory.

    names: the client's, of the files
    """

    def __init__(self, folder: JobFolder, limits: Limits) -> None:
        self.names: dict[str, str] = {}
        self.values: dict[str, str] = {}
        self.media_type = _UNKNOWN
        self.has_ended = False
        self._limits = limits
        self._paths = {"media": folder.media, "subtitles": folder.subtitles}
        self._file: IO[bytes] | None = None
        self._value = bytearray()

    def begin(self) -> None:
        self._headers: dict[str, str] = {}
        self._header_name, self._header_value = b"", b""

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def end_header(self) -> None:
        name = self._header_name.decode("latin-1").lower()
        self._headers[name] = self._header_value.decode("latin-1")
        self._header_name, self._header_value = b"", b""

    def open(self) -> None:
        """Raises UsageError, WrongKind, OSError."""
        _, about = parse_options_header(self._headers.get("content-disposition", ""))
        self._part = about.get(b"name", b"").decode("latin-1")
        if self._part in self.names or self._part in self.values:
            raise UsageError(f"the form has two parts named {self._part}")
        self._value.clear()
        if self._part in _FILES:
            said = about.get(b"filename", b"").decode("utf-8", "replace")
            said = said.replace("%22", '"')  # as browsers write it
            self.names[self._part] = _name(said, otherwise=self._part)
            self._file = self._paths[self._part].open("xb")
            if self._part == "media":
                kind = self._headers.get("content-type", _UNKNOWN).partition(";")[0].strip().lower()
                check_kind(kind)
                self.media_type = kind
        elif self._part not in _OPTIONS:
            raise UsageError(
                f"the form has a part named {one_line(self._part)}; known are "
                f"{', '.join((*_FILES, *_OPTIONS))}"
            )

    def write(self, data: bytes, start: int, end: int) -> None:
        """Raises TooLarge, OSError."""
        if self._file is not None and self._part == "media":
            self._file.write(data[start:end])
            return
        most = self._limits.max_text_bytes
        written = self._file.tell() if self._file is not None else len(self._value)
        if written + end - start > most:
            raise TooLarge(f"{self._part} has more than {most} bytes")
        if self._file is not None:
            self._file.write(data[start:end])
        else:
            self._value += data[start:end]

    def close(self) -> None:
        """Raises UsageError, OSError."""
        if self._file is not None:
            _sync(self._file)
            self.close_file()
            return
        try:
            self.values[self._part] = self._value.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._part} is not UTF-8") from error

    def close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def end(self) -> None:
        self.has_ended = True


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read_words(values: Mapping[str, str], *, subtitles: str | None = None) -> JobWords:
    """Raises UsageError."""
    unknown = [name for name in values if name not in _OPTIONS]
    if unknown:
        raise UsageError(
            f"unknown: {one_line(', '.join(unknown))}; known are {', '.join(_OPTIONS)}"
        )
    return JobWords(
        text=values.get("text"),
        subtitles=subtitles,
        no_text=_yes_or_no(values.get("no_text", "")),
        language=values.get("language") or None,
        hearing=cast(Hearing, values.get("hearing") or "thorough"),  # which it looks at
        start_s=_seconds(values, "start"),
        end_s=_seconds(values, "end"),
    )


def _yes_or_no(value: str) -> bool:
    if value.lower() not in (*_YES, *_NO):
        raise UsageError(f"no_text is true or false, not {one_line(value)}")
    return value.lower() in _YES


def _seconds(values: Mapping[str, str], name: str) -> float | None:
    if not values.get(name):
        return None
    try:
        return float(values[name])
    except ValueError as error:
        raise UsageError(f"{name} is a number of seconds, not {one_line(values[name])}") from error


def _name(said: str, *, otherwise: str) -> str:
    """A client's name of a file, made fit to be shown; it is never a path.

    otherwise: where the client gave none
    """
    last = re.split(r"[/\\]", said)[-1]
    shown = one_line(last).strip()
    if len(shown) > _MOST_NAME_CHARS:
        shown = f"{shown[: _MOST_NAME_CHARS // 2]}…{shown[-_MOST_NAME_CHARS // 2 :]}"
    return shown or otherwise
