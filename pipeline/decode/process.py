"""Reads media files in a separate process: a file that crashes or hangs a decoder ends that
process instead of the calling one.

    python -m pipeline.decode.process < requests > answers

The process loads nothing but the decoders, so that it starts while a model is loaded. It handles
one request after another, and decodes ahead while the calling process computes.
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
# hangs. The first part covers reading and decoding a span, the second the media before it.
_MOST_S = 2 * MAX_SECONDS_PER_CLIP
_MIN_SPEED = 5.0
_MIN_BYTES_PER_S = 5e6  # for a whole file on a slow disk
_SECONDS_TO_START = 120.0
_MOST_IDLE_S = 30.0
# The number of spans in a batch: while one batch is encoded, the next is decoded.
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
    """Reads in this process, which ends if a decoder crashes."""

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
    """Reads in another process, which starts at once. If a file ends it, the ClipError of the file
    has the code "killed_decoder", and the next request gets a new process. Parallel requests get a
    process each; one that has had nothing to do for half a minute ends when another file is done,
    but for the last.

    The processes end with `close`, with this object, and with this process, however that ends.
    """

    def __init__(self) -> None:
        self._idle: list[_Child] = [_Child()]  # the one that worked last is at the end
        self._lock = threading.Lock()
        self._finalise = weakref.finalize(self, _end_all, self._idle)

    def measure(self, path: Path) -> MediaLength:
        """Raises ClipError as `measure_media`, and if the file ends the process."""
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
        """Raises ClipError if the file ends the process."""
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
        """As `decode_pieces`. Raises ClipError if a picture ends the process."""
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
        """Raises ClipError as `read_subtitle_tracks`, and if the file ends the process."""
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
        """Yields the values of `work(path, ...)`, one for each time limit.

        work: a function that the process can import
        """
        try:  # several threads may ask
            with self._lock:
                child = self._idle.pop()
        except IndexError:
            child = _Child()
        if child.has_ended():  # it ended while idle, so no file is the cause
            child.end()
            child = _Child()
        try:
            yield from child.ask(work, path.absolute(), *arguments, limits_s=limits_s)
        finally:
            if child.is_busy or child.has_ended():  # or the caller wants no more values
                child.end()
            else:
                child.idle_since_s = time.monotonic()
                self._idle.append(child)
                self._end_unused()

    def _end_unused(self) -> None:
        with self._lock:
            while len(self._idle) > 1:
                child = self._idle.pop(0)
                if time.monotonic() - child.idle_since_s < _MOST_IDLE_S:
                    self._idle.insert(0, child)
                    return
                child.end()


def _measure(path: Path) -> Iterator[MediaLength]:
    yield measure_media(path)


def _decode_pieces(
    path: Path,
    pieces: MediaPieces,
    spans: Sequence[MediaSpan],
    config: DecodeConfig,
    modalities: Sequence[Modality],
) -> Iterator[DecodedMedia]:
    """path: not used, because pieces have no file"""
    return decode_pieces(pieces, spans, config, modalities)


def _subtitles(path: Path) -> Iterator[tuple[SubtitleTrack, ...]]:
    yield read_subtitle_tracks(path)


def _seconds_to_read(path: Path) -> float:
    with suppress(OSError):  # the process that reads it reports it
        return _MOST_S + path.stat().st_size / _MIN_BYTES_PER_S
    return _MOST_S


# ------------------------------------------------------------------------ seen from this process


@dataclass(frozen=True)
class _Request:
    work: Callable[..., Iterable[Any]]
    arguments: tuple[Any, ...]
    limits_s: tuple[float, ...]


class _Child:
    """A process that reads media, as its caller sees it."""

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
        self.idle_since_s = time.monotonic()

    def ask(
        self,
        work: Callable[..., Iterable[Any]],
        *arguments: Any,
        limits_s: Sequence[float],
    ) -> Iterator[Any]:
        """Raises ClipError if this ends the process, and whatever the work raises."""
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
        """Raises MeldError, because no file is the cause of a failed start."""
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
    """Context in which a started process ignores Ctrl-C. A terminal sends it to every process, and
    this one would print a traceback. It ends when its input is closed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ------------------------------------------------------------------------------ in the process


def main() -> None:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # the output of libraries must not mix with answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dumps of expected crashes
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
            signal.setitimer(signal.ITIMER_REAL, 2 * limit_s)  # in case the caller has died
            value = next(values)
            signal.setitimer(signal.ITIMER_REAL, 0)
            written.put((_VALUE, value))
    except Exception as error:  # noqa: BLE001 (raised again by the caller)
        signal.setitimer(signal.ITIMER_REAL, 0)
        written.put((_ERROR, error))


def _write(answers: IO[bytes], written: "queue.Queue[tuple[str, Any]]") -> NoReturn:
    while True:
        answer = written.get()
        try:
            content = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
            if answer[0] == _ERROR:
                pickle.loads(content)  # some exceptions can be pickled but not loaded again
        except Exception as error:  # noqa: BLE001 (pickle raises anything)
            told = RuntimeError(f"{answer[1]!r} cannot be sent between processes: {error}")
            content = pickle.dumps((_ERROR, told))
        try:
            answers.write(len(content).to_bytes(8, "big") + content)
            answers.flush()
        except OSError:  # the caller has closed the pipe
            os._exit(1)


if __name__ == "__main__":
    main()
