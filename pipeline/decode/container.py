"""A media file, opened so that it can do no harm, and the streams that are read of it.

Media files are hostile input: the demuxer is pinned from the magic bytes (FFmpeg would
otherwise follow playlists), nothing but files is opened, codecs come from a list, and pixels,
bytes and time have budgets.
"""

import stat
from pathlib import Path

import av
from av.error import FFmpegError
from av.stream import Disposition

from pipeline.errors import ClipError
from pipeline.schema import LocatedClip, Modality

MAX_PIXELS = 16_777_216
MAX_PACKET_BYTES = 256 * 1024 * 1024
MAX_SECONDS_PER_CLIP = 60.0
OPEN_TIMEOUT_S = 5
# A container that promises this much more than it delivers was cut off.
TRUNCATION_SLACK_S = 0.5

VIDEO_CODECS = frozenset(
    "h264 hevc mpeg1video mpeg2video mpeg4 vp8 vp9 av1 libdav1d mjpeg prores theora wmv2".split()
)
AUDIO_CODECS = frozenset(
    "aac mp3 mp3float ac3 eac3 opus vorbis flac alac pcm_s16le pcm_s24le pcm_s32le pcm_f32le "
    "pcm_s16be pcm_u8 pcm_mulaw pcm_alaw mp2 mp2float".split()
)
# Foreign errors that a broken file can cause; anything else is our bug and must surface.
MEDIA_ERRORS = (FFmpegError, OSError, ValueError, IndexError, MemoryError)


def check_file(clip: LocatedClip) -> Path:
    """The clip's media file. Raises ClipError where there is none that may be opened."""
    if clip.path is None:
        raise ClipError("missing_file", clip.missing or "no media file")
    try:
        info = clip.path.stat()
    except OSError as error:
        raise ClipError("missing_file", f"{clip.path}: {error.strerror}") from error
    if not stat.S_ISREG(info.st_mode):  # opening a fifo would block for ever
        raise ClipError("not_a_file", f"{clip.path}: not a regular file")
    if info.st_size == 0:
        raise ClipError("empty_file", f"{clip.path}: 0 bytes")
    return clip.path


def open_container(path: Path) -> "av.container.InputContainer":
    """Opened by the format that its first bytes tell. Raises ClipError."""
    try:
        with path.open("rb") as file:
            demuxer = _demuxer(file.read(12))
        if demuxer is None:
            raise ClipError("unknown_format", f"{path}: not MP4, Matroska, AVI, WAV, FLAC or MP3")
        return av.open(
            f"file:{path.absolute()}",
            format=demuxer,
            options={"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "file"},
            timeout=(OPEN_TIMEOUT_S, OPEN_TIMEOUT_S),
        )
    except MEDIA_ERRORS as error:
        raise ClipError("unreadable", f"{path}: {reason(error)}") from error


def _demuxer(magic: bytes) -> str | None:
    if magic[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return "mp4"
    if magic[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if magic[:4] == b"RIFF":
        return {b"AVI ": "avi", b"WAVE": "wav"}.get(magic[8:12])
    if magic[:4] in (b"fLaC", b"OggS"):
        return {b"fLaC": "flac", b"OggS": "ogg"}[magic[:4]]
    if magic[:3] == b"ID3" or (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        return "mp3"
    return None


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
