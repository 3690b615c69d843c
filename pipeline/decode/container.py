"""Opens media files safely and finds the streams to read.

Media files are hostile input: the demuxer is chosen by the magic bytes (FFmpeg would otherwise
follow playlists), only files are opened, codecs are on an allow list, and pixels, bytes and time
are limited.
"""

import contextlib
import shlex
import signal
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError
from av.stream import Disposition

from pipeline.decode.formats import find_demuxer, tell_other_format
from pipeline.errors import ClipError
from pipeline.schema import MEDIA, Modality

MAX_PIXELS = 16_777_216
MAX_PACKET_BYTES = 256 * 1024 * 1024
MAX_SECONDS_PER_CLIP = 60.0
OPEN_TIMEOUT_S = 5
# CPU time for one packet: the largest picture takes less than 1 s. Waiting for a core does not
# count, so that a busy machine ends no process that is only slow.
CORE_SECONDS_PER_PACKET = 30.0
# A container that declares this much more than it holds was cut off.
TRUNCATION_SLACK_S = 0.5

# Codecs in common use whose decoders are well tested; codecs of games and screen recorders are not
# on the list, because their decoders are rarely used.
VIDEO_CODECS = frozenset(
    "h264 hevc mpeg1video mpeg2video mpeg4 vp8 vp9 av1 libdav1d mjpeg mjpegb prores theora "
    "flv vp6 vp6a vp6f wmv1 wmv2 wmv3 vc1 msmpeg4v1 msmpeg4v2 msmpeg4 h261 h263 h263i h263p "
    "rv10 rv20 rv30 rv40 svq1 svq3 cinepak qtrle rpza dvvideo dnxhd cfhd jpeg2000 "
    "rawvideo v210 v308 v410 ffv1 ffvhuff huffyuv utvideo magicyuv".split()
)
AUDIO_CODECS = frozenset(
    "aac aac_latm mp1 mp1float mp2 mp2float mp3 mp3float ac3 eac3 dca mlp truehd opus vorbis "
    "flac alac tta wavpack wmav1 wmav2 wmapro wmalossless wmavoice speex nellymoser "
    "amrnb amrwb libopencore_amrnb libopencore_amrwb evrc qcelp gsm gsm_ms ilbc "
    "g722 g723_1 g726 g726le g729 truespeech adpcm_ima_qt adpcm_ima_wav adpcm_ms adpcm_swf "
    "adpcm_yamaha mace3 mace6 qdm2 qdmc dvaudio s302m pcm_alaw pcm_bluray pcm_dvd pcm_f16le "
    "pcm_f24le pcm_f32be pcm_f32le pcm_f64be pcm_f64le pcm_mulaw pcm_s16be pcm_s16be_planar "
    "pcm_s16le pcm_s16le_planar pcm_s24be pcm_s24le pcm_s24le_planar pcm_s32be pcm_s32le "
    "pcm_s32le_planar pcm_s64be pcm_s64le pcm_s8 pcm_s8_planar pcm_u16be pcm_u16le pcm_u24be "
    "pcm_u24le pcm_u32be pcm_u32le pcm_u8".split()
)
# Errors of libraries that a broken file can cause; any other error is a bug and must surface.
MEDIA_ERRORS = (FFmpegError, OSError, ValueError, IndexError, MemoryError)


_IS_WATCHED: ContextVar[bool] = ContextVar("decoding is watched", default=False)


@contextlib.contextmanager
def end_where_decoding_hangs() -> Iterator[None]:
    """Context in which SIGPROF ends this process if a decoder hangs in a packet, because it reacts
    to nothing else. For the main thread of a supervised process."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    before = _IS_WATCHED.set(True)
    try:
        yield
    finally:
        _IS_WATCHED.reset(before)


@contextlib.contextmanager
def one_packet() -> Iterator[None]:
    """Context of decoding one packet; in a supervised process it may take
    `CORE_SECONDS_PER_PACKET`."""
    if not _IS_WATCHED.get():
        yield
        return
    signal.setitimer(signal.ITIMER_PROF, CORE_SECONDS_PER_PACKET)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def check_file(path: Path) -> Path:
    """The path of a media file. Raises ClipError if it is missing or must not be opened."""
    try:
        info = path.stat()
    except OSError as error:
        raise ClipError("missing_file", reason(error)) from error
    if not stat.S_ISREG(info.st_mode):  # opening a FIFO would block for ever
        raise ClipError("not_a_file", "not a regular file")
    if info.st_size == 0:
        raise ClipError("empty_file", "0 bytes")
    return path


def open_container(path: Path) -> "av.container.InputContainer":
    """Opens a file with the demuxer that its first bytes indicate. Raises ClipError."""
    try:
        with path.open("rb") as file:
            demuxer = find_demuxer(file)
            if demuxer is None:
                file.seek(0)
                raise ClipError("unknown_format", tell_other_format(file, path.name))
        return av.open(
            f"file:{path.absolute()}",
            format=demuxer,
            options={"max_pixels": str(MAX_PIXELS), "protocol_whitelist": "file"},
            timeout=(OPEN_TIMEOUT_S, OPEN_TIMEOUT_S),
        )
    except av.error.EOFError as error:
        told = "End of file: it was cut off, or holds headers and nothing else"
        raise ClipError("unreadable", told) from error
    except MEDIA_ERRORS as error:
        raise ClipError("unreadable", reason(error)) from error


def reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def find_candidates(
    container: "av.container.InputContainer", modality: Modality
) -> list["av.stream.Stream"]:
    """The streams of "video" or "audio", FFmpeg's choice first. Raises ClipError for none."""
    candidates = [
        stream
        for stream in getattr(container.streams, modality)
        if not stream.disposition & Disposition.attached_pic  # a cover picture is not a video
    ]
    if not candidates:
        what = {"video": "picture", "audio": "sound"}[modality]
        raise ClipError(f"no_{modality}", f"the file has no {what}")
    best = container.streams.best(modality)
    return sorted(candidates, key=lambda stream: stream is not best)


def find_stream(container: "av.container.InputContainer", modality: Modality) -> "av.stream.Stream":
    """FFmpeg's choice of the "video" or "audio" streams; limits are set on its decoder.

    Raises ClipError if there is none, or its codec is not on the list.
    """
    stream = find_candidates(container, modality)[0]
    bind_decoder(stream, modality)
    return stream


def bind_decoder(stream: "av.stream.Stream", modality: Modality) -> None:
    context = stream.codec_context
    allowed = VIDEO_CODECS if modality == "video" else AUDIO_CODECS
    if context is None or context.name not in allowed:
        which = "" if context is None else f" {context.name}"
        message = f"{modality} codec{which} is not among those that are read"
        raise ClipError("codec", f"{message}; convert it: {_conversion(stream.container)}")
    if modality == "video" and context.width * context.height > MAX_PIXELS:
        raise ClipError("too_large", f"{context.width}x{context.height} pixels a frame")
    context.options = {"max_pixels": str(MAX_PIXELS), "codec_whitelist": context.name}


def _conversion(container: "av.container.InputContainer") -> str:
    """The command that converts the file to supported codecs, under a new name if it is an MP4
    already."""
    name = Path(container.name).name
    stem = Path(name).stem if not name.lower().endswith(".mp4") else f"{Path(name).stem}.new"
    return f"ffmpeg -i {shlex.quote(name)} -c:v libx264 -c:a aac {shlex.quote(f'{stem}.mp4')}"


def is_timed(container: "av.container.InputContainer") -> bool:
    """Whether the container has presentation times. AVI has decoding times only: the same times,
    but assigned to other pictures if pictures are reordered."""
    return container.format.name != "avi"


def hides_negative_times(container: "av.container.InputContainer") -> bool:
    """Whether packets with a negative presentation time are hidden: an edit list moves what is
    before a cut there. In fragmented files, FFmpeg returns these packets unmarked."""
    return "mp4" in container.format.name


def origin_s(container: "av.container.InputContainer") -> Fraction:
    """The start of the clock of a file on the clock of its streams: when the first picture or sound
    appears, whichever is earlier, even if only one of them is requested."""
    earliest = min(_starts_s(container), default=Fraction(container.start_time or 0, av.time_base))
    return max(earliest, Fraction(0)) if hides_negative_times(container) else earliest


def _starts_s(container: "av.container.InputContainer") -> list[Fraction]:
    """The first presentation times of picture and sound, without packets marked as hidden."""
    starts = []
    for modality in MEDIA:
        with contextlib.suppress(ClipError):  # one of the two is enough
            starts.append(_start_s(find_candidates(container, modality)[0]))
    return [start for start in starts if start is not None]


def _start_s(stream: "av.stream.Stream") -> Fraction | None:
    if stream.start_time is None or not stream.time_base:
        return None
    return Fraction(stream.start_time * stream.time_base)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The length of a stream as its container declares it.

    start_s: its start on the clock of the file (see `MediaSpan`)
    end_s: its end there; None if none is declared
    is_of_file: whether the end is that of the longest stream instead of this one
    """

    start_s: float
    end_s: float | None
    is_of_file: bool

    @property
    def length_s(self) -> float | None:
        return None if self.end_s is None else max(self.end_s - self.start_s, 0.0)


def declared_length(
    container: "av.container.InputContainer", stream: "av.stream.Stream"
) -> Declared:
    """The declared length. Matroska, FLV and ASF declare it only for the file, from zero even if
    its times begin later. Raw ADTS declares none; FFmpeg guesses it from the first packets.
    """
    origin, start = origin_s(container), _start_s(stream)
    start_s = Fraction(0) if start is None else max(start - origin, Fraction(0))
    end_s: Fraction | None = None
    is_of_file = False
    if container.format.name == "aac":
        pass
    elif stream.duration and stream.time_base:
        end_s = Fraction(stream.duration * stream.time_base)
        is_of_file = container.format.name == "asf"  # FFmpeg copies it to every stream
    elif container.duration:
        end_s = Fraction(container.duration, av.time_base)
        is_of_file = True
    if end_s is not None and not is_of_file:
        from_zero_s, end_s = end_s - origin, end_s + start_s
        if hides_negative_times(container):
            # Hidden but unmarked packets count. With an empty edit before a cut FFmpeg counts
            # the length from zero: only the index tells then.
            end_s -= max(-min(_starts_s(container), default=Fraction(0)), Fraction(0))
            shown = (each.timestamp for each in stream.index_entries if not each.is_discard)
            last = max(shown, default=None) if from_zero_s < end_s else None
            if last is not None and stream.time_base:
                last_s = last * stream.time_base - origin
                if end_s - last_s > TRUNCATION_SLACK_S:
                    end_s = max(from_zero_s, last_s)
    elif end_s is not None and end_s > origin:  # else it was counted from the start
        end_s -= origin
    return Declared(
        start_s=float(start_s),
        end_s=None if end_s is None else float(end_s),
        is_of_file=is_of_file,
    )
