"""MELD's CSV files to utterances.

Two generations of the CSVs are about: GitHub's (UTF-8, curly quotes) and older copies whose
quotes became C1 control characters, which BERT's tokenizer deletes. Both give the same text.
Another corpus in the same shape works as it is; another shape is one more reader function.
"""

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline.corpus.layout import annotations_name, find_annotations
from pipeline.errors import AnnotationError, InputError
from pipeline.schema import EMOTIONS, SENTIMENTS, SPLITS, ClipKey, Split, Utterance

REQUIRED_COLUMNS = ("Dialogue_ID", "Utterance_ID", "Utterance", "Emotion", "Sentiment")
_SHOWN_ROWS = 5

_PLAIN = str.maketrans(
    {
        "‘": "'", "’": "'", "“": '"', "”": '"',
        "…": "...", "—": "-", "–": "-", "\u00a0": " ",
    }
)  # fmt: skip
_TIME = re.compile(r"(\d{1,9}):(\d{2}):(\d{2})(?:[,.](\d+))?")


def normalise_text(text: str) -> str:
    """Plain quotes and dashes, C1 controls read as the cp1252 characters they were, NFC,
    single spaces. Applying it twice changes nothing."""
    repaired = "".join(_repair_c1(char) for char in text)
    return " ".join(unicodedata.normalize("NFC", repaired).translate(_PLAIN).split())


def _repair_c1(char: str) -> str:
    if not "\u0080" <= char <= "\u009f":
        return char
    return char.encode("latin-1").decode("cp1252", errors="ignore")


def parse_time_s(text: str) -> float:
    """Seconds from "0:01:02,345" or "00:01:02,345"; raises ValueError."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time like 00:01:02,345")
    hours, minutes, seconds, fraction = match.groups()
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds)
    return whole + (float(f"0.{fraction}") if fraction else 0.0)


def read_corpus(data: Path, splits: tuple[Split, ...] | None) -> dict[Split, list[Utterance]]:
    """Utterances per split, in file order. `splits=None` takes every split that has a CSV.

    Raises:
        InputError: the folder or a split that was asked for is not there.
        AnnotationError: a CSV is not readable; the file, rows and column are named.
    """
    found = {split: find_annotations(data, split) for split in splits or SPLITS}
    if not data.is_dir():
        found_there = "a file" if data.exists() else "no such folder"
        raise InputError(
            f"{data}: {found_there}; --data takes the folder with the MELD CSVs (meld download "
            "gets it)"
        )
    missing = [split for split, path in found.items() if path is None]
    if splits is not None and missing:
        raise InputError(f"{data}: no {annotations_name(missing[0])} here or in {missing[0]}/")
    if len(missing) == len(found):
        raise InputError(f"{data}: no train_sent_emo.csv, dev_sent_emo.csv or test_sent_emo.csv")
    return {
        split: read_annotations(path, split) for split, path in found.items() if path is not None
    }


def read_annotations(path: Path, split: Split) -> list[Utterance]:
    """Reads one CSV with MELD's columns; Speaker, StartTime and EndTime may be missing.

    An empty Emotion or Sentiment means unlabelled. Rows are counted as a spreadsheet counts
    them: the header is row 1, an utterance with a line break in it is one row, and an empty
    line is a row too (and is passed over).

    Raises:
        AnnotationError: with every kind of wrong row found, before anything is decoded.
    """
    table = _read_table(path)
    missing = [name for name in REQUIRED_COLUMNS if name not in table.columns]
    if missing:
        raise AnnotationError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(table.columns)}"
        )
    if table.empty:
        raise AnnotationError(f"{path}: a header and no rows")
    _check_labels(path, table)
    keys = _read_keys(path, table, split)
    starts_s, ends_s = (_read_times(path, table, name) for name in ("StartTime", "EndTime"))
    speakers = table["Speaker"] if "Speaker" in table.columns else [""] * len(table)
    return [
        Utterance(
            key=key,
            text=normalise_text(text),
            speaker=normalise_text(speaker),
            emotion=emotion.strip().lower() or None,
            sentiment=sentiment.strip().lower() or None,
            start_s=start_s,
            end_s=end_s,
        )
        for key, text, speaker, emotion, sentiment, start_s, end_s in zip(
            keys,
            table["Utterance"],
            speakers,
            table["Emotion"],
            table["Sentiment"],
            starts_s,
            ends_s,
            strict=True,
        )
    ]


def with_context(utterances: Sequence[Utterance], size: int) -> list[Utterance]:
    """Each utterance with the `size` before it in its dialogue, and who speaks them and it:
    "Joey: Hey! Monica: Hi, Joey. Joey:".

    Rows of a dialogue count in the order of their Utterance_ID, wherever they stand in the file.
    """
    if size == 0:
        return list(utterances)
    ordered = sorted(utterances, key=lambda row: row.key)
    context = {}
    for position, row in enumerate(ordered):
        before = [
            said
            for said in ordered[max(0, position - size) : position]
            if said.key.dialogue_id == row.key.dialogue_id
        ]
        context[row.key] = " ".join(
            [*(f"{said.speaker}: {said.text}" for said in before), f"{row.speaker}:"]
        )
    return [replace(row, context=context[row.key]) for row in utterances]


def hash_rows(utterances: Sequence[Utterance]) -> str:
    """Ties a cache to its annotations: another transcript is another cache.

    Labels are not in it: no feature depends on them, and a cache takes over corrected ones.
    """
    digest = hashlib.sha256()
    for row in utterances:
        values = [*row.key, row.text, row.speaker]
        digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def _read_table(path: Path) -> pd.DataFrame:
    """All cells as text, indexed by row number.

    Not `pd.read_csv`: it fills up short rows, shifts the columns of long ones, and takes
    utterances such as "None" and "NA" for missing values.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = dict(enumerate(csv.reader(io.StringIO(text, newline=""), strict=True), start=1))
    except UnicodeDecodeError as error:
        raise AnnotationError(
            f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at {error.start}); "
            "save it as UTF-8"
        ) from error
    except csv.Error as error:
        raise AnnotationError(f"{path}: not a CSV table: {error}") from error
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = rows.pop(1, [])
    rows = {number: cells for number, cells in rows.items() if cells}
    _check_shape(path, header, rows)
    return pd.DataFrame.from_dict(rows, orient="index", columns=header, dtype=str)


def _check_shape(path: Path, header: list[str], rows: dict[int, list[str]]) -> None:
    if not header:
        raise AnnotationError(f"{path}: empty; wanted a header and rows")
    repeated = {name for name in header if header.count(name) > 1}
    if repeated:
        raise AnnotationError(f"{path}: more than one column {', '.join(sorted(repeated))}")
    num_fields = pd.Series({number: len(cells) for number, cells in rows.items()}, dtype=int)
    ragged = num_fields != len(header)
    if ragged.any():
        raise AnnotationError(
            f"{path}: {_rows(ragged)}: {num_fields[ragged].iloc[0]} fields, "
            f"the header has {len(header)}"
        )


def _check_labels(path: Path, table: pd.DataFrame) -> None:
    for column, names in (("Emotion", EMOTIONS), ("Sentiment", SENTIMENTS)):
        labels = table[column].str.strip().str.lower()
        wrong = ~labels.isin([*names, ""])
        if wrong.any():
            found = ", ".join(sorted(set(table[column][wrong]))[:_SHOWN_ROWS])
            raise AnnotationError(
                f"{path}: column {column}, {_rows(wrong)}: unknown label {found}; "
                f"known are {', '.join(names)}"
            )


def _read_keys(path: Path, table: pd.DataFrame, split: Split) -> list[ClipKey]:
    for column in ("Dialogue_ID", "Utterance_ID"):
        wrong = ~table[column].str.strip().str.fullmatch(r"\d{1,9}")
        if wrong.any():
            raise AnnotationError(
                f"{path}: column {column}, {_rows(wrong)}: "
                f"{table[column][wrong].iloc[0]!r} is no whole number"
            )
    ids = table[["Dialogue_ID", "Utterance_ID"]].astype(int)
    repeated = ids.duplicated(keep=False)
    if repeated.any():
        first = ids[repeated].iloc[0]
        same = (ids == first).all(axis=1)
        raise AnnotationError(
            f"{path}: dia{first.iloc[0]}_utt{first.iloc[1]} stands more than once, {_rows(same)} "
            f"({repeated.sum()} such rows in all); one row per Dialogue_ID and Utterance_ID"
        )
    return [
        ClipKey(split, dialogue, utterance) for dialogue, utterance in ids.itertuples(index=False)
    ]


def _read_times(path: Path, table: pd.DataFrame, column: str) -> list[float]:
    if column not in table.columns:
        return [0.0] * len(table)
    times_s = []
    for row, text in table[column].items():
        try:
            times_s.append(parse_time_s(text) if text.strip() else 0.0)
        except ValueError as error:
            raise AnnotationError(f"{path}: column {column}, row {row}: {error}") from error
    return times_s


def _rows(wrong: "pd.Series[bool]") -> str:
    rows = list(wrong[wrong].index)
    shown = ", ".join(str(row) for row in rows[:_SHOWN_ROWS])
    rest = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{rest}"
