"""Reads MELD's CSV files as utterances.

Two versions of the CSVs exist: GitHub's (UTF-8, curly quotes) and older copies whose quotes became
C1 control characters, which BERT's tokenizer deletes. Both give the same text. Another corpus in
the same format works as it is; another format needs one more reader function.
"""

import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.layout import annotations_name, find_annotations, find_similar_annotations
from pipeline.corpus.table import (
    Table,
    clean,
    other_format,
    read_table,
    split_line,
    tell_rows,
)
from pipeline.corpus.texts import normalise_text
from pipeline.errors import AnnotationError, InputError
from pipeline.schema import EMOTIONS, SENTIMENTS, SPLITS, ClipKey, Split, Utterance

logger = logging.getLogger(__name__)

REQUIRED_COLUMNS = ("Dialogue_ID", "Utterance_ID", "Utterance", "Emotion", "Sentiment")
OPTIONAL_COLUMNS = ("Speaker", "StartTime", "EndTime")
_SHOWN_LABELS, _SHOWN_CHARS = 5, 40

# "00:01:02,345" and pandas' "0 days 00:01:02.345", Excel's "01:02.3", seconds.
_CLOCK = re.compile(r"(?:(\d{1,6}) days?,? )?(\d{1,9}):(\d{1,2}):(\d{1,2})(?:[,.](\d+))?")
_SHORT_CLOCK = re.compile(r"(\d{1,9}):(\d{1,2})(?:[,.](\d+))?")
_SECONDS = re.compile(r"(\d{1,9})(?:[,.](\d+))?([eE][+-]?\d{1,2})?")
_NOTHING = frozenset(["", "-", "--", "nan", "nat", "none", "null", "na", "n/a", "#n/a"])

_TABLES = frozenset([".csv", ".tsv", ".txt"])
MAX_ID_DIGITS = 18  # HDF5 keeps ids as 64-bit integers
# pandas writes 1.0 for 1 as soon as one cell of the column is empty.
_ID = re.compile(rf"0*(\d{{1,{MAX_ID_DIGITS}}})(?:\.0*)?")
_ROUNDED_ID = re.compile(r"\d(?:[.,]\d+)?[eE]\+?\d+")


def parse_time_s(text: str) -> float:
    """Seconds from "0:01:02,345", "01:02.345" (minutes and seconds) or "62.345"; raises
    ValueError."""
    text = clean(text)
    if match := _CLOCK.fullmatch(text):
        days, hours, minutes, seconds, fraction = match.groups()
        whole = ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)
    elif match := _SHORT_CLOCK.fullmatch(text):
        minutes, seconds, fraction = match.groups()
        whole = int(minutes) * 60 + int(seconds)
    elif match := _SECONDS.fullmatch(text):
        return float(text.replace(",", "."))
    else:
        raise ValueError(f"{text!r} is no time like 00:01:02,345")
    return whole + (float(f"0.{fraction}") if fraction else 0.0)


@dataclass(frozen=True, kw_only=True)
class UnreadTimes:
    """Cells of one column that are neither empty nor a time. No feature depends on times, so they
    are a warning, and the rows have no times."""

    column: str
    rows: tuple[int, ...]
    first: str

    def __str__(self) -> str:
        return (
            f"column {self.column}, {tell_rows(self.rows)}: no time in {len(self.rows)} cells, "
            f"such as {self.first!r}; they count as empty, and no feature depends on them. Write "
            "00:01:02,345 or seconds, or leave the cells or the column out"
        )


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The utterances of one CSV, and its cells that could not be read."""

    utterances: list[Utterance]
    unread_times: tuple[UnreadTimes, ...] = ()


def read_corpus(data: Path, splits: tuple[Split, ...] | None) -> dict[Split, list[Utterance]]:
    """Utterances per split, in file order. `splits=None` takes every split that has a CSV.

    Raises:
        InputError: the folder or a requested split is missing.
        AnnotationError: a CSV is not readable; the file, rows and column are named.
    """
    corpus = read_annotated(data, splits)
    return {split: annotations.utterances for split, annotations in corpus.items()}


def read_annotated(data: Path, splits: tuple[Split, ...] | None) -> dict[Split, Annotations]:
    """As `read_corpus`, with the cells that could not be read; raises what that raises."""
    found = {split: find_annotations(data, split) for split in splits or SPLITS}
    if not data.is_dir():
        found_there = "a file" if data.exists() else "no such folder"
        raise InputError(
            f"{data}: {found_there}; --data takes the folder with the CSVs: MELD's, which meld "
            "download gets, one that meld sample --out data makes, or your own"
        )
    missing = [split for split, path in found.items() if path is None]
    others = {split: _tell_other_file(data, split) for split in missing}
    if splits is not None and missing:
        first = missing[0]
        raise InputError(f"{data}: no {annotations_name(first)} here or in {first}/{others[first]}")
    if len(missing) == len(found):
        raise InputError(
            f"{data}: no train_sent_emo.csv, dev_sent_emo.csv or test_sent_emo.csv"
            f"{next(filter(None, others.values()), '') or _tell_any_table(data)}"
        )
    for split in missing:
        if others[split]:
            logger.warning("%s: no %s%s", data, annotations_name(split), others[split])
    return {split: _read(path, split) for split, path in found.items() if path is not None}


def _tell_any_table(data: Path) -> str:
    """ "; there is X ..." where one table lies there, whatever its name."""
    tables = [
        path for path in sorted(data.iterdir()) if path.suffix.lower() in _TABLES and path.is_file()
    ]
    if len(tables) != 1:
        return ""
    return f"; there is {tables[0]}: if it holds your utterances, rename it to train_sent_emo.csv"


def _tell_other_file(data: Path, split: Split) -> str:
    """ "; there is X ..." where something lies there under nearly the name of the CSV."""
    path = find_similar_annotations(data, split)
    if path is None:
        return ""
    try:
        found = other_format(path)
    except OSError as error:
        return f"; there is {path}, which cannot be read: {error.strerror or error}"
    name = annotations_name(split)
    if found is None:
        return f"; there is {path}: if it is the table, rename it to {name}"
    what, how = found
    return f"; there is {path}, {what}: {how}, as {name}"


def read_annotations(path: Path, split: Split) -> list[Utterance]:
    """Reads one CSV with MELD's columns; Speaker, StartTime and EndTime may be missing.

    An empty Emotion or Sentiment means unlabelled. Rows are counted as in a spreadsheet: the header
    is row 1, an utterance with a line break in it is one row, and an empty line is a row too (and
    is ignored). A row with one of its two times has none.

    Raises:
        AnnotationError: with every kind of wrong row found, before anything is decoded.
    """
    return _read(path, split).utterances


def _read(path: Path, split: Split) -> Annotations:
    table = read_table(path, required=REQUIRED_COLUMNS, optional=OPTIONAL_COLUMNS)
    _refuse_swallowed_rows(table)
    emotions = _read_labels(table, "Emotion", EMOTIONS)
    sentiments = _read_labels(table, "Sentiment", SENTIMENTS)
    keys = _read_keys(table, split)
    windows_s, unread = _read_windows(table)
    for times in unread:
        logger.warning("%s: %s", path, times)
    speakers = table.column("Speaker") if "Speaker" in table.places else [""] * len(keys)
    utterances = [
        Utterance(
            key=key,
            text=normalise_text(text),
            speaker=normalise_text(speaker),
            emotion=emotion or None,
            sentiment=sentiment or None,
            start_s=start_s,
            end_s=end_s,
        )
        for key, text, speaker, emotion, sentiment, (start_s, end_s) in zip(
            keys,
            table.column("Utterance"),
            speakers,
            emotions,
            sentiments,
            windows_s,
            strict=True,
        )
    ]
    return Annotations(utterances=utterances, unread_times=unread)


def hash_rows(utterances: Sequence[Utterance]) -> str:
    """A hash that ties a cache to its annotations: another transcript needs another cache.

    Labels are not in it: no feature depends on them, and a cache takes over corrected ones.
    """
    digest = hashlib.sha256()
    for row in utterances:
        values = [*row.key, row.text, row.speaker]
        digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def _refuse_swallowed_rows(table: Table) -> None:
    """A quote that is opened in one row and closed in a later one joins them into one row with the
    right number of cells. It is detected because each line of such a row is a complete row."""
    num_cells = max(table.places.values()) + 1
    ids = [table.places[name] for name in ("Dialogue_ID", "Utterance_ID")]
    # Counted from the end as well: separators in a text without quotes move what comes after it.
    ways = (ids, [place - len(table.header) for place in ids])

    def is_row(line: str) -> bool:
        cells = split_line(line, table.separator)
        return len(cells) >= max(num_cells, len(table.header)) and any(
            all(_ID.fullmatch(clean(cells[place])) for place in way) for way in ways
        )

    for number, row in zip(table.numbers, table.rows, strict=True):
        lines = [line for line in table.separator.join(row).splitlines() if clean(line)]
        if len(lines) > 1 and all(map(is_row, lines)):
            raise AnnotationError(
                f"{table.path}: row {number}: {len(lines)} rows are read as one, because a quote "
                "is opened in it and closed in a later row; remove the quote, or close it at the "
                "end of the text"
            )


def _read_labels(table: Table, column: str, known: Sequence[str]) -> list[str]:
    labels = [clean(cell).lower() for cell in table.column(column)]
    wrong = {
        number: cell
        for number, label, cell in zip(table.numbers, labels, table.column(column), strict=True)
        if label and label not in known
    }
    if wrong:
        found = ", ".join(sorted(set(wrong.values()))[:_SHOWN_LABELS])
        raise AnnotationError(
            f"{table.path}: column {column}, {tell_rows(list(wrong))}: unknown label {found}; "
            f"known are {', '.join(known)}"
        )
    return labels


def _read_keys(table: Table, split: Split) -> list[ClipKey]:
    dialogues, utterances = (_read_ids(table, name) for name in ("Dialogue_ID", "Utterance_ID"))
    keys = [ClipKey(split, *ids) for ids in zip(dialogues, utterances, strict=True)]
    numbers: dict[ClipKey, list[int]] = {}
    for number, key in zip(table.numbers, keys, strict=True):
        numbers.setdefault(key, []).append(number)
    repeated = {key: rows for key, rows in numbers.items() if len(rows) > 1}
    if repeated:
        key, rows = next(iter(repeated.items()))
        raise AnnotationError(
            f"{table.path}: dia{key.dialogue_id}_utt{key.utterance_id} occurs more than once, "
            f"{tell_rows(rows)} ({sum(map(len, repeated.values()))} such rows in all); one row per "
            "Dialogue_ID and Utterance_ID"
        )
    return keys


def _read_ids(table: Table, column: str) -> list[int]:
    cells = [clean(cell) for cell in table.column(column)]
    matches = [_ID.fullmatch(cell) for cell in cells]
    wrong = [number for number, match in zip(table.numbers, matches, strict=True) if match is None]
    if wrong:
        cell = cells[table.numbers.index(wrong[0])]
        raise AnnotationError(
            f"{table.path}: column {column}, {tell_rows(wrong)}: {_tell_wrong_id(cell)}"
        )
    return [int(match[1]) for match in matches if match is not None]


def _tell_wrong_id(cell: str) -> str:
    if cell.casefold() in _NOTHING:
        return f"no id ({cell!r}); every row needs one, a whole number"
    if _ROUNDED_ID.fullmatch(cell):
        return (
            f"{cell!r} was rounded by a spreadsheet; give the column the format of a whole number "
            "there and save the original again"
        )
    if cell.isdecimal():
        return f"{cell!r} has {len(cell)} digits; an id has at most {MAX_ID_DIGITS}"
    return f"{cell!r} is no whole number; number dialogues and their utterances from 0"


def _read_windows(table: Table) -> tuple[list[tuple[float, float]], tuple[UnreadTimes, ...]]:
    """Start and end of each row in seconds, 0 where there is none."""
    starts, unread_starts = _read_times(table, "StartTime")
    ends, unread_ends = _read_times(table, "EndTime")
    if all(name in table.places for name in ("StartTime", "EndTime")):
        lacking = [start is None or end is None for start, end in zip(starts, ends, strict=True)]
        starts = [None if lacks else each for lacks, each in zip(lacking, starts, strict=True)]
        ends = [None if lacks else each for lacks, each in zip(lacking, ends, strict=True)]
    windows_s = [(start or 0.0, end or 0.0) for start, end in zip(starts, ends, strict=True)]
    return windows_s, (*unread_starts, *unread_ends)


def _read_times(table: Table, column: str) -> tuple[list[float | None], tuple[UnreadTimes, ...]]:
    """Seconds, None where there is no time."""
    if column not in table.places:
        return [None] * len(table.rows), ()
    times_s: list[float | None] = []
    unread: dict[int, str] = {}
    for number, cell in zip(table.numbers, table.column(column), strict=True):
        time_s = None
        if clean(cell).casefold() not in _NOTHING:
            try:
                time_s = parse_time_s(cell)
            except ValueError:
                unread[number] = cell
        times_s.append(time_s)
    if not unread:
        return times_s, ()
    first = next(iter(unread.values()))[:_SHOWN_CHARS]
    return times_s, (UnreadTimes(column=column, rows=tuple(unread), first=first),)
