"""Decodes sound and pictures that arrive in pieces as if they were a file.

    pieces -> a Matroska file in memory -> decode_spans

With a file, the code that decodes uploads also decodes live media, with the same limits. The file
is in memory only and never on a disk.
"""

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.decode.spans import decode_spans
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan, Modality

_MS = Fraction(1, 1000)
_BLOCK_MS = 32
_START_OF_IMAGE = b"\xff\xd8"
# Start of frame of every kind of JPEG: its segment has the size of the picture.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment


@dataclass(frozen=True, kw_only=True)
class MediaPieces:
    """A part of the media of a microphone and a camera.

    start_ms: its start on the clock of the spans, in whole seconds, so that a resampler starts at
              the same place as in the whole recording
    samples:  int16 [samples], mono
    pictures: the time on that clock when each appears, in order, and its JPEG; the first may have
              appeared before the start
    """

    start_ms: int
    samples: NDArray[np.int16]
    rate_hz: int
    pictures: tuple[tuple[int, bytes], ...] = ()

    def __post_init__(self) -> None:
        if self.start_ms < 0 or self.start_ms % 1000:
            raise ValueError(f"pieces begin at whole seconds, not at {self.start_ms} ms")
        times = [at_ms for at_ms, _ in self.pictures]
        if sorted(set(times)) != times:
            raise ValueError("pictures are in order, and no two at one time")


def decode_pieces(
    pieces: MediaPieces,
    spans: Sequence[MediaSpan],
    config: DecodeConfig,
    modalities: Sequence[Modality],
) -> Iterator[DecodedMedia]:
    """Decodes each span, with the result of `decode_spans` for a file with the same sound and the
    same pictures at the same times."""
    with _hold() as file:
        write_pieces(pieces, file)
        file.flush()
        inside = [_move(span, -pieces.start_ms) for span in spans]
        found = decode_spans(Path(f"/dev/fd/{file.fileno()}"), inside, config, modalities)
        for span, decoded in zip(spans, found, strict=True):
            yield replace(decoded, span=span)


def write_pieces(pieces: MediaPieces, file: BinaryIO) -> None:
    """Writes a Matroska file whose clock starts with the pieces."""
    with av.open(file, "w", format="matroska") as container:
        sound = container.add_stream("pcm_s16le", rate=pieces.rate_hz, layout="mono")
        picture = None
        if pieces.pictures:
            width, height = picture_size(pieces.pictures[0][1])
            picture = container.add_mux_stream("mjpeg", width=width, height=height, time_base=_MS)
        waiting = deque(_on_screen(pieces))
        for at_ms, frame in _sound_frames(pieces):
            while picture is not None and waiting and waiting[0][0] <= at_ms + pieces.start_ms:
                container.mux(_picture_packet(*waiting.popleft(), pieces, picture))
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        while picture is not None and waiting:
            container.mux(_picture_packet(*waiting.popleft(), pieces, picture))


def picture_size(jpeg: bytes) -> tuple[int, int]:
    """Width and height in pixels, from its header. Raises ClipError if it is not a JPEG."""
    at = len(_START_OF_IMAGE)
    if jpeg.startswith(_START_OF_IMAGE):
        while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
            marker = jpeg[at + 1]
            if marker == 0xFF:  # filling
                at += 1
                continue
            if marker in _BARE:
                at += 2
                continue
            if marker in _FRAMES:
                height, width = (
                    int.from_bytes(jpeg[at + first : at + first + 2], "big") for first in (5, 7)
                )
                if width and height:
                    return width, height
                break
            at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    raise ClipError("no_jpeg", "no JPEG that says how large it is")


def _sound_frames(pieces: MediaPieces) -> Iterator[tuple[int, av.AudioFrame]]:
    """Frames with their start in whole milliseconds, as Matroska has them."""
    size = _BLOCK_MS * pieces.rate_hz // 1000
    for number in range(-(-len(pieces.samples) // size)):
        block = np.ascontiguousarray(pieces.samples[number * size : (number + 1) * size])
        frame = av.AudioFrame.from_ndarray(block[None, :], format="s16", layout="mono")
        frame.sample_rate, frame.pts = pieces.rate_hz, number * size
        frame.time_base = Fraction(1, pieces.rate_hz)
        yield number * _BLOCK_MS, frame


def _picture_packet(
    at_ms: int, jpeg: bytes, pieces: MediaPieces, stream: "av.stream.Stream"
) -> av.Packet:
    packet = av.Packet(jpeg)
    packet.stream, packet.time_base = stream, _MS
    packet.pts = packet.dts = max(at_ms - pieces.start_ms, 0)
    packet.is_keyframe = True
    return packet


def _on_screen(pieces: MediaPieces) -> Sequence[tuple[int, bytes]]:
    """Moves the last picture before the start to the start, because it is still on screen."""
    num_before = sum(at_ms <= pieces.start_ms for at_ms, _ in pieces.pictures)
    return pieces.pictures[max(num_before - 1, 0) :]


def _move(span: MediaSpan, by_ms: int) -> MediaSpan:
    end_ms = None if span.end_ms is None else span.end_ms + by_ms
    return MediaSpan(start_ms=span.start_ms + by_ms, end_ms=end_ms)


def _hold() -> BinaryIO:
    """A file that ends with this process; without memory files, an unnamed one on the disk."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("pieces"), "w+b")
    return tempfile.TemporaryFile()
