"""Decoders that do the worst, for the process that reads media to import."""

import fcntl
import os
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.decode.measure import MediaLength
from pipeline.decode.spans import decode_spans
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan, Modality


def decode_all_but_bad(
    path: Path, spans: Sequence[MediaSpan], config: DecodeConfig, modalities: Sequence[Modality]
) -> Iterator[DecodedMedia]:
    """Ends at the third span of a file that is called bad, as a crash in a library does."""
    for number, media in enumerate(decode_spans(path, spans, config, modalities)):
        if path.stem == "bad" and number == 2:
            wait_until_read()
            os.abort()
        yield media


def wait_until_read() -> None:
    """Until who asks has read the others, however long that takes: nothing is in the pipe of the
    answers for some time."""
    folder = Path("/proc/self/fd")
    pipes = [int(each.name) for each in folder.iterdir() if "pipe:" in str(each.resolve())]
    [answers] = [pipe for pipe in pipes if fcntl.fcntl(pipe, fcntl.F_GETFL) & os.O_WRONLY]
    num_empty = 0
    while num_empty < 20:
        waiting = int.from_bytes(fcntl.ioctl(answers, termios.FIONREAD, bytes(4)), sys.byteorder)
        num_empty = 0 if waiting else num_empty + 1
        time.sleep(0.01)


def measure_and_exit(path: Path) -> Iterator[MediaLength]:
    os._exit(7)
    yield


def measure_and_hang(path: Path) -> Iterator[MediaLength]:
    time.sleep(60)
    yield


def measure_wrongly(path: Path) -> Iterator[MediaLength]:
    print("words on standard output are no answer")
    raise LookupError(path.name)
    yield
