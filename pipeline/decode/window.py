"""A span in the time base of one stream, with the limits of its packets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av

from pipeline.decode.container import TRUNCATION_SLACK_S, Declared
from pipeline.decode.ledger import Ledger
from pipeline.errors import ClipError
from pipeline.schema import MediaSpan, Modality

# Why reading stopped: at the window's end, or because `max_duration_s` allows no more.
Stop = Literal["end", "limit"]
# Differences between picture and sound up to this value are ignored: codecs start a frame early or
# late (AAC by 21 ms, HE-AAC by 46 ms), a picture at 24 frames per second lasts 42 ms, and viewers
# notice nothing below 45 ms (ITU-R BT.1359).
SYNC_SLACK_S = 0.05
NAMES: Mapping[Modality, str] = {"video": "picture", "audio": "sound"}


@dataclass(frozen=True, kw_only=True)
class Window:
    """A span on the clock of one stream, in ticks of its time base.

    `zero`, `start` and `end` are exact and rarely whole. Packets are compared with whole ticks:
    `first`, `past` and `limit` are the first ticks at or after a moment.

    zero:  the start of the span, the origin of times
    start: as `zero`; None if the span starts with the file, and so includes the stream from its
        first shown picture or sound
    end:   None if the span ends with the file or with `max_duration_s`
    limit: the tick of `max_duration_s`
    shown_from: packets before this tick are hidden; None if none are
    """

    span: MediaSpan
    time_base: Fraction
    zero: Fraction
    start: Fraction | None
    end: Fraction | None
    max_duration_s: float
    limit: int
    first: int = 0
    past: int = 0
    shown_from: int | None = None

    @classmethod
    def of(
        cls,
        span: MediaSpan,
        time_base: Fraction,
        origin_s: Fraction,
        max_duration_s: float,
        *,
        hides_negative: bool = False,
    ) -> "Window":
        """
        origin_s: the start of the clock of the file, on the clock of its streams
        hides_negative: see `container.hides_negative_times`
        """
        zero = (origin_s + Fraction(span.start_ms, 1000)) / time_base
        start = zero if span.start_ms else None
        end = None
        if span.end_ms is not None and span.end_ms - span.start_ms <= 1000 * max_duration_s:
            end = (origin_s + Fraction(span.end_ms, 1000)) / time_base
        return cls(
            span=span,
            time_base=time_base,
            zero=zero,
            start=start,
            end=end,
            max_duration_s=max_duration_s,
            limit=math.ceil(zero + Fraction(max_duration_s) / time_base),
            first=0 if start is None else math.ceil(start),
            past=0 if end is None else math.ceil(end),
            shown_from=0 if hides_negative else None,
        )

    @property
    def origin(self) -> Fraction:
        """The start of the clock of the file."""
        return self.zero - Fraction(self.span.start_ms, 1000) / self.time_base

    @property
    def asked_s(self) -> float | None:
        """Length of the span; None if it goes to the end of the file."""
        span = self.span
        return None if span.end_ms is None else (span.end_ms - span.start_ms) / 1000

    def has_begun(self, packet: av.Packet) -> bool:
        """False as long as no packet from here on can be after the window."""
        tick = decoding_tick(packet)
        return self.start is None or tick is None or tick >= self.first

    def is_before(self, packet: av.Packet) -> bool:
        """Whether the packet is shown before the window or exactly at its start."""
        tick = shown_tick(packet)
        return self.start is not None and tick is not None and tick <= self.start

    def stop_at(self, packet: av.Packet) -> Stop | None:
        """The reason why the window needs neither this packet nor any later one; None if it may.

        No picture is shown before its decoding time, and decoding times rise. Those of hidden
        packets, which an edit list may put between any two shown ones, do not.
        """
        if packet.is_discard:
            return None
        if self.end is not None:
            # Without decoding times, a later packet may hold a picture of the window.
            return "end" if packet.dts is not None and packet.dts >= self.past else None
        tick = decoding_tick(packet)
        return "limit" if tick is not None and tick >= self.limit else None

    def length_s(self, extent: "Extent") -> float:
        """The time from the start of the span to the end of the media read for it."""
        if extent.end is None:
            return 0.0
        return max(float((extent.end - self.zero) * self.time_base), 0.0)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """The media read for a window.

    end:  the tick at which its last packet has been shown; None without packets or times
    stop: None if the stream ended before
    """

    end: int | None
    stop: Stop | None


def decoding_tick(packet: av.Packet) -> int | None:
    # Matroska has no decoding times; if FFmpeg cannot guess them, the presentation time is used.
    return packet.dts if packet.dts is not None else packet.pts


def shown_tick(packet: av.Packet) -> int | None:
    return packet.pts if packet.pts is not None else packet.dts


def end_tick(packet: av.Packet) -> int | None:
    """The end of the display of the packet; None if it is hidden or has no time."""
    tick = shown_tick(packet)
    if tick is None or packet.is_discard:
        return None
    return int(tick) + (packet.duration or 0)


def note_lengths(
    windows: Mapping[Modality, Window],
    extents: Mapping[Modality, Extent],
    declared: Mapping[Modality, Declared],
    unread_end_s: float,
    ledger: Ledger,
) -> None:
    """Warns if a span is overlong, cut off or longer than the file; it still has features.

    unread_end_s: the end of the last of the other streams, on the clock of the file
    """
    lengths_s = {modality: windows[modality].length_s(each) for modality, each in extents.items()}
    for modality, extent in extents.items():
        window, promise = windows[modality], declared[modality]
        start_s = window.span.start_ms / 1000
        got_s = lengths_s[modality]
        if promise.is_of_file:
            got_s = max(*lengths_s.values(), unread_end_s - start_s)
        there_s = got_s if promise.end_s is None else promise.end_s - start_s
        if window.asked_s is not None:
            there_s = min(there_s, window.asked_s)
        if extent.stop == "limit":
            length = "longer" if promise.end_s is None else f"{there_s:.1f} s long"
            message = f"{length}; the first {window.max_duration_s:.0f} s were used"
            ledger.add(modality, ClipError("overlong", message), lost=False)
        if extent.stop is not None:  # nothing is missing, because there is more than declared
            continue
        if min(there_s, window.max_duration_s) - got_s > TRUNCATION_SLACK_S:
            message = f"{got_s:.1f} s of {there_s:.1f} s are there; the rest is missing"
            ledger.add(modality, ClipError("truncated", message), lost=False)
        elif (
            window.asked_s is not None and window.asked_s - lengths_s[modality] > TRUNCATION_SLACK_S
        ):
            message = (
                f"the {NAMES[modality]} ends {lengths_s[modality]:.1f} s into the span of "
                f"{window.asked_s:.1f} s"
            )
            ledger.add(modality, ClipError("beyond_end", message), lost=False)
