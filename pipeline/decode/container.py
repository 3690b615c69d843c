"""A media file, opened so that it can do no harm, and the streams that are read of it.

Media files are hostile input: the demuxer is pinned from the magic bytes (FFmpeg would
otherwise follow playlists), nothing but files is opened, codecs come from a list, and pixels,
bytes and time have budgets.
"""

import stat
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from av.error import FFmpegError
from av.stream import Disposition

from pipeline.errors import ClipError
from pipeline.schema import Modality

MAX_PIXELS = 16_777_216
MAX_PACKET_BYTES = 256 * 1024 * 1024
MAX_SECONDS_PER_CLIP = 60.0
OPEN_TIMEOUT_S = 5
# A container that promises this much more than it delivers was cut off.
TRUNCATION_SLACK_S = 0.5

VIDEO_CODECS = frozenset(
    "h264 hevc mpeg1video mpeg2video mpeg4 vp8 vp9 av1 libdav1d mjpeg prores theora "
    "flv vp6f wmv1 wmv2 wmv3 vc1 msmpeg4".split()
)
AUDIO_CODECS = frozenset(
    "aac aac_latm mp3 mp3float ac3 eac3 opus vorbis flac alac pcm_s16le pcm_s24le pcm_s32le "
    "pcm_f32le pcm_s16be pcm_u8 pcm_mulaw pcm_alaw pcm_dvd pcm_bluray mp2 mp2float wmav1 wmav2 "
    "wmapro nellymoser adpcm_swf".split()
)
# Foreign errors that a broken file can cause; anything else is our bug and must surface.
MEDIA_ERRORS = (FFmpegError, OSError, ValueError, IndexError, MemoryError)


CONTAINERS = (
    "MP4, Matroska, WebM, AVI, MPEG-TS, MPEG-PS, FLV, ASF/WMV, WAV, FLAC, Ogg, MP3 or ADTS AAC"
)
# Enough for an ID3 tag's header and for three packets of a transport stream.
_HEAD_BYTES = 1024
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def check_file(path: Path) -> Path:
    """The path of a media file. Raises ClipError where there is none that may be opened."""
    try:
        info = path.stat()
    except OSError as error:
        raise ClipError("missing_file", f"{path.name}: {error.strerror}") from error
    if not stat.S_ISREG(info.st_mode):  # opening a fifo would block for ever
        raise ClipError("not_a_file", "not a regular file")
    if info.st_size == 0:
        raise ClipError("empty_file", "0 bytes")
    return path


def open_container(path: Path) -> "av.container.InputContainer":
    """Opened by the format that its first bytes tell. Raises ClipError."""
    try:
        with path.open("rb") as file:
            demuxer = _demuxer(file)
        if demuxer is None:
            raise ClipError("unknown_format", f"not {CONTAINERS}")
        return av.open(
            f"file:{path.absolute()}",
            format=demuxer,
            options={"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "file"},
            timeout=(OPEN_TIMEOUT_S, OPEN_TIMEOUT_S),
        )
    except MEDIA_ERRORS as error:
        raise ClipError("unreadable", reason(error)) from error


def _demuxer(file: BinaryIO) -> str | None:
    """FFmpeg's name of the format; None where it is none of `CONTAINERS`."""
    head = file.read(_HEAD_BYTES)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mp4"
    if head[:4] == b"RIFF":
        return {b"AVI ": "avi", b"WAVE": "wav"}.get(head[8:12])
    for magic, demuxer in (
        (b"\x1aE\xdf\xa3", "matroska"),
        (b"fLaC", "flac"),
        (b"OggS", "ogg"),
        (b"FLV\x01", "flv"),
        (b"\x00\x00\x01\xba", "mpeg"),
        (_ASF_HEADER, "asf"),
    ):
        if head.startswith(magic):
            return demuxer
    if _is_transport_stream(head):
        return "mpegts"
    if head[:3] == b"ID3":  # before either of two formats
        file.seek(_id3_bytes(head))
        return "aac" if _is_adts(file.read(2)) else "mp3"
    if _is_adts(head):
        return "aac"
    return "mp3" if head[:1] == b"\xff" and head[1:2] >= b"\xe0" else None


def _is_transport_stream(head: bytes) -> bool:
    """A sync byte at the start of each of the first three packets: of 188 bytes, or of 192 where
    four bytes of time stand before each (Blu-ray, AVCHD)."""
    return any(
        len(head) > first + 2 * step and set(head[first : first + 2 * step + 1 : step]) == {0x47}
        for first, step in ((0, 188), (4, 192))
    )


def _is_adts(head: bytes) -> bool:
    """Twelve bits of sync and a layer of 0, which MPEG audio never has (ISO 14496-3, 1.A.2.2)."""
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def _id3_bytes(head: bytes) -> int:
    """The length of an ID3v2 tag with its header: four times seven bits."""
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte & 0x7F
    return size + 10


def reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def find_stream(container: "av.container.InputContainer", modality: Modality) -> "av.stream.Stream":
    """The stream that is read for "video" or "audio", its decoder bound by the budgets.

    Raises ClipError where there is none, or none that may be decoded.
    """
    candidates = [
        stream
        for stream in getattr(container.streams, modality)
        if not stream.disposition & Disposition.attached_pic  # a cover picture is no video
    ]
    stream = container.streams.best(modality)
    if stream not in candidates:
        stream = candidates[0] if candidates else None
    if stream is None:
        what = {"video": "picture", "audio": "sound"}[modality]
        raise ClipError(f"no_{modality}", f"the file has no {what}")
    _bind_decoder(stream, modality)
    return stream


def _bind_decoder(stream: "av.stream.Stream", modality: Modality) -> None:
    context = stream.codec_context
    allowed = VIDEO_CODECS if modality == "video" else AUDIO_CODECS
    if context is None or context.name not in allowed:
        name = context.name if context is not None else "unknown"
        raise ClipError("codec", f"{modality} codec {name} is not on the list of allowed codecs")
    if modality == "video" and context.width * context.height > MAX_PIXELS:
        raise ClipError("too_large", f"{context.width}x{context.height} pixels a frame")
    context.options = {"max_pixels": str(MAX_PIXELS), "codec_whitelist": context.name}


def is_timed(container: "av.container.InputContainer") -> bool:
    """Whether the container tells when pictures are shown. AVI has decoding times only: the same
    times, each given to another picture where pictures are reordered."""
    return container.format.name != "avi"


def origin_s(container: "av.container.InputContainer") -> Fraction:
    """Where a file's clock begins, on that of its streams: their earliest presentation time."""
    return Fraction(container.start_time or 0, av.time_base)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The length that a container declares; None where it declares none.

    is_of_file: it is that of the longest stream, not of this one
    """

    length_s: float | None
    is_of_file: bool


def declared_length(
    container: "av.container.InputContainer", stream: "av.stream.Stream"
) -> Declared:
    """Matroska and FLV tell the length for the file only. Raw ADTS tells none, and what FFmpeg
    gives is a guess from the first packets."""
    if container.format.name == "aac":
        return Declared(length_s=None, is_of_file=False)
    if stream.duration and stream.time_base:
        return Declared(length_s=float(stream.duration * stream.time_base), is_of_file=False)
    if container.duration:
        return Declared(length_s=container.duration / av.time_base, is_of_file=True)
    return Declared(length_s=None, is_of_file=False)
