"""A timeline as CSV and as subtitles, with the same times to the millisecond."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from fusion.inference.media import PredictedUtterance
from fusion.inference.prediction import HeadPrediction
from fusion.inference.timeline import NOTICE, Timeline, describe_utterance
from pipeline.schema import EMOTIONS, MODALITIES, SENTIMENTS

_HEADS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("emotion", EMOTIONS),
    ("sentiment", SENTIMENTS),
)
CSV_COLUMNS = (
    *("file", "id", "start_ms", "end_ms", "speaker", "text", "text_source"),
    *(
        f"{head}{ending}"
        for head, names in _HEADS
        for ending in ("", "_confidence", *(f"_{name}" for name in names))
    ),
    *(f"{name}_{what}" for name in MODALITIES for what in ("present", "share")),
    *("divided", "warnings", "error"),
)


def to_csv(timeline: Timeline) -> str:
    """One row per utterance. Unknown values are empty cells."""
    written = io.StringIO()
    table = csv.DictWriter(written, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    for each in timeline.utterances:
        table.writerow(_flat(timeline.media.file, describe_utterance(each)))
    return written.getvalue()


def _flat(file: str, told: Mapping[str, Any]) -> dict[str, Any]:
    plain = ("id", "start_ms", "end_ms", "speaker", "text", "text_source", "error")
    row: dict[str, Any] = {"file": file} | {name: told[name] for name in plain}
    for head, _ in _HEADS:
        if told[head] is not None:
            row[head] = told[head]["label"]
            row[f"{head}_confidence"] = told[head]["confidence"]
            for name, probability in told[head]["probabilities"].items():
                row[f"{head}_{name}"] = probability
    for name, part in told["modalities"].items():
        row[f"{name}_present"] = _yes(part["present"])
        row[f"{name}_share"] = part.get("share")
    row["divided"] = _yes(told["divided"])
    row["warnings"] = "; ".join(told["warnings"])
    return row


def _yes(value: bool) -> str:
    return "true" if value else "false"


def to_srt(timeline: Timeline) -> str:
    """The words with the emotion before them, for any player."""
    cues = []
    for number, each in enumerate(timeline.utterances, start=1):
        start, end = _times(each, ",")
        # A blank line would end the cue, and an arrow would look like times.
        cues.append(f"{number}\n{start} --> {end}\n{_caption(each).replace('-->', '->')}\n")
    return "\n".join(cues)


def to_vtt(timeline: Timeline) -> str:
    cues = ["WEBVTT\n", f"NOTE\n{NOTICE}\n"]
    for each in timeline.utterances:
        start, end = _times(each, ".")
        text = _caption(each).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{each.id}\n{start} --> {end}\n{text}\n")
    return "\n".join(cues)


def _caption(each: PredictedUtterance) -> str:
    """ "[joy 72 %] Joey: How you doin'?" """
    spoken, prediction = each.spoken, each.prediction
    emotion = "no prediction" if prediction is None else _emotion(prediction.emotion)
    speaker = f"{spoken.speaker}: " if spoken.speaker else ""
    return f"[{emotion}] {speaker}{spoken.text}".strip()


def _emotion(emotion: HeadPrediction) -> str:
    return f"{emotion.label} {emotion.confidence:.0%}".replace("%", " %")


def _times(each: PredictedUtterance, point: str) -> tuple[str, str]:
    span = each.spoken.span
    end_ms = span.start_ms if span.end_ms is None else span.end_ms
    return clock(span.start_ms, point), clock(end_ms, point)


def clock(at_ms: int, point: str = ".") -> str:
    """ "01:02:03.456", hours always."""
    seconds, ms = divmod(at_ms, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour:02d}:{minute:02d}:{second:02d}{point}{ms:03d}"


def brief_clock(at_ms: int) -> str:
    """ "1:02:03.4", hours only where there are any: for reading, what is written has it all."""
    minutes, ms = divmod(at_ms // 100 * 100, 60_000)
    hours, minute = divmod(minutes, 60)
    seconds = f"{ms / 1000:04.1f}"
    return f"{hours}:{minute:02d}:{seconds}" if hours else f"{minute}:{seconds}"
