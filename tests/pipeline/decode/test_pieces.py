"""What came piece by piece is decoded as the file that holds the same."""

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.pieces import MediaPieces, decode_pieces, picture_size
from pipeline.decode.process import DecoderProcess
from pipeline.decode.spans import decode_spans
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan
from tests.media import textured, tone, write_clip

RATE_HZ = 16_000
BOTH = ["video", "audio"]
SPANS = [
    MediaSpan(start_ms=0, end_ms=1_500),
    MediaSpan(start_ms=6_123, end_ms=8_456),
    MediaSpan(start_ms=9_000, end_ms=10_000),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve seconds at four pictures a second."""
    sound = tone([200 + 30 * second for second in range(12)], RATE_HZ)
    return write_clip(
        tmp_path_factory.mktemp("media") / "camera.mkv",
        num_frames=48,
        picture=textured,
        ticks=[250 * number for number in range(48)],
        time_base=Fraction(1, 1000),
        codec="mjpeg",
        sound=sound,
        sound_codec="pcm_s16le",
        rate_hz=RATE_HZ,
    )


@pytest.fixture(scope="module")
def pieces(file: Path) -> MediaPieces:
    """The same, as a client would send it."""
    with av.open(str(file)) as container:
        pictures = tuple(
            (round(packet.pts * packet.time_base * 1000), bytes(packet))
            for packet in container.demux(video=0)
            if packet.size
        )
    [decoded] = decode_spans(file, [MediaSpan()], DecodeConfig(), ["audio"])
    assert decoded.waveform is not None
    samples = np.round(decoded.waveform * 32_768).astype(np.int16)
    return MediaPieces(start_ms=0, samples=samples, rate_hz=RATE_HZ, pictures=pictures)


def assert_same(found: DecodedMedia, wanted: DecodedMedia) -> None:
    assert found.span == wanted.span
    np.testing.assert_array_equal(found.waveform, wanted.waveform)
    np.testing.assert_array_equal(found.frames, wanted.frames)
    np.testing.assert_array_equal(found.times_s, wanted.times_s)


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 22_050])
def test_pieces_are_decoded_as_the_file_that_holds_them(
    file: Path, pieces: MediaPieces, rate_hz: int
) -> None:
    config = DecodeConfig(sample_rate_hz=rate_hz)
    wanted = decode_spans(file, SPANS, config, BOTH)
    for found, each in zip(decode_pieces(pieces, SPANS, config, BOTH), wanted, strict=True):
        assert_same(found, each)


@pytest.mark.parametrize("rate_hz", [RATE_HZ, 22_050])
def test_a_part_gives_for_the_spans_in_it_what_the_whole_gives(
    file: Path, pieces: MediaPieces, rate_hz: int
) -> None:
    """Its first picture appeared before it, and is on the screen when it begins."""
    part = replace(
        pieces,
        start_ms=5_000,
        samples=pieces.samples[5 * RATE_HZ : 11 * RATE_HZ],
        pictures=tuple(each for each in pieces.pictures if each[0] <= 11_000),
    )
    config = DecodeConfig(sample_rate_hz=rate_hz)
    wanted = decode_spans(file, SPANS[1:], config, BOTH)
    for found, each in zip(decode_pieces(part, SPANS[1:], config, BOTH), wanted, strict=True):
        assert_same(found, each)


def test_without_a_picture_the_sound_is_there(pieces: MediaPieces) -> None:
    [found] = decode_pieces(replace(pieces, pictures=()), SPANS[:1], DecodeConfig(), BOTH)
    assert found.frames is None
    assert found.waveform is not None
    assert [failure.code for failure in found.failures] == ["no_video"]


def test_a_picture_that_is_none_costs_the_pictures_that_show_it(pieces: MediaPieces) -> None:
    first, *others = pieces.pictures
    broken = [(at_ms, first[1][:200] + b"\0" * 400) for at_ms, _ in others]
    spans = [MediaSpan(start_ms=0, end_ms=2_000)]
    bad = replace(pieces, pictures=(first, *broken))
    [found] = decode_pieces(bad, spans, DecodeConfig(), BOTH)
    assert found.waveform is not None
    assert any(failure.modality == "video" for failure in found.failures)


def test_nothing_of_them_is_on_the_disk(
    pieces: MediaPieces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "memfd_create"):
        pytest.skip("no files in memory on this system")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there is no such folder"))
    monkeypatch.chdir(tmp_path)
    assert len(list(decode_pieces(pieces, SPANS, DecodeConfig(), BOTH))) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_another_process_decodes_them_too(pieces: MediaPieces) -> None:
    with DecoderProcess() as decoder:
        found = list(decoder.decode_pieces(pieces, SPANS, DecodeConfig(), BOTH))
    wanted = decode_pieces(pieces, SPANS, DecodeConfig(), BOTH)
    for each, here in zip(found, wanted, strict=True):
        assert_same(each, here)


def test_a_jpeg_says_how_large_it_is(pieces: MediaPieces) -> None:
    assert picture_size(pieces.pictures[0][1]) == (160, 128)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\xff\xff", b"GIF89a", b"\xff" * 99]
)
def test_what_is_no_jpeg_is_reported(content: bytes) -> None:
    with pytest.raises(ClipError, match="no JPEG"):
        picture_size(content)


def test_pieces_begin_at_whole_seconds_and_pictures_are_in_order(pieces: MediaPieces) -> None:
    with pytest.raises(ValueError, match="whole seconds"):
        replace(pieces, start_ms=500)
    with pytest.raises(ValueError, match="in order"):
        replace(pieces, pictures=(pieces.pictures[1], pieces.pictures[0]))
