"""Reads media files in a process of its own: a file that crashes or hangs a decoder ends that
process and not the calling one.

    python -m pipeline.decode.process < requests > answers

The process has the decoders loaded and nothing else, so that one starts while a model is loaded,
and takes one request after the other. It decodes ahead while the other process computes.
"""

import os
import pickle
import queue
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol

from pipeline.decode.container import MAX_SECONDS_PER_CLIP
from pipeline.decode.measure import MediaLength, measure_media
from pipeline.decode.pieces import MediaPieces, decode_pieces
from pipeline.decode.spans import decode_spans
from pipeline.decode.subtitles import SubtitleTrack, read_subtitle_tracks
from pipeline.errors import ClipError, MeldError
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan, Modality

# Decoding has time limits that are checked between packets: a process without an answer for so long
# hears no clock. The first part covers reading and decoding a span, the second what lies before it.
_MOST_S = 2 * MAX_SECONDS_PER_CLIP
_MIN_SPEED = 5.0
_MIN_BYTES_PER_S = 5e6  # of a slow disk, where a whole file is read at once
_SECONDS_TO_START = 120.0
# As many spans as are encoded together: while one batch is encoded, the next is decoded.
_MOST_AHEAD = 16
_ROOT = Path(__file__).resolve().parents[2]
_READY, _VALUE, _ERROR = "ready", "value", "error"


class Decoder(Protocol):
    """The interface for reading media files."""

    def measure(self, path: Path) -> MediaLength:
        """As `measure_media`."""
        ...

    def decode(
        self,
        path: Path,
        spans: Sequence[MediaSpan],
        config: DecodeConfig,
        modalities: Sequence[Modality],
    ) -> Iterator[DecodedMedia]:
        """As `decode_spans`."""
        ...

    def subtitles(self, path: Path) -> tuple[SubtitleTrack, ...]:
        """As `read_subtitle_tracks`."""
        ...


class DecoderHere:
    """Reads in this process, which a crash of a decoder ends."""

    def measure(self, path: Path) -> MediaLength:
        return measure_media(path)

    def decode(
        self,
        path: Path,
        spans: Sequence[MediaSpan],
        config: DecodeConfig,
        modalities: Sequence[Modality],
    ) -> Iterator[DecodedMedia]:
        return decode_spans(path, spans, config, modalities)

    def subtitles(self, path: Path) -> tuple[SubtitleTrack, ...]:
        return read_subtitle_tracks(path)


HERE = DecoderHere()


class DecoderProcess:
    """Reads in another process, which is started at once. Where a file ends it, the file's
    ClipError has the code "killed_decoder", and the next request gets a new process; so does each
    of several requests at one time.

    The processes end with `close`, and with this object or this process, however that ends.
    """

    def __init__(self) -> None:
        self._idle: list[_Child] = [_Child()]
        self._finalise = weakref.finalize(self, _end_all, self._idle)

    def measure(self, path: Path) -> MediaLength:
        """Raises ClipError as `measure_media`, and where the file ends the process."""
        [length] = self._ask(_measure, path, limits_s=[_seconds_to_read(path)])
        found: MediaLength = length
        return found

    def decode(
        self,
        path: Path,
        spans: Sequence[MediaSpan],
        config: DecodeConfig,
        modalities: Sequence[Modality],
    ) -> Iterator[DecodedMedia]:
        """Raises ClipError where the file ends the process."""
        starts_ms = [span.start_ms for span in spans]
        gaps_ms = [after - before for before, after in pairwise([0, *starts_ms])]
        limits_s = [_MOST_S + gap_ms / 1000 / _MIN_SPEED for gap_ms in gaps_ms]
        return self._ask(
            decode_spans, path, list(spans), config, list(modalities), limits_s=limits_s
        )

    def decode_pieces(
        self,
        pieces: MediaPieces,
        spans: Sequence[MediaSpan],
        config: DecodeConfig,
        modalities: Sequence[Modality],
    ) -> Iterator[DecodedMedia]:
        """As `decode_pieces`. Raises ClipError where a picture ends the process."""
        return self._ask(
            _decode_pieces,
            Path("pieces"),
            pieces,
            list(spans),
            config,
            list(modalities),
            limits_s=[_MOST_S] * len(spans),
        )

    def subtitles(self, path: Path) -> tuple[SubtitleTrack, ...]:
        """Raises ClipError as `read_subtitle_tracks`, and where the file ends the process."""
        [tracks] = self._ask(_subtitles, path, limits_s=[_seconds_to_read(path)])
        found: tuple[SubtitleTrack, ...] = tracks
        return found

    def close(self) -> None:
        self._finalise()

    def __enter__(self) -> "DecoderProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self,
        work: Callable[..., Iterable[Any]],
        path: Path,
        *arguments: Any,
        limits_s: Sequence[float],
    ) -> Iterator[Any]:
        """What `work(path, ...)` yields: one value for each limit of time.

        work: a function that the process can import
        """
        try:  # several threads may ask
            child = self._idle.pop()
        except IndexError:
            child = _Child()
        if child.has_ended():  # while it had nothing to do: no file is to blame
            child.end()
            child = _Child()
        try:
            yield from child.ask(work, path.absolute(), *arguments, limits_s=limits_s)
        finally:
            if child.is_busy or child.has_ended():  # or nobody wants the rest, which is under way
                child.end()
            else:
                self._idle.append(child)


def _measure(path: Path) -> Iterator[MediaLength]:
    yield measure_media(path)


def _decode_pieces(
    path: Path,
    pieces: MediaPieces,
    spans: Sequence[MediaSpan],
    config: DecodeConfig,
    modalities: Sequence[Modality],
) -> Iterator[DecodedMedia]:
    """path: there is none of pieces"""
    return decode_pieces(pieces, spans, config, modalities)


def _subtitles(path: Path) -> Iterator[tuple[SubtitleTrack, ...]]:
    yield read_subtitle_tracks(path)


def _seconds_to_read(path: Path) -> float:
    with suppress(OSError):  # who reads it tells
        return _MOST_S + path.stat().st_size / _MIN_BYTES_PER_S
    return _MOST_S


# ------------------------------------------------------------------------ seen from this process


@dataclass(frozen=True)
class _Request:
    work: Callable[..., Iterable[Any]]
    arguments: tuple[Any, ...]
    limits_s: tuple[float, ...]


class _Child:
    """A process that reads media, seen by who asks it."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process runs)
        paths = os.pathsep.join([str(_ROOT), *(entry for entry in sys.path if entry)])
        with _deaf_to_interrupts():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pipeline.decode.process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": paths},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers = self._process.stdout.fileno()
        self._is_ready = False
        self.is_busy = False

    def ask(
        self,
        work: Callable[..., Iterable[Any]],
        *arguments: Any,
        limits_s: Sequence[float],
    ) -> Iterator[Any]:
        """Raises ClipError where this ends the process, and whatever the work raises."""
        if not self._is_ready:
            self._await_start()
        request = pickle.dumps(_Request(work, arguments, tuple(limits_s)))
        self.is_busy = True
        try:
            self._requests.write(len(request).to_bytes(8, "big") + request)
            self._requests.flush()
        except OSError as error:
            raise self._death() from error
        for num_left, limit_s in zip(range(len(limits_s) - 1, -1, -1), limits_s, strict=True):
            kind, value = self._read(limit_s)
            self.is_busy = kind == _VALUE and num_left > 0
            if kind == _ERROR:
                raise value
            yield value

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._errors.close()

    def _await_start(self) -> None:
        """Raises MeldError: no file has anything to do with it."""
        try:
            kind, _ = self._read(_SECONDS_TO_START)
        except ClipError as error:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            why = said[-1] if said else error.message
            raise MeldError(f"the process that decodes media does not start ({why})") from error
        self._is_ready = kind == _READY

    def _read(self, limit_s: float) -> tuple[str, Any]:
        deadline = time.monotonic() + limit_s
        length = int.from_bytes(self._read_bytes(8, deadline, limit_s), "big")
        answer: tuple[str, Any] = pickle.loads(self._read_bytes(length, deadline, limit_s))
        return answer

    def _read_bytes(self, count: int, deadline: float, limit_s: float) -> bytearray:
        content = bytearray()
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while len(content) < count:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poll.poll(1000 * left_s):
                self._process.kill()
                self._process.wait()
                raise _killed(f"stopped after {limit_s:.0f} s")
            part = os.read(self._answers, min(count - len(content), 1 << 20))
            if not part:
                raise self._death()
            content += part
        return content

    def _death(self) -> ClipError:
        status = self._process.wait()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return _killed(how)


def _killed(how: str) -> ClipError:
    return ClipError("killed_decoder", f"the decoder process ended while it read this file ({how})")


def _end_all(children: "list[_Child]") -> None:
    while children:
        children.pop().end()


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """For what is started here: a terminal's Ctrl-C reaches every process, and this one would
    answer with a traceback. It ends when nobody asks it any more."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ------------------------------------------------------------------------------ in the process


def main() -> None:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected, its dump is not
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    written: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=_MOST_AHEAD)
    threading.Thread(target=_write, args=(answers, written), daemon=True).start()
    written.put((_READY, None))
    while size := requests.read(8):
        request: _Request = pickle.loads(requests.read(int.from_bytes(size, "big")))
        _answer(request, written)


def _answer(request: _Request, written: "queue.Queue[tuple[str, Any]]") -> None:
    try:
        values = iter(request.work(*request.arguments))
        for limit_s in request.limits_s:
            signal.setitimer(signal.ITIMER_REAL, 2 * limit_s)  # where nobody is left to watch
            value = next(values)
            signal.setitimer(signal.ITIMER_REAL, 0)
            written.put((_VALUE, value))
    except Exception as error:  # noqa: BLE001 (raised again by who asked)
        signal.setitimer(signal.ITIMER_REAL, 0)
        written.put((_ERROR, error))


def _write(answers: IO[bytes], written: "queue.Queue[tuple[str, Any]]") -> NoReturn:
    while True:
        answer = written.get()
        try:
            content = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
            if answer[0] == _ERROR:
                pickle.loads(content)  # an exception may be one that only goes one way
        except Exception as error:  # noqa: BLE001 (pickle raises anything)
            told = RuntimeError(f"{answer[1]!r} cannot be sent between processes: {error}")
            content = pickle.dumps((_ERROR, told))
        try:
            answers.write(len(content).to_bytes(8, "big") + content)
            answers.flush()
        except OSError:  # nobody asks any more
            os._exit(1)


if __name__ == "__main__":
    main()
