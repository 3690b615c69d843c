"""Decoders that do the worst, for the process that reads media to import."""

import os
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
            time.sleep(0.2)  # who asks has read the others
            os.abort()
        yield media


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
