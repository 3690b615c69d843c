"""Reads transcripts with times as utterances: a CSV in MELD's format, or plain lines.

Utterance,Speaker,StartTime,EndTime          (other columns are ignored)
00:01.5 - 00:03.0 Joey: How you doin'?       (brackets, "-->" and no end are read as well)
"""

import re
from pathlib import Path

from fusion.inference.segments import Heard, SpokenSpan, in_order
from fusion.inference.texts import read_text
from pipeline.corpus.annotations import parse_time_s
from pipeline.corpus.table import clean, read_table
from pipeline.corpus.texts import normalise_text
from pipeline.errors import InputError
from pipeline.schema import MediaSpan

_TIME = r"(?:\d{1,3}:)?(?:\d{1,3}:)?\d{1,6}(?:[.,]\d{1,9})?"
_LINE = re.compile(
    rf"[\[(]?\s*({_TIME})\s*(?:(?:-->|->|--|-|–|—|to)\s*({_TIME}))?\s*[\])]?[\s:]\s*"
)
_SPEAKER = re.compile(r"([^\W\d_][\w .'-]{0,30}):\s+")
_COLUMN = re.compile(r"\b(utterance|start[ _]?time)\b", re.IGNORECASE)


def read_transcript(path: Path) -> Heard:
    """Every row or line with spoken words, in order of its start.

    A line without an end lasts until the next begins; the last one to the file's end.

    Raises InputError: no such file, no times, or a row whose times cannot be read; rows are named.
    """
    text, notes = read_text(path)
    rows = _read_table(path) if _is_table(text) else _read_lines(path, text)
    rows = sorted((row for row in rows if row.text), key=lambda row: row.start_ms)
    if not rows:
        raise InputError(f"{path}: no row with spoken words")
    nexts = [row.start_ms for row in rows[1:]]
    spans = []
    for row, next_ms in zip(rows, [*nexts, None], strict=True):
        end_ms = row.end_ms
        if end_ms is None and next_ms is not None:
            end_ms = next_ms
        if end_ms is not None and end_ms <= row.start_ms:
            raise InputError(
                f"{path}: row {row.number}: it ends at {end_ms / 1000:.3f} s and starts at "
                f"{row.start_ms / 1000:.3f} s; an utterance ends after its start"
            )
        spans.append(
            SpokenSpan(
                span=MediaSpan(start_ms=row.start_ms, end_ms=end_ms),
                text=row.text,
                text_source="given",
                speaker=row.speaker,
            )
        )
    return Heard(spans=in_order(spans), notes=notes)


def _to_ms(text: str) -> int:
    return round(parse_time_s(text) * 1000)


class _Row:
    def __init__(
        self, number: int, start_ms: int, end_ms: int | None, text: str, speaker: str
    ) -> None:
        self.number = number
        self.start_ms = start_ms
        self.end_ms = end_ms
        self.text = normalise_text(text)
        self.speaker = normalise_text(speaker) or None


def _is_table(text: str) -> bool:
    """Whether the first line that says anything names a column of ours."""
    lines = [line for line in text.splitlines()[:3] if line.strip()]
    return any(_COLUMN.search(line) and not _LINE.match(line) for line in lines[:2])


def _read_table(path: Path) -> list[_Row]:
    table = read_table(path, required=("Utterance", "StartTime"), optional=("EndTime", "Speaker"))

    def column(name: str) -> list[str]:
        return table.column(name) if name in table.places else [""] * len(table.rows)

    rows = []
    for number, words, start, end, speaker in zip(
        table.numbers,
        *(column(name) for name in ("Utterance", "StartTime", "EndTime", "Speaker")),
        strict=True,
    ):
        try:
            end_ms = _to_ms(end) if clean(end) else None
            rows.append(_Row(number, _to_ms(start), end_ms, words, speaker))
        except ValueError as error:
            raise InputError(f"{path}: row {number}: {error}") from error
    return rows


def _read_lines(path: Path, text: str) -> list[_Row]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.match(line.strip() + " ")
        if match is None:
            raise InputError(
                f"{path}: row {number}: {line.strip()[:40]!r} begins with no time; wanted lines "
                'such as "00:01.5 - 00:03.0 Joey: words", or a CSV table with Utterance, '
                "StartTime and EndTime"
            )
        words = line.strip()[match.end() :]
        speaker = _SPEAKER.match(words)
        rows.append(
            _Row(
                number,
                _to_ms(match[1]),
                _to_ms(match[2]) if match[2] else None,
                words[speaker.end() :] if speaker else words,
                speaker[1] if speaker else "",
            )
        )
    return rows
