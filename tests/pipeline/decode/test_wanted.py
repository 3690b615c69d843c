"""Leaving out packets changes no sampled picture: over codecs, containers and ways to refer.

Each picture names its number in blocks of black and white. What is sampled of a file must be, bit
by bit, what a decoder shows that is given all of its packets, and must name the numbers that were
on screen at those times.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.decode.bitstream import INTRA_TOLD
from pipeline.decode.spans import decode_media
from pipeline.decode.video import Screen, choose_frames
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan

av.logging.set_level(None)

FPS = 25
SIDE, BLOCK = 64, 16
CONFIG = DecodeConfig(frame_height=SIDE, frame_width=SIDE)
_NOISE = np.random.default_rng(0).integers(100, 156, (SIDE, 4 * SIDE, 3), np.uint8)

Options = Mapping[str, str]


def numbered(number: int) -> NDArray[np.uint8]:
    """uint8 [64, 64, 3]: eight bits in the upper half, moving noise below them."""
    picture = np.ascontiguousarray(_NOISE[:, number : number + SIDE])
    for bit in range(8):
        row, column = BLOCK * (bit // 4), BLOCK * (bit % 4)
        picture[row : row + BLOCK, column : column + BLOCK] = 255 * (number >> bit & 1)
    return picture


def numbers_of(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers that pictures of 64 x 64 pixels name."""
    blocks = frames[:, : 2 * BLOCK].reshape(len(frames), 2, BLOCK, 4, BLOCK, 3)
    bits = blocks[:, :, 4:-4, :, 4:-4].mean(axis=(2, 4, 5)).reshape(len(frames), 8) > 128
    return (bits @ (1 << np.arange(8))).tolist()


@dataclass(frozen=True)
class Kind:
    """A way to encode, in one container."""

    codec: str
    extension: str
    options: Options
    pixels: str = "yuv420p"

    def __str__(self) -> str:
        words = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.codec, self.extension, self.pixels, *words])


_FORMATS = {"ts": "mpegts", "mpg": "mpeg", "wmv": "asf", "ogv": "ogg"}


def write(path: Path, kind: Kind, num_frames: int) -> Path:
    with av.open(str(path), "w", format=_FORMATS.get(kind.extension)) as container:
        video = container.add_stream(kind.codec, rate=FPS, options=dict(kind.options))
        video.width = video.height = SIDE
        video.pix_fmt = kind.pixels
        if kind.codec == "libvpx":  # its hidden pictures have times between those of the others
            video.codec_context.time_base = Fraction(1, 1000)
        if not {"qscale", "crf"} & kind.options.keys():
            video.bit_rate = 2_000_000
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = 1000 // FPS * number, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
    return path


# ----------------------------------------------------------------------------- what is to be there


@dataclass(frozen=True)
class Plain:
    """What a decoder shows that is given every packet: nothing left out, by its own thread.

    ticks: when each is shown; frames: uint8 [pictures, 64, 64, 3]
    """

    ticks: NDArray[np.int64]
    frames: NDArray[np.uint8]
    time_base: Fraction
    origin: Fraction
    last: int


def decode_plainly(path: Path) -> Plain:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        shown, own = [], []
        for packet in [*packets, None]:
            for frame in stream.codec_context.decode(packet):
                own.append(frame.pts if container.format.name != "avi" else frame.dts)
                small = frame.reformat(SIDE, SIDE, "rgb24", interpolation="BILINEAR")
                shown.append(small.to_ndarray())
        if container.format.name == "avi":
            own = sorted(packet.dts for packet in packets)[: len(shown)]
        pictures = dict(zip(own, shown, strict=True))
        return Plain(
            ticks=np.array(sorted(pictures)),
            frames=np.stack([pictures[tick] for tick in sorted(pictures)]),
            time_base=stream.time_base,
            origin=Fraction(container.start_time or 0, av.time_base) / stream.time_base,
            last=packets[-1].duration or int(np.median(np.diff(sorted(pictures)))),
        )


def expected(plain: Plain, span: MediaSpan) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The pictures on screen at the middles of 16 parts of a span, and their times in it."""
    ticks, end = plain.ticks, float(plain.ticks[-1] + plain.last)
    zero = float(plain.origin + Fraction(span.start_ms, 1000) / plain.time_base)
    start = max(zero, float(ticks[0])) if span.start_ms else float(ticks[0])
    if span.end_ms is not None:
        until = float(plain.origin + Fraction(span.end_ms, 1000) / plain.time_base)
        end = min(end, until)
        ticks = ticks[ticks < until]
    screen = Screen(shown=ticks, start=start, end=end, zero=zero)
    chosen = np.searchsorted(plain.ticks, choose_frames(screen, 16))
    return plain.frames[chosen], (plain.ticks[chosen] - zero) * float(plain.time_base)


def check(path: Path, kind: Kind, spans: Sequence[MediaSpan]) -> None:
    plain = decode_plainly(path)
    if kind.extension != "mpg":  # its times are guesses between those that are written
        assert numbers_of(plain.frames) == list(range(len(plain.frames))), str(kind)
    for span in spans:
        media = decode_media(path, span, CONFIG, ["video"])
        frames, times_s = expected(plain, span)
        assert media.frames is not None, (str(kind), span, media.failures)
        assert numbers_of(media.frames) == numbers_of(frames), (str(kind), span)
        assert np.array_equal(media.frames, frames), (str(kind), span)
        assert np.allclose(media.times_s, times_s, atol=1e-6), (str(kind), span)
        codes = {each.code for each in media.failures}
        assert codes <= {"few_frames", "beyond_end"}, (str(kind), span, codes)


# --------------------------------------------------------------------------------- the property


def h264(random: np.random.Generator) -> Options:
    params = {
        "keyint": random.integers(4, 40),
        "min-keyint": 2,
        "bframes": random.integers(0, 7),
        "b-adapt": random.integers(0, 3),
        "b-pyramid": random.choice(["none", "strict", "normal"]),
        "ref": random.integers(1, 6),
        "open-gop": random.integers(0, 2),
        "weightp": random.integers(0, 3),
        "scenecut": random.choice([0, 40]),
    }
    if random.random() < 0.2:
        params |= {"intra-refresh": 1, "open-gop": 0, "keyint": random.integers(12, 40)}
        params |= {"bframes": random.integers(0, 2)}  # with more, a refresh spans many key frames
    return {"x264-params": _joined(params), "preset": "veryfast"}


def hevc(random: np.random.Generator) -> Options:
    params = {
        "log-level": "none",
        "keyint": random.integers(4, 40),
        "min-keyint": 2,
        "bframes": random.integers(0, 7),
        "b-adapt": 0,
        "b-pyramid": random.integers(0, 2),
        "ref": random.integers(1, 5),
        "open-gop": random.integers(0, 2),
        "scenecut": 0,
        "rc-lookahead": 20,
        "pools": "none",
        "frame-threads": 1,
    }
    special = random.choice(["", "radl", "layers"])
    if special == "radl":
        params |= {"radl": 2, "open-gop": 0, "bframes": 4}
    if special == "layers":
        params |= {"temporal-layers": random.integers(2, 4), "bframes": 3, "b-pyramid": 1}
    return {"x265-params": _joined(params), "preset": "ultrafast"}


def mpeg(random: np.random.Generator) -> Options:
    flags = "+qscale" + random.choice(["", "+cgop"])
    options = {"qscale": "2", "g": random.integers(3, 20), "bf": random.integers(0, 4)}
    return _words(options) | {"flags": flags, "sc_threshold": "1000000000"}


def mpeg4(random: np.random.Generator) -> Options:
    flags = "+qscale" + random.choice(["", "+qpel", "+mv4", "+cgop"])
    options = {"qscale": "2", "g": random.integers(3, 20), "bf": random.integers(0, 4)}
    return _words(options) | {"flags": flags, "sc_threshold": "1000000000"}


def plain_p(random: np.random.Generator) -> Options:
    return _words({"qscale": 2, "flags": "+qscale", "g": random.integers(3, 20)})


def intra(random: np.random.Generator) -> Options:
    return {"qscale": "2", "flags": "+qscale"}


def vpx(random: np.random.Generator) -> Options:
    return _words(
        {
            "auto-alt-ref": random.integers(0, 2),
            "lag-in-frames": random.integers(2, 20),
            "g": random.integers(6, 40),
            "cpu-used": 5,
            "deadline": random.choice(["good", "realtime"]),
            "error-resilient": random.choice(["0", "default"]),
        }
    )


def svt_av1(random: np.random.Generator) -> Options:
    params = {
        "film-grain": random.choice([0, 20]),
        "irefresh-type": random.integers(1, 3),
        "pred-struct": random.choice([1, 2, 2]),
        "lp": 1,
    }
    params |= {"film-grain-denoise": 0} if params["film-grain"] else {}
    return {
        "preset": "9",
        "crf": "12",
        "g": str(random.integers(6, 40)),
        "svtav1-params": _joined(params),
    }


def aom_av1(random: np.random.Generator) -> Options:
    params = {
        "enable-fwd-kf": random.integers(0, 2),
        "sframe-dist": random.choice([0, 7]),
        "film-grain-test": random.choice([0, 3]),
    }
    options = {"cpu-used": 8, "g": random.integers(6, 40), "lag-in-frames": random.integers(0, 20)}
    return _words(options) | {"aom-params": _joined(params)}


def _joined(params: Mapping[str, object]) -> str:
    return ":".join(f"{name}={value}" for name, value in params.items())


def _words(options: Mapping[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items()}


# Codec, containers, how its options are drawn, pixel formats.
CODECS: Sequence[tuple[str, str, Callable[[np.random.Generator], Options], Sequence[str]]] = [
    ("libx264", "mp4 mov mkv ts flv avi", h264, ["yuv420p"]),
    ("libx265", "mp4 mov mkv ts", hevc, ["yuv420p", "yuv420p10le"]),
    ("mpeg1video", "mpg mkv ts avi", mpeg, ["yuv420p"]),
    ("mpeg2video", "ts mpg mkv mp4 avi", mpeg, ["yuv420p"]),
    ("mpeg4", "avi mp4 mkv ts mov", mpeg4, ["yuv420p"]),
    ("libvpx", "webm mkv avi", vpx, ["yuv420p"]),
    ("libvpx-vp9", "webm mkv mp4", vpx, ["yuv420p"]),
    ("libsvtav1", "mp4 mkv webm", svt_av1, ["yuv420p", "yuv420p10le"]),
    ("libaom-av1", "mp4 mkv webm", aom_av1, ["yuv420p"]),
    ("mjpeg", "mp4 mov mkv avi", intra, ["yuvj420p"]),
    ("prores_ks", "mov mkv", intra, ["yuv422p10le"]),
    ("flv", "flv", plain_p, ["yuv420p"]),
    ("wmv1", "wmv avi", plain_p, ["yuv420p"]),
    ("wmv2", "wmv avi", plain_p, ["yuv420p"]),
    ("msmpeg4", "wmv avi mkv", plain_p, ["yuv420p"]),
    ("libtheora", "ogv mkv", plain_p, ["yuv420p"]),
]
CODECS = [each for each in CODECS if each[0] in av.codecs_available]


def drawn(random: np.random.Generator, codec: int) -> tuple[Kind, int, list[MediaSpan]]:
    name, containers, draw, pixels = CODECS[codec]
    extension = str(random.choice(containers.split()))
    kind = Kind(name, extension, draw(random), str(random.choice(pixels)))
    num_frames = int(random.integers(17, 60))
    start_ms = int(random.integers(1, 1000 * num_frames // FPS - 100))
    end_ms = start_ms + int(random.integers(40, 1500))
    return kind, num_frames, [MediaSpan(), MediaSpan(start_ms=start_ms, end_ms=end_ms)]


@pytest.mark.heavy
@pytest.mark.parametrize("codec", range(len(CODECS)), ids=[each[0] for each in CODECS])
def test_sampled_pictures_are_those_of_a_full_decode(tmp_path: Path, codec: int) -> None:
    random = np.random.default_rng(codec)
    for number in range(2):
        kind, num_frames, spans = drawn(random, codec)
        check(write(tmp_path / f"{number}.{kind.extension}", kind, num_frames), kind, spans)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 130))
@pytest.mark.parametrize("codec", range(len(CODECS)), ids=[each[0] for each in CODECS])
def test_sampled_pictures_are_those_of_a_full_decode_everywhere(
    tmp_path: Path, codec: int, seed: int
) -> None:
    kind, num_frames, spans = drawn(np.random.default_rng([seed, codec]), codec)
    check(write(tmp_path / f"a.{kind.extension}", kind, num_frames), kind, spans)


# ------------------------------------------------------------------------------ what does not come


def spoilt(path: Path, target: Path, numbers: range) -> Path:
    """A copy whose packets of these numbers, in the order of the file, hold nothing but zeros."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        for number, packet in enumerate(packets):
            written = av.Packet(bytes(packet.size)) if number in numbers else packet
            written.pts, written.dts = packet.pts, packet.dts
            written.time_base, written.duration = packet.time_base, packet.duration
            written.is_keyframe = packet.is_keyframe
            written.stream = copy
            container.mux(written)
    return target


@pytest.mark.parametrize(("codec", "extension"), [("mjpeg", "mkv"), ("mjpeg", "avi")])
def test_a_picture_that_stands_in_for_another_is_recorded(
    tmp_path: Path, codec: str, extension: str
) -> None:
    """Pictures 20 to 23 are lost, of which 21 and 23 are sampled: 19 stays on screen."""
    kind = Kind(codec, extension, intra(np.random.default_rng(0)), "yuvj420p")
    whole = write(tmp_path / f"a.{extension}", kind, 40)
    media = decode_media(
        spoilt(whole, tmp_path / f"b.{extension}", range(20, 24)), MediaSpan(), CONFIG, ["video"]
    )
    assert media.frames is not None
    assert numbers_of(media.frames)[7:11] == [18, 19, 19, 26]
    failures = {each.code: each for each in media.failures}
    assert failures.keys() == {"bad_packets", "stand_ins"}
    assert not any(each.lost for each in media.failures)
    assert failures["stand_ins"].message == (
        "2 of 16 sampled frames were not decoded; frames up to 0.16 s away replace them"
    )


def test_a_hidden_picture_is_none_that_is_missing(tmp_path: Path) -> None:
    """As VP8's alternate references: its packet has a time, and what was before stays on screen."""
    kind = Kind("libvpx", "webm", {"deadline": "realtime", "g": "100", "auto-alt-ref": "0"})
    path = write(tmp_path / "a.webm", kind, 40)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    for number in (21, 23):  # the fifth bit of a picture: whether it is shown (RFC 6386, 9.1)
        hidden = bytes([packets[number][0] & ~0x10]) + packets[number][1:]
        assert content.count(packets[number]) == 1
        content = content.replace(packets[number], hidden)
    path.write_bytes(content)
    media = decode_media(path, MediaSpan(), CONFIG, ["video"])
    assert media.frames is not None
    assert numbers_of(media.frames)[7:11] == [18, 20, 22, 26]
    assert media.failures == ()


# ------------------------------------------------------------------- key frames that are none


def all_called_key(path: Path, target: Path) -> Path:
    """A copy whose container calls every packet a key frame."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        copy = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.is_keyframe, packet.stream = True, copy
                container.mux(packet)
    return target


@pytest.mark.parametrize(
    ("codec", "extension", "options"),
    [
        ("libx264", "mp4", {"g": "9", "preset": "veryfast"}),
        ("libx265", "mp4", {"x265-params": "keyint=9:log-level=none:pools=none"}),
        ("libvpx-vp9", "mp4", {"g": "9", "deadline": "realtime", "cpu-used": "8"}),
        ("mpeg1video", "mov", {"g": "9", "bf": "2"}),
        ("mpeg2video", "mp4", {"g": "9", "bf": "2"}),
        ("mpeg4", "mp4", {"g": "9", "bf": "2"}),
        ("mpeg4", "avi", {"g": "9"}),
        ("flv", "flv", {"g": "9"}),
        ("h263p", "avi", {"g": "9"}),
        ("svq1", "mov", {"g": "9"}),
        ("msmpeg4v2", "avi", {"g": "9"}),
    ],
)
def test_a_span_of_a_file_that_calls_every_picture_a_key_frame(
    tmp_path: Path, codec: str, extension: str, options: Options
) -> None:
    kind = Kind(codec, extension, options, "yuv410p" if codec == "svq1" else "yuv420p")
    path = write(tmp_path / f"a.{extension}", kind, 40)
    copy = all_called_key(path, tmp_path / f"b.{extension}")
    spans = [MediaSpan(start_ms=start, end_ms=start + 700) for start in (120, 440, 520, 640, 800)]
    check(path, kind, spans)
    check(copy, kind, spans)


@pytest.mark.parametrize("codec", ["mpeg1video", "mpeg2video", "mpeg4", "h263", "h263p"])
def test_a_picture_says_itself_whether_it_refers_to_others(codec: str) -> None:
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = 176, 144, "yuv420p"
    encoder.time_base, encoder.options = Fraction(1, FPS), {"g": "5"}
    packets = []
    for number in range(12):
        frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
        frame = frame.reformat(176, 144, "yuv420p")
        frame.pts = number
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    reader = INTRA_TOLD["h263" if codec == "h263p" else codec]
    assert [reader(bytes(packet)) for packet in packets] == [each.is_keyframe for each in packets]
    assert sum(each.is_keyframe for each in packets) == 3
