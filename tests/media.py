"""Media files that plant the answer: the grey of a frame is its number, the pitch of a second
names the second, and each channel has a pitch of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

RATE_HZ = 48_000
FPS = 24
SIZE = (160, 128)  # width, height


# Containers keep the times that they are given.
AS_TIMED = {"avoid_negative_ts": "disabled"}


def tone(pitches_hz: Sequence[float], rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    """One second of each pitch, one after the other."""
    times_s = np.arange(rate_hz) / rate_hz
    parts = [0.3 * np.sin(2 * np.pi * pitch * times_s) for pitch in pitches_hz]
    return np.concatenate(parts).astype(np.float32)


def pitch_of(waveform: NDArray[np.float32], rate_hz: int = 16_000) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.fft.rfftfreq(len(waveform), 1 / rate_hz)[spectrum.argmax()])


def grey(number: int) -> NDArray[np.uint8]:
    """The frame that names its number: 16 + 3 * number, mid-grey range, flat."""
    return np.full((SIZE[1], SIZE[0], 3), 16 + 3 * number, np.uint8)


def textured(number: int) -> NDArray[np.uint8]:
    """Moving noise: a wrongly decoded picture cannot be taken for the right one."""
    return np.ascontiguousarray(_NOISE[:, 2 * number : 2 * number + SIZE[0]])


# Squares of 4 by 4: noise of single pixels would make files ten times as large.
_SQUARES = np.random.default_rng(0).integers(
    0, 256, (SIZE[1] // 4, SIZE[0] // 4 + 256, 3), np.uint8
)
_NOISE = _SQUARES.repeat(4, axis=0).repeat(4, axis=1)


def _later(packets: list[av.Packet], by_s: float) -> list[av.Packet]:
    for packet in packets:
        packet.pts += round(by_s / packet.time_base)
        packet.dts += round(by_s / packet.time_base)
    return packets


def write_clip(
    path: Path,
    *,
    num_frames: int = 60,
    picture: Callable[[int], NDArray[np.uint8]] = grey,
    ticks: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, FPS),
    codec: str | None = "libx264",
    options: dict[str, str] | None = None,
    sound: NDArray[np.float32] | None = None,
    sound_codec: str = "aac",
    layout: str = "mono",
    rate_hz: int = RATE_HZ,
    container_options: dict[str, str] | None = None,
    container_format: str | None = None,
    sound_starts_s: float = 0,
    picture_starts_s: float = 0,
) -> Path:
    """`sound` is float32 [samples] or [channels, samples]; `ticks` are presentation times.
    `container_format` is as the extension tells, unless given. An MP4 file's edit list hides what
    starts below 0, with `AS_TIMED`.

    A file that was asked for before is not encoded again: many tests want the same.
    """
    settings = {name: value for name, value in locals().items() if name not in ("path", "sound")}
    heard = None if sound is None else (sound.shape, hash(sound.tobytes()))
    asked = f"{path.suffix} {heard} {settings}" if picture in (grey, textured) else None
    if asked in _WRITTEN:
        path.write_bytes(_WRITTEN[asked])
        return path
    with av.open(
        str(path), "w", format=container_format, options=container_options or {}
    ) as container:
        video = audio = None
        if codec is not None:
            video = container.add_stream(codec, rate=FPS, options=options or {"qp": "4"})
            video.width, video.height = SIZE
            video.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            video.codec_context.time_base = time_base
        if sound is not None:
            audio = container.add_stream(sound_codec, rate=rate_hz, layout=layout)
            if sound_codec.startswith("wma"):  # it has no default
                audio.bit_rate = 96_000
        packets: list[av.Packet] = []
        if video is not None:
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
                frame.pts = number if ticks is None else ticks[number]
                frame.time_base = time_base
                packets += _later(video.encode(frame), picture_starts_s)
            packets += _later(video.encode(), picture_starts_s)
        if audio is not None and sound is not None:
            channels = np.atleast_2d(sound)
            for start in range(0, channels.shape[1], 1024):
                samples = np.ascontiguousarray(channels[:, start : start + 1024])
                frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
                frame.sample_rate, frame.pts = rate_hz, start
                packets += _later(audio.encode(frame), sound_starts_s)
            packets += _later(audio.encode(), sound_starts_s)
        for packet in sorted(packets, key=lambda each: each.dts * each.time_base):
            container.mux(packet)
    if asked is not None:
        _WRITTEN[asked] = path.read_bytes()
    return path


_WRITTEN: dict[str, bytes] = {}


@dataclass(frozen=True)
class Track:
    """A subtitle track to be written; cues: start and length in ms, and the text as its codec has
    it."""

    codec: str
    cues: Sequence[tuple[int, int, str]] = ()
    language: str = ""
    disposition: int = 0


# FFmpeg's encoders of subtitles open with a header alone.
_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name
Style: Default

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""


def write_subtitled(
    path: Path, tracks: Sequence[Track], *, num_frames: int = 72, starts_s: float = 0
) -> Path:
    """A clip without sound, with these tracks. `starts_s` moves picture and cues alike."""
    codec = "libvpx" if path.suffix == ".webm" else "libx264"
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=FPS)
        video.width, video.height = SIZE
        video.pix_fmt = "yuv420p"
        streams = []
        for track in tracks:
            stream = container.add_stream(track.codec)
            stream.time_base = Fraction(1, 1000)
            if track.codec != "dvbsub":  # pictures
                stream.codec_context.subtitle_header = _HEADER
            if track.language:
                stream.metadata["language"] = track.language
            stream.disposition = track.disposition
            streams.append(stream)
        packets: list[av.Packet] = []
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(grey(number % 70), format="rgb24")
            frame.pts = number
            packets += video.encode(frame)
        packets = _later([*packets, *video.encode()], starts_s)
        for track, stream in zip(tracks, streams, strict=True):
            for start_ms, length_ms, text in track.cues:
                content = text.encode()
                if track.codec == "mov_text":
                    content = len(content).to_bytes(2, "big") + content
                packet = av.Packet(content)
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                packet.pts = packet.dts = start_ms + round(1000 * starts_s)
                packet.duration = length_ms
                packets.append(packet)
        for packet in sorted(packets, key=lambda each: each.dts * each.time_base):
            container.mux(packet)
    return path


def jpegs(num: int, picture: Callable[[int], NDArray[np.uint8]] = textured) -> list[bytes]:
    """Each as a camera's page would send it."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height = SIZE
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1, FPS)
    frames = (av.VideoFrame.from_ndarray(picture(number), format="rgb24") for number in range(num))
    packets = [packet for frame in frames for packet in encoder.encode(frame)]
    return [bytes(packet) for packet in [*packets, *encoder.encode(None)]]
