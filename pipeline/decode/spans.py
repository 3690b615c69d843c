"""Decodes spans of a media file into sampled frames and mono waveforms, in one pass over its
packets.

A file is opened once and its packets are read once, in order. Frames are chosen from the packets'
presentation times before anything is decoded; pictures that no chosen one refers to are not
decoded, and only chosen frames are scaled and converted. On clips like MELD's this takes 30 % less
time with bit-identical frames. Sound is decoded from the start of the file, because its decoders
have a state; it costs little.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av

from pipeline.decode.audio import Sound, SoundReader, try_audio
from pipeline.decode.container import (
    MAX_SECONDS_PER_CLIP,
    MEDIA_ERRORS,
    Declared,
    check_file,
    declared_length,
    hides_negative_times,
    is_timed,
    open_container,
    origin_s,
    reason,
)
from pipeline.decode.ledger import Ledger
from pipeline.decode.packets import VideoPacketReader, VideoPackets
from pipeline.decode.tracks import Track, find_track
from pipeline.decode.video import Pictures, try_video
from pipeline.decode.window import Extent, Window, end_tick, note_lengths
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan, Modality

logger = logging.getLogger(__name__)

# Media outside of the spans are read at least this many times faster than real time.
_MIN_SPEED = 10.0


def decode_media(
    path: Path, span: MediaSpan, config: DecodeConfig, modalities: Sequence[Modality]
) -> DecodedMedia:
    """Decodes one span of a media file; `modalities` is a subset of "video" and "audio".

    It never raises for a bad file: an absent modality is None, with an entry in `failures`.
    """
    [decoded] = decode_spans(path, [span], config, modalities)
    return decoded


def decode_spans(
    path: Path, spans: Sequence[MediaSpan], config: DecodeConfig, modalities: Sequence[Modality]
) -> Iterator[DecodedMedia]:
    """Decodes the spans of one file, in order, with the same results as `decode_media`.

    The file is read once, up to the end of the last span, and only when the next span is requested.
    Memory holds the spans that are open at one position of the file: one, unless spans overlap.

    Args:
        spans: in order of their start; they may touch, overlap and leave gaps

    Raises:
        ValueError: the spans are not in order.
    """
    if any(after.start_ms < before.start_ms for before, after in pairwise(spans)):
        raise ValueError("spans of one file are read in order of their start")
    return _read(path, spans, config, [name for name in ("video", "audio") if name in modalities])


def _read(
    path: Path, spans: Sequence[MediaSpan], config: DecodeConfig, wanted: list[Modality]
) -> Iterator[DecodedMedia]:
    waiting = deque(_Open(span=span, ledger=Ledger(wanted)) for span in spans)
    try:
        if wanted:
            with open_container(check_file(path)) as container:
                yield from _decode(container, path, waiting, config, wanted)
    except ClipError as error:
        for each in waiting:
            each.ledger.lose_all(error)
    for each in waiting:  # spans that an error interrupted, or that request no modality
        yield DecodedMedia(span=each.span, failures=each.ledger.entries)


@dataclass(eq=False, kw_only=True)
class _Open:
    """A span whose modalities are completed one by one; its failures keep the ledger's order."""

    span: MediaSpan
    ledger: Ledger
    missing: set[Modality] = field(default_factory=set)
    extents: dict[Modality, Extent] = field(default_factory=dict)
    pictures: Pictures | None = None
    picture_failures: Ledger = field(default_factory=lambda: Ledger(["video"]))
    sound: Sound | None = None

    def take(self, part: VideoPackets | Sound, config: DecodeConfig) -> None:
        modality: Modality = "audio" if isinstance(part, Sound) else "video"
        self.missing.discard(modality)
        if part.extent is not None:
            self.extents[modality] = part.extent
        if isinstance(part, Sound):
            self.sound = part
        else:  # decoded at once: a span that waits for sound holds frames, not packets
            self.pictures = try_video(part, config, self.picture_failures)

    def give(
        self,
        windows: Mapping[Modality, Window],
        declared: Mapping[Modality, Declared],
        unread_end_s: float,
    ) -> DecodedMedia:
        in_order = {name: self.extents[name] for name in declared if name in self.extents}
        note_lengths(windows, in_order, declared, unread_end_s, self.ledger)
        self.ledger.extend(self.picture_failures)
        waveform = None if self.sound is None else try_audio(self.sound, self.ledger)
        return DecodedMedia(
            span=self.span,
            frames=None if self.pictures is None else self.pictures.frames,
            times_s=None if self.pictures is None else self.pictures.times_s,
            waveform=waveform,
            failures=self.ledger.entries,
        )


def _decode(
    container: "av.container.InputContainer",
    path: Path,
    waiting: deque[_Open],
    config: DecodeConfig,
    wanted: list[Modality],
) -> Iterator[DecodedMedia]:
    """Yields spans and removes them from `waiting`. Raises ClipError at a limit."""
    tracks: dict[Modality, Track] = {}
    for modality in wanted:
        try:
            track = find_track(container, modality, path)
        except ClipError as error:
            for each in waiting:
                each.ledger.add(modality, error, lost=True)
            continue
        tracks[modality] = track
        if track.warning is not None:
            for each in waiting:
                each.ledger.add(modality, track.warning, lost=False)
    streams = {name: track.stream for name, track in tracks.items()}
    declared = {name: declared_length(container, stream) for name, stream in streams.items()}
    origin, hides_negative = origin_s(container), hides_negative_times(container)
    windows = {
        name: [
            Window.of(
                each.span,
                _time_base(stream),
                origin,
                config.max_duration_s,
                hides_negative=hides_negative,
            )
            for each in waiting
        ]
        for name, stream in streams.items()
    }
    unread = _Unread(origin)
    num_given = 0
    for each in waiting:
        each.missing |= streams.keys()
    for part in _read_parts(container, tracks, windows, unread, config):
        waiting[part.index - num_given].take(part, config)
        while waiting and not waiting[0].missing:
            on_clocks = {name: windows[name][num_given] for name in streams}
            yield waiting.popleft().give(on_clocks, declared, unread.end_s)
            num_given += 1


def _time_base(stream: "av.stream.Stream") -> Fraction:
    if not stream.time_base:
        raise ClipError("no_times", "a stream has no time base")
    return stream.time_base


def _read_parts(
    container: "av.container.InputContainer",
    tracks: Mapping[Modality, Track],
    windows: Mapping[Modality, Sequence[Window]],
    unread: "_Unread",
    config: DecodeConfig,
) -> Iterator[VideoPackets | Sound]:
    """Yields the part of each stream for each window as soon as its packets are read."""
    readers: dict[int, VideoPacketReader | SoundReader] = {
        track.stream.index: (
            SoundReader(windows[modality], config, track.channels)
            if modality == "audio"
            else VideoPacketReader(windows[modality], timed=is_timed(container))
        )
        for modality, track in tracks.items()
    }
    if not readers:
        return
    clock = _Clock([window.span for window in next(iter(windows.values()))])
    try:
        for packet in container.demux():
            clock.check()
            reader = readers.get(packet.stream.index)
            if reader is None:
                unread.note(packet)
                continue
            if packet.size == 0 or reader.is_done:  # size 0: the flush at the end
                continue
            for part in reader.take(packet):
                yield from clock.pause(part)
            if all(reader.is_done for reader in readers.values()):
                return
    except MEDIA_ERRORS as error:
        # Media read so far are used; `note_lengths` reports that something is missing.
        logger.debug("demuxing ended early: %s", reason(error))
    for reader in readers.values():
        for part in reader.finish():
            yield from clock.pause(part)


class _Unread:
    """The ends of the streams that are not read. Some containers declare only the length of the
    longest stream, which may be a subtitle track, a second sound track or an unrequested stream."""

    def __init__(self, origin_s: Fraction) -> None:
        self._origin_s = origin_s
        self.end_s = 0.0

    def note(self, packet: av.Packet) -> None:
        end = end_tick(packet)
        if end is not None and packet.time_base:
            self.end_s = max(self.end_s, float(end * packet.time_base - self._origin_s))


class _Clock:
    """The time limit of reading the next part; the time for using parts does not count."""

    def __init__(self, spans: Sequence[MediaSpan]) -> None:
        starts_ms = [span.start_ms for span in spans]
        gaps_ms = [after - before for before, after in pairwise([0, *starts_ms])]
        # Nothing is read after the last span.
        self._allowed_s = [MAX_SECONDS_PER_CLIP + gap / 1000 / _MIN_SPEED for gap in [*gaps_ms, 0]]
        self._start(0)

    def check(self) -> None:
        if time.monotonic() > self._deadline:
            raise ClipError("timeout", f"not read within {MAX_SECONDS_PER_CLIP:.0f} s")

    def pause(self, part: VideoPackets | Sound) -> Iterator[VideoPackets | Sound]:
        """Yields the part; the time starts again when the next is requested."""
        yield part
        self._start(part.index + 1)

    def _start(self, index: int) -> None:
        self._deadline = time.monotonic() + self._allowed_s[index]
