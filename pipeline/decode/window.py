"""A span on the clock of one stream: where its packets begin and end."""

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
NAMES: Mapping[Modality, str] = {"video": "picture", "audio": "sound"}


@dataclass(frozen=True, kw_only=True)
class Window:
    """A span on one stream's clock, in ticks of its time base.

    Whole ticks are compared with whole ticks, for every packet: `start` and `end` are exact and
    seldom whole, `first` and `past` are the first ticks at or after them.

    start: None takes the stream from its first packet, whatever its time
    end:   None where the span ends with the file or with `max_duration_s`
    """

    span: MediaSpan
    time_base: Fraction
    start: Fraction | None
    end: Fraction | None
    max_duration_s: float
    first: int = 0
    past: int = 0

    @classmethod
    def of(
        cls, span: MediaSpan, time_base: Fraction, origin_s: Fraction, max_duration_s: float
    ) -> "Window":
        """origin_s: where the file's clock begins, on that of its streams"""
        start = end = None
        if span.start_ms:
            start = (origin_s + Fraction(span.start_ms, 1000)) / time_base
        if span.end_ms is not None and span.end_ms - span.start_ms <= 1000 * max_duration_s:
            end = (origin_s + Fraction(span.end_ms, 1000)) / time_base
        return cls(
            span=span,
            time_base=time_base,
            start=start,
            end=end,
            max_duration_s=max_duration_s,
            first=0 if start is None else math.ceil(start),
            past=0 if end is None else math.ceil(end),
        )

    @property
    def asked_s(self) -> float | None:
        """How long the span is; None where it goes on to the file's end."""
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

    def stop_at(self, packet: av.Packet, first_tick: int | None) -> Stop | None:
        """Why the window has no use for this packet nor for any later one; None where it may.

        No picture of this packet or a later one is shown before its decoding time: decoding
        comes before showing, and decoding times rise.

        first_tick: when the stream's first packet is shown
        """
        if self.end is not None:
            # Without decoding times, a picture that is shown in the window may still come.
            return "end" if packet.dts is not None and packet.dts >= self.past else None
        tick, start = decoding_tick(packet), first_tick if self.start is None else self.start
        if tick is None or start is None:
            return None
        elapsed_s = (tick - start) * self.time_base.numerator / self.time_base.denominator
        return "limit" if elapsed_s >= self.max_duration_s else None


@dataclass(frozen=True, kw_only=True)
class Extent:
    """What was read for a window. `stop` is None where the stream ended before."""

    first: av.Packet
    last: av.Packet
    stop: Stop | None

    @property
    def length_s(self) -> float:
        """From the first packet to the end of the last, by the times at which they are decoded."""
        tick, first_tick = decoding_tick(self.last), decoding_tick(self.first)
        duration_s = _duration_s(self.last)
        if tick is None or first_tick is None or self.last.time_base is None:
            return duration_s
        return float((tick - first_tick) * self.last.time_base) + duration_s

    def length_after(self, start: Fraction) -> float:
        """As `length_s`, from a tick on."""
        tick = shown_tick(self.first)
        if tick is None or self.first.time_base is None:
            return 0.0
        return max(self.length_s - float((start - tick) * self.first.time_base), 0.0)


def decoding_tick(packet: av.Packet) -> int | None:
    # Matroska has no decoding times; where FFmpeg cannot guess them the other will do.
    return packet.dts if packet.dts is not None else packet.pts


def shown_tick(packet: av.Packet) -> int | None:
    return packet.pts if packet.pts is not None else packet.dts


def _duration_s(packet: av.Packet) -> float:
    if not packet.duration or packet.time_base is None:
        return 0.0
    return float(packet.duration * packet.time_base)


def note_lengths(
    windows: Mapping[Modality, Window],
    extents: Mapping[Modality, Extent],
    declared: Mapping[Modality, Declared],
    ledger: Ledger,
) -> None:
    """Warns where a span is overlong, cut off or longer than the file: it still has features."""
    lengths_s = {}
    for modality, extent in extents.items():
        start = windows[modality].start
        lengths_s[modality] = extent.length_s if start is None else extent.length_after(start)
    for modality, extent in extents.items():
        window, promise = windows[modality], declared[modality]
        got_s = max(lengths_s.values()) if promise.is_of_file else lengths_s[modality]
        there_s = (
            got_s if promise.length_s is None else promise.length_s - window.span.start_ms / 1000
        )
        if window.asked_s is not None:
            there_s = min(there_s, window.asked_s)
        if extent.stop == "limit":
            length = "longer" if promise.length_s is None else f"{there_s:.1f} s long"
            message = f"{length}; the first {window.max_duration_s:.0f} s were used"
            ledger.add(modality, ClipError("overlong", message), lost=False)
        if extent.stop == "end":
            continue
        if min(there_s, window.max_duration_s) - got_s > TRUNCATION_SLACK_S:
            message = f"{got_s:.1f} s of {there_s:.1f} s are there; the rest was cut off"
            ledger.add(modality, ClipError("truncated", message), lost=False)
        elif (
            extent.stop is None
            and window.asked_s is not None
            and window.asked_s - lengths_s[modality] > TRUNCATION_SLACK_S
        ):
            message = (
                f"the {NAMES[modality]} ends {lengths_s[modality]:.1f} s into the span of "
                f"{window.asked_s:.1f} s"
            )
            ledger.add(modality, ClipError("beyond_end", message), lost=False)
