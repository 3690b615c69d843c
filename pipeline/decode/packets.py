"""A media file to the compressed packets of its streams, within budgets."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError
from av.stream import Disposition

from pipeline.decode.ledger import Ledger
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import Modality

logger = logging.getLogger(__name__)

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


@dataclass(frozen=True, kw_only=True)
class Packets:
    """Compressed packets of the chosen streams, in file order; None where no stream is."""

    video: list[av.Packet] | None
    audio: list[av.Packet] | None


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


def read_packets(
    container: "av.container.InputContainer", config: DecodeConfig, ledger: Ledger
) -> Packets:
    """One pass over the file, up to `max_duration_s`. Raises ClipError where a budget is spent."""
    streams = {
        modality: stream
        for modality in ledger.wanted
        if (stream := _choose_stream(container, modality, ledger)) is not None
    }
    packets: dict[int, list[av.Packet]] = {stream.index: [] for stream in streams.values()}
    cut = _demux(container, list(streams.values()), packets, config) if streams else set()
    longest_s = max((_length_s(packets[stream.index]) for stream in streams.values()), default=0.0)
    for modality, stream in streams.items():
        got_s = _length_s(packets[stream.index])
        declared_s = got_s
        if stream.duration:
            declared_s = float(stream.duration * stream.time_base)
        elif container.duration:  # Matroska tells it for the file only: that of its longest stream
            declared_s, got_s = container.duration / av.time_base, longest_s
        if packets[stream.index]:
            is_cut = stream.index in cut
            _note_length(modality, got_s, declared_s, config, ledger, is_cut=is_cut)
    by_modality = {name: packets[stream.index] for name, stream in streams.items()}
    return Packets(video=by_modality.get("video"), audio=by_modality.get("audio"))


def _choose_stream(
    container: "av.container.InputContainer", modality: Modality, ledger: Ledger
) -> "av.stream.Stream | None":
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
        ledger.add(modality, ClipError(f"no_{modality}", f"the file has no {what}"), lost=True)
        return None
    problem = _stream_problem(stream, modality)
    if problem is not None:
        ledger.add(modality, problem, lost=True)
        return None
    return stream


def _stream_problem(stream: "av.stream.Stream", modality: Modality) -> ClipError | None:
    context = stream.codec_context
    allowed = VIDEO_CODECS if modality == "video" else AUDIO_CODECS
    if context is None or context.name not in allowed:
        name = context.name if context is not None else "unknown"
        return ClipError("codec", f"{modality} codec {name} is not on the list of allowed codecs")
    if modality == "video" and context.width * context.height > MAX_PIXELS:
        return ClipError("too_large", f"{context.width}x{context.height} pixels a frame")
    context.options = {"max_pixels": str(MAX_PIXELS), "codec_whitelist": context.name}
    return None


def _demux(
    container: "av.container.InputContainer",
    streams: list["av.stream.Stream"],
    packets: dict[int, list[av.Packet]],
    config: DecodeConfig,
) -> set[int]:
    """Fills `packets`. Stops when every stream has reached `max_duration_s`; returns those
    that have."""
    deadline = time.monotonic() + MAX_SECONDS_PER_CLIP
    unfinished = {stream.index for stream in streams}
    num_bytes = 0
    try:
        for packet in container.demux(streams):
            if time.monotonic() > deadline:
                raise ClipError("timeout", f"not read within {MAX_SECONDS_PER_CLIP:.0f} s")
            index = packet.stream.index
            if packet.size == 0 or index not in unfinished:  # size 0: the flush at the end
                continue
            if _earliest_s(packet, packets[index]) >= config.max_duration_s:
                unfinished.discard(index)
                if not unfinished:
                    break
                continue
            packets[index].append(packet)
            num_bytes += packet.size
            if num_bytes > MAX_PACKET_BYTES:
                raise ClipError("too_large", f"more than {MAX_PACKET_BYTES >> 20} MiB of packets")
    except MEDIA_ERRORS as error:
        # What was read so far is still good; `_note_length` tells that something is missing.
        logger.debug("demuxing ended early: %s", reason(error))
    return {stream.index for stream in streams} - unfinished


def _time_s(packet: av.Packet, earlier: list[av.Packet]) -> float | None:
    """Decoding time since the stream's first packet, in seconds; None where unknown."""
    first = earlier[0] if earlier else packet
    tick, first_tick = _decoding_tick(packet), _decoding_tick(first)
    if tick is None or first_tick is None or packet.time_base is None:
        return None
    return float((tick - first_tick) * packet.time_base)


def _earliest_s(packet: av.Packet, earlier: list[av.Packet]) -> float:
    """No picture of this packet or a later one is shown before this, seconds from the start:
    decoding comes before showing, and decoding times rise."""
    first = earlier[0] if earlier else packet
    start = first.pts if first.pts is not None else first.dts
    tick = _decoding_tick(packet)
    if tick is None or start is None or packet.time_base is None:
        return 0.0
    return float((tick - start) * packet.time_base)


def _decoding_tick(packet: av.Packet) -> int | None:
    # Matroska has no decoding times; where FFmpeg cannot guess them the other will do.
    return packet.dts if packet.dts is not None else packet.pts


def _length_s(packets: list[av.Packet]) -> float:
    if not packets:
        return 0.0
    return (_time_s(packets[-1], packets) or 0.0) + _duration_s(packets[-1])


def _note_length(
    modality: Modality,
    got_s: float,
    declared_s: float,
    config: DecodeConfig,
    ledger: Ledger,
    *,
    is_cut: bool,
) -> None:
    """Overlong and cut-off files still give features: a warning, not a loss."""
    if is_cut:
        message = f"{declared_s:.1f} s long; the first {config.max_duration_s:.0f} s were used"
        ledger.add(modality, ClipError("overlong", message), lost=False)
    if min(declared_s, config.max_duration_s) - got_s > TRUNCATION_SLACK_S:
        message = f"{got_s:.1f} s of {declared_s:.1f} s are there; the rest was cut off"
        ledger.add(modality, ClipError("truncated", message), lost=False)


def _duration_s(packet: av.Packet) -> float:
    if not packet.duration or packet.time_base is None:
        return 0.0
    return float(packet.duration * packet.time_base)
