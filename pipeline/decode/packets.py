"""A media file to the compressed packets of its streams, within budgets."""

import logging
import time
from dataclasses import dataclass

import av

from pipeline.decode.container import (
    MAX_PACKET_BYTES,
    MAX_SECONDS_PER_CLIP,
    MEDIA_ERRORS,
    TRUNCATION_SLACK_S,
    find_stream,
    reason,
)
from pipeline.decode.ledger import Ledger
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import Modality

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Packets:
    """Compressed packets of the chosen streams, in file order; None where no stream is."""

    video: list[av.Packet] | None
    audio: list[av.Packet] | None


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
    try:
        return find_stream(container, modality)
    except ClipError as error:
        ledger.add(modality, error, lost=True)
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
