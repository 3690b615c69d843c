"""A span in the time base of one stream: where its packets begin and end."""

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
# Picture and sound that begin or are apart by no more than this are taken as together: codecs begin
# a frame early or late (AAC by 21 ms, HE-AAC by 46 ms), a picture at 24 a second stays for 42 ms,
# and viewers notice nothing below 45 ms (ITU-R BT.1359).
SYNC_SLACK_S = 0.05
NAMES: Mapping[Modality, str] = {"video": "picture", "audio": "sound"}


@dataclass(frozen=True, kw_only=True)
class Window:
    """A span on one stream's clock, in ticks of its time base.

    Whole ticks are compared with whole ticks, for every packet: `zero`, `start` and `end` are exact
    and seldom whole, `first`, `past` and `limit` are the first ticks at or after a moment.

    zero:  the span's start: what times are counted from
    start: as `zero`; None where the span starts with the file, and so takes the stream from its
        first picture or sound that is shown
    end:   None where the span ends with the file or with `max_duration_s`
    limit: that of `max_duration_s`
    shown_from: what is shown before this tick never appears; None where all of it does
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
        origin_s: where the file's clock begins, on that of its streams
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
        """Where the file's clock begins."""
        return self.zero - Fraction(self.span.start_ms, 1000) / self.time_base

    @property
    def asked_s(self) -> float | None:
        """Length of the span; None where it goes on to the file's end."""
        span = self.span
        return None if span.end_ms is None else (span.end_ms - span.start_ms) / 1000

    def has_begun(self, packet: av.Packet) -> bool:
        """False while nothing that is decoded from here on can be after the window."""
        tick = decoding_tick(packet)
        return self.start is None or tick is None or tick >= self.first

    def is_before(self, packet: av.Packet) -> bool:
        """Whether the packet is shown before the window, or just at its start."""
        tick = shown_tick(packet)
        return self.start is not None and tick is not None and tick <= self.start

    def stop_at(self, packet: av.Packet) -> Stop | None:
        """Reason why the window needs neither this packet nor any later one; None where it may.

        No picture of this packet or a later one is shown before its decoding time: decoding
        comes before showing, and decoding times rise. Those of hidden packets, which an edit list
        may have between any two that are shown, do not.
        """
        if packet.is_discard:
            return None
        if self.end is not None:
            # Without decoding times, a picture that is shown in the window may still come.
            return "end" if packet.dts is not None and packet.dts >= self.past else None
        tick = decoding_tick(packet)
        return "limit" if tick is not None and tick >= self.limit else None

    def length_s(self, extent: "Extent") -> float:
        """From the span's start to the end of what was read for it."""
        if extent.end is None:
            return 0.0
        return max(float((extent.end - self.zero) * self.time_base), 0.0)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What was read for a window.

    end:  the tick at which the last of it has been shown; None where nothing was, or without times
    stop: None where the stream ended before
    """

    end: int | None
    stop: Stop | None


def decoding_tick(packet: av.Packet) -> int | None:
    # Matroska has no decoding times; where FFmpeg cannot guess them the other will do.
    return packet.dts if packet.dts is not None else packet.pts


def shown_tick(packet: av.Packet) -> int | None:
    return packet.pts if packet.pts is not None else packet.dts


def end_tick(packet: av.Packet) -> int | None:
    """When the packet has been shown; None where it is hidden or has no time."""
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
    """Warns where a span is overlong, cut off or longer than the file: it still has features.

    unread_end_s: where the last of the file's other streams ends, on the file's clock
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
        if extent.stop is not None:  # nothing is missing: there is more of it
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
