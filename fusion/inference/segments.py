"""The utterances of a media file: their times and words."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.schema import MediaSpan

# given: by the caller, in a transcript or as words; subtitles: from a subtitle file;
# recognised: by a speech recogniser, so it may be wrong; none: the words are not known
TextSource = Literal["given", "subtitles", "recognised", "none"]


@dataclass(frozen=True, kw_only=True)
class SpokenSpan:
    """One utterance of a media file, before it is predicted.

    span:    where it is; milliseconds on the file's clock, as in `MediaSpan`
    text:    what is said; "" where it is not known
    speaker: the name that a transcript gives; None where it is not given. Nobody is identified.
    """

    span: MediaSpan
    text: str = ""
    text_source: TextSource = "none"
    speaker: str | None = None

    def __post_init__(self) -> None:
        if bool(self.text) != (self.text_source != "none"):
            raise ValueError(f"text {self.text!r} cannot have the source {self.text_source!r}")


@dataclass(frozen=True, kw_only=True)
class Heard:
    """The utterances of one file, in order of their start.

    notes: remarks about their source, for the user
    """

    spans: tuple[SpokenSpan, ...]
    notes: tuple[str, ...] = ()


def in_order(spans: Iterable[SpokenSpan]) -> tuple[SpokenSpan, ...]:
    """By their start, then by their end; what starts and ends together keeps its order."""
    return tuple(sorted(spans, key=_place))


def _place(spoken: SpokenSpan) -> tuple[int, float]:
    end_ms = spoken.span.end_ms
    return spoken.span.start_ms, math.inf if end_ms is None else end_ms


def fit_into(
    spans: Iterable[SpokenSpan],
    duration_ms: int,
    *,
    start_ms: int = 0,
    end_ms: int | None = None,
) -> Heard:
    """Clips spans to a file of that length, and to `start_ms` and `end_ms`; spans that lie wholly
    outside are dropped.

    Every end is known after that: where a span goes on to the file's end, it is the file's.
    """
    last_ms = duration_ms if end_ms is None else min(end_ms, duration_ms)
    kept, num_outside = [], 0
    for spoken in spans:
        end = last_ms if spoken.span.end_ms is None else min(spoken.span.end_ms, last_ms)
        begin = max(spoken.span.start_ms, start_ms)
        if begin < end:
            kept.append(replace(spoken, span=MediaSpan(start_ms=begin, end_ms=end)))
        elif spoken.span.start_ms >= duration_ms:
            num_outside += 1
    notes: tuple[str, ...] = ()
    if num_outside:
        notes = (
            f"{num_outside} utterances start after the end of the media ({duration_ms / 1000:.1f} "
            "s) and are left out: are these words of this file?",
        )
    return Heard(spans=tuple(kept), notes=notes)
