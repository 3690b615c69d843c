"""Spans of one media file: each is what it is alone, and where the file's clock says."""

import gc
import tracemalloc
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decode import packets as decode_packets
from pipeline.decode.spans import decode_media, decode_spans
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan
from tests.media import FPS, SIZE, pitch_of, textured, tone, write_clip
from tests.pipeline.decode.decoding import numbers

av.logging.set_level(None)

CLOSED = {"qp": "10", "x264-params": "keyint=12:bframes=3"}
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:bframes=3:scenecut=0"}
PYRAMID = {"x264-params": "keyint=40:bframes=6:b-pyramid=normal:ref=5"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=24:bframes=3"}
MPEG2 = {"qscale": "3", "flags": "+qscale", "g": "12", "bf": "2"}
PITCHES = [440, 880, 1320, 660, 990]  # one a second
# Extension, picture, its options, sound, its rate.
FILES = {
    "mp4": ("mp4", "libx264", CLOSED, "aac", 48_000),
    "open-gop": ("mp4", "libx264", OPEN_GOP, "aac", 44_100),
    "open-gop-mkv": ("mkv", "libx264", OPEN_GOP, "flac", 44_100),
    "pyramid-mkv": ("mkv", "libx264", PYRAMID, "libopus", 48_000),
    "intra-refresh": ("mp4", "libx264", INTRA_REFRESH, "aac", 48_000),
    "one-key-frame": ("mkv", "libx264", {"g": "9999", "sc_threshold": "0"}, "ac3", 48_000),
    "vp9": ("webm", "libvpx-vp9", {"g": "20", "deadline": "realtime", "cpu-used": "8"},
            "libopus", 48_000),
    "avi": ("avi", "mpeg4", {"g": "12", "qscale": "2", "flags": "+qscale"}, "pcm_s16le", 44_100),
    "ts": ("ts", "libx264", OPEN_GOP, "aac", 48_000),
    "mpeg2-ts": ("ts", "mpeg2video", MPEG2, "mp2", 44_100),
    "vob": ("vob", "mpeg2video", MPEG2, "ac3", 48_000),
    "flv": ("flv", "flv", {"g": "12", "qscale": "2", "flags": "+qscale"}, "libmp3lame", 44_100),
    "wmv": ("wmv", "wmv2", {"g": "12", "qscale": "2", "flags": "+qscale"}, "wmav2", 44_100),
}  # fmt: skip
SPANS = [
    MediaSpan(start_ms=0, end_ms=700),
    MediaSpan(start_ms=700, end_ms=1_500),  # touches
    MediaSpan(start_ms=1_400, end_ms=2_010),  # overlaps
    MediaSpan(start_ms=1_600, end_ms=1_900),  # lies within
    MediaSpan(start_ms=3_333, end_ms=3_400),  # after a gap, two pictures long
    MediaSpan(start_ms=3_400, end_ms=4_500),
    MediaSpan(start_ms=4_000),  # to the end
    MediaSpan(start_ms=4_990, end_ms=9_000),  # beyond it
]


def write_file(folder: Path, name: str) -> Path:
    extension, codec, options, sound_codec, rate_hz = FILES[name]
    return write_clip(
        folder / f"a.{extension}",
        num_frames=5 * FPS,
        picture=textured,
        codec=codec,
        options=options,
        sound=tone(PITCHES, rate_hz),
        sound_codec=sound_codec,
        rate_hz=rate_hz,
        container_format={"wmv": "asf", "ts": "mpegts"}.get(extension),
    )


def span(start_ms: int, end_ms: int | None = None) -> MediaSpan:
    return MediaSpan(start_ms=start_ms, end_ms=end_ms)


def decoded(path: Path, start_ms: int, end_ms: int | None = None) -> DecodedMedia:
    return decode_media(path, span(start_ms, end_ms), DecodeConfig(), ["video", "audio"])


def all_decoded(path: Path, spans: Sequence[MediaSpan]) -> list[DecodedMedia]:
    return list(decode_spans(path, spans, DecodeConfig(), ["video", "audio"]))


def lost(media: DecodedMedia) -> dict[str, str]:
    return {each.modality: each.message for each in media.failures if each.lost}


class Shown:
    """Every picture of a file, decoded from its start, nothing skipped."""

    def __init__(self, path: Path) -> None:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            self.pictures = {frame.pts: frame for frame in container.decode(stream)}
            self.origin_s = Fraction(container.start_time, av.time_base)
            self.tick_s = stream.time_base

    def frames(self, wanted: MediaSpan) -> NDArray[np.uint8]:
        """The one on screen at the middle of each of 16 parts of the span."""
        config, ticks = DecodeConfig(), sorted(self.pictures)
        start = (self.origin_s + Fraction(wanted.start_ms, 1000)) / self.tick_s
        end = Fraction(ticks[-1]) + Fraction(1, FPS) / self.tick_s
        if wanted.end_ms is not None:
            end = min(end, (self.origin_s + Fraction(wanted.end_ms, 1000)) / self.tick_s)
        start = max(start, Fraction(ticks[0]))
        middles = [start + (end - start) * (2 * part + 1) / 32 for part in range(16)]
        chosen = [
            max((tick for tick in ticks if tick <= middle), default=ticks[0]) for middle in middles
        ]
        form = {"width": config.frame_width, "height": config.frame_height, "format": "rgb24"}
        shown = {
            tick: self.pictures[tick].reformat(**form, interpolation="BILINEAR").to_ndarray()
            for tick in set(chosen)
        }
        return np.stack([shown[tick] for tick in chosen])


# ------------------------------------------------------------------------------ together, alone


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """file_of("mkv"): made once, not to be written to."""
    return cache(lambda name: write_file(tmp_path_factory.mktemp("files"), name))


@pytest.mark.heavy
@pytest.mark.parametrize("name", FILES)
def test_spans_read_in_one_pass_are_to_the_bit_what_each_is_alone(
    file_of: Callable[[str], Path], name: str
) -> None:
    path = file_of(name)
    together = all_decoded(path, SPANS)
    assert [media.span for media in together] == SPANS
    for media in together:
        alone = decoded(path, media.span.start_ms, media.span.end_ms)
        assert np.array_equal(media.frames, alone.frames)
        assert np.array_equal(media.times_s, alone.times_s)
        assert np.array_equal(media.waveform, alone.waveform)
        assert media.failures == alone.failures
        assert lost(media) == {}


@pytest.mark.heavy
@pytest.mark.parametrize("name", [name for name in FILES if name not in ("avi", "intra-refresh")])
def test_the_frames_of_a_span_are_those_of_the_whole_file_decoded(
    file_of: Callable[[str], Path], name: str
) -> None:
    """Nothing that starts in the middle of a group of pictures is decoded wrongly."""
    path = file_of(name)
    shown = Shown(path)
    for media in all_decoded(path, SPANS):
        assert np.array_equal(media.frames, shown.frames(media.span)), media.span


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("rate_hz", "sound_codec"),
    [(48_000, "flac"), (44_100, "flac"), (16_000, "flac"), (12_345, "flac")],
)
def test_the_waveforms_of_spans_that_touch_are_the_waveform_of_the_whole(
    tmp_path: Path, rate_hz: int, sound_codec: str
) -> None:
    """No click where they touch, no sample lost, none twice."""
    sound = tone([440, 880, 330], rate_hz)
    path = write_clip(
        tmp_path / "a.mkv", codec=None, sound=sound, sound_codec=sound_codec, rate_hz=rate_hz
    )
    [whole] = all_decoded(path, [MediaSpan()])
    edges = [0, 313, 1_000, 1_001, 1_777, None]
    parts = all_decoded(path, [span(start or 0, end) for start, end in pairwise(edges)])
    waveforms = [part.waveform for part in parts]
    assert whole.waveform is not None
    assert all(waveform is not None for waveform in waveforms)
    joined = np.concatenate([waveform for waveform in waveforms if waveform is not None])
    assert len(joined) == len(whole.waveform)
    assert np.abs(joined - whole.waveform).max() < 1e-6


def test_a_span_that_holds_the_whole_file_is_the_whole_file(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", sound=tone([440, 880]))
    whole, all_of_it = decoded(path, 0), decoded(path, 0, 2_500)
    assert np.array_equal(whole.frames, all_of_it.frames)
    assert whole.waveform is not None
    assert all_of_it.waveform is not None
    num = min(len(whole.waveform), len(all_of_it.waveform))
    assert num > 2 * 16_000 - 100
    assert np.array_equal(whole.waveform[:num], all_of_it.waveform[:num])


# ------------------------------------------------------------------------------------- the clock


@pytest.mark.parametrize("extension", ["mp4", "mkv", "avi"])
def test_frames_are_spread_evenly_over_the_span(tmp_path: Path, extension: str) -> None:
    path = write_clip(
        tmp_path / f"a.{extension}", num_frames=72, codec="libx264", options={"qp": "4", "bf": "0"}
    )
    media = decode_media(path, span(1_000, 2_000), DecodeConfig(num_frames=4), ["video"])
    assert numbers(media) == [27, 33, 39, 45]  # on screen at 1.125, 1.375, 1.625, 1.875 s
    assert media.times_s is not None
    assert media.times_s.tolist() == pytest.approx([3 / 24, 9 / 24, 15 / 24, 21 / 24], abs=2e-3)


def test_each_second_has_its_own_tone(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", sound=tone(PITCHES), num_frames=3 * FPS)
    seconds = [span(1_000 * second, 1_000 * second + 1_000) for second in range(5)]
    for pitch, media in zip(PITCHES, all_decoded(path, seconds), strict=True):
        assert media.waveform is not None
        assert len(media.waveform) == pytest.approx(16_000, abs=1)
        assert pitch_of(media.waveform[1_500:-1_500]) == pytest.approx(pitch, abs=5)


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
def test_picture_and_sound_have_one_clock(tmp_path: Path, extension: str) -> None:
    """A flash and a beep, 2 s after the picture begins; the sound begins 1 s after it."""
    flash = 2 * FPS
    sound = np.zeros(2 * 48_000, np.float32)
    sound[48_000 : 48_000 + 9_600] = tone([1_000])[:9_600]
    path = write_clip(
        tmp_path / f"a.{extension}",
        num_frames=3 * FPS,
        picture=lambda number: np.full(
            (SIZE[1], SIZE[0], 3), 250 if number == flash else 10, np.uint8
        ),
        sound=sound,
        sound_starts_s=1,
        container_format="mpegts" if extension == "ts" else None,
    )
    before, during, after = all_decoded(
        path, [span(1_500, 2_000), span(2_000, 2_040), span(2_400, 2_800)]
    )
    for media, is_on in ((before, False), (during, True), (after, False)):
        assert media.frames is not None
        assert media.waveform is not None
        assert (media.frames.max(axis=(1, 2, 3)) > 200).tolist() == [is_on] * 16
        middle = media.waveform[len(media.waveform) // 4 : -len(media.waveform) // 4]
        assert (np.abs(middle).max() > 0.2) == is_on


def test_the_clock_begins_with_the_file_wherever_its_times_begin(tmp_path: Path) -> None:
    ticks = [5 * FPS + number for number in range(72)]
    path = write_clip(
        tmp_path / "late.mkv",
        num_frames=72,
        ticks=ticks,
        options={"qp": "4", "bf": "0"},
        container_options={"avoid_negative_ts": "disabled"},
    )
    media = decode_media(path, span(1_000, 2_000), DecodeConfig(num_frames=4), ["video"])
    assert numbers(media) == [27, 33, 39, 45]


# ----------------------------------------------------------------------------- what is not there


def test_a_picture_that_stays_is_on_screen_in_every_span_it_stays_for(tmp_path: Path) -> None:
    """Slides: a picture every four seconds. A span needs no new one to have a picture."""
    ticks = [0, 4_000, 8_000]
    path = write_clip(tmp_path / "a.mkv", num_frames=3, ticks=ticks, time_base=Fraction(1, 1000))
    first, second = all_decoded(path, [span(1_000, 3_000), span(3_500, 4_500)])
    assert numbers(first) == [0] * 16
    assert numbers(second) == [0] * 8 + [1] * 8
    assert first.times_s is not None
    assert set(first.times_s) == {-1.0}
    assert [each.code for each in first.failures if not each.lost] == ["few_frames"]


def test_a_span_after_the_end_has_nothing_and_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", sound=tone([440, 880]), num_frames=48)
    there, gone = all_decoded(path, [span(1_000, 1_500), span(5_000, 6_000)])
    assert lost(there) == {}
    assert gone.frames is None
    assert gone.waveform is None
    assert lost(gone) == {
        "video": "the video ends before the span",
        "audio": "the sound ends before the span",
    }


def test_a_span_before_its_sound_begins_has_none(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", sound=tone([440]), sound_starts_s=2, num_frames=72)
    early, late = all_decoded(path, [span(500, 1_500), span(2_100, 2_900)])
    assert early.frames is not None
    assert lost(early) == {"audio": "no sound in the span"}
    assert late.waveform is not None
    assert len(late.waveform) == pytest.approx(0.8 * 16_000, abs=1)


def test_a_span_that_goes_beyond_the_end_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", sound=tone([440, 880]), num_frames=48)
    media = decoded(path, 1_000, 4_000)
    assert media.frames is not None
    assert media.waveform is not None
    assert [(each.modality, each.code, each.message) for each in media.failures][:2] == [
        ("video", "beyond_end", "the picture ends 1.0 s into the span of 3.0 s"),
        ("audio", "beyond_end", "the sound ends 1.0 s into the span of 3.0 s"),
    ]


def test_a_long_span_is_capped_like_a_long_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", sound=tone(PITCHES), num_frames=3 * FPS)
    media = decode_media(
        path, span(1_000, 3_000), DecodeConfig(max_duration_s=1.0), ["video", "audio"]
    )
    assert max(numbers(media)) <= 2 * FPS
    assert min(numbers(media)) >= FPS
    assert media.waveform is not None
    assert len(media.waveform) == pytest.approx(16_000, abs=1_100)
    assert pitch_of(media.waveform[2_000:14_000]) == pytest.approx(PITCHES[1], abs=5)
    assert {(each.modality, each.message) for each in media.failures} == {
        ("video", "2.0 s long; the first 1 s were used"),
        ("audio", "2.0 s long; the first 1 s were used"),
    }


def test_every_span_of_a_file_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"words " * 100)
    for media in all_decoded(path, [span(0, 1_000), span(1_000, 2_000)]):
        assert lost(media).keys() == {"video", "audio"}
    for media in all_decoded(tmp_path / "nowhere.mp4", [span(0, 1_000), span(1_000)]):
        assert lost(media)["video"] == "No such file or directory"


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "message"),
    [
        (-5, None, "a span starts at 0 ms or later, not at -5 ms"),
        (1_000, 1_000, "a span ends after its start: 1000 to 1000 ms"),
        (1_000, 999, "a span ends after its start: 1000 to 999 ms"),
    ],
)
def test_a_span_without_length_or_before_the_file_is_none(
    start_ms: int, end_ms: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MediaSpan(start_ms=start_ms, end_ms=end_ms)


def test_spans_that_are_not_in_order_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="in order of their start"):
        decode_spans(tmp_path / "nowhere.mp4", [span(5), span(0)], DecodeConfig(), ["video"])


def test_no_spans_of_a_file_are_nothing(tmp_path: Path) -> None:
    assert all_decoded(tmp_path / "nowhere.mp4", []) == []


# ---------------------------------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute and a half."""
    return write_clip(
        tmp_path_factory.mktemp("long") / "a.mp4",
        num_frames=90 * FPS,
        picture=lambda number: textured(number % 480),
        options={"preset": "ultrafast", "crf": "30", "g": "24"},
        sound=tone([300 + 10 * second for second in range(90)]),
    )


@pytest.mark.slow
def test_memory_holds_one_span_however_long_the_file_is(long_file: Path) -> None:
    """Counted: packets, and bytes of arrays. The sound alone is 17 MB before it is resampled."""
    spans = [span(3_000 * number, 3_000 * number + 2_500) for number in range(30)]
    gc.collect()
    gc.freeze()  # what was there before is not looked through thirty times
    tracemalloc.start()
    try:
        most_packets, pitches = 0, []
        for media in decode_spans(long_file, spans, DecodeConfig(), ["video", "audio"]):
            assert media.waveform is not None
            pitches.append(pitch_of(media.waveform[1_000:15_000]))
            del media
            num_packets = sum(type(each) is av.Packet for each in gc.get_objects())
            most_packets = max(most_packets, num_packets)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    assert np.allclose(pitches, [300 + 30 * number for number in range(30)], atol=5)
    assert 0 < most_packets < 5 * FPS
    assert peak < 12 << 20


@pytest.mark.heavy
def test_spans_come_as_they_are_read(long_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants the first waits for no other; whoever stops reads no more."""
    num_read = 0
    take = decode_packets.VideoPacketReader.take

    def count(self: object, packet: av.Packet) -> object:
        nonlocal num_read
        num_read += 1
        return take(self, packet)  # type: ignore[arg-type]

    monkeypatch.setattr(decode_packets.VideoPacketReader, "take", count)
    spans = [span(0, 1_000), span(1_000, 2_000), span(140_000, 141_000)]
    reading = decode_spans(long_file, spans, DecodeConfig(), ["video", "audio"])
    assert next(reading).span == spans[0]
    assert num_read < 3 * FPS
    next(reading)
    assert num_read < 4 * FPS


@pytest.mark.heavy
def test_a_file_without_key_frames_costs_the_spans_that_it_is_too_large_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes before a span is held from a key frame on; there is a limit to that."""
    path = write_file(tmp_path, "one-key-frame")
    with av.open(str(path)) as container:
        sizes = [packet.size for packet in container.demux(video=0)]
    first, last = span(0, 500), span(4_000, 4_500)
    monkeypatch.setattr(decode_packets, "MAX_PACKET_BYTES", sum(sizes[: len(sizes) // 2]))
    early, late = all_decoded(path, [first, last])
    assert lost(early) == {}
    assert lost(late).keys() == {"video"}
    assert "MiB of packets" in lost(late)["video"]
    assert late.waveform is not None
    monkeypatch.setattr(decode_packets, "MAX_PACKET_BYTES", sum(sizes))
    assert [lost(media) for media in all_decoded(path, [first, last])] == [{}, {}]
