"""Features in tables of any tool: one row is a clip, or a frame of one.

OpenFace 2 writes a CSV a clip, with a row a frame: `frame, face_id, timestamp, confidence, success,
gaze_0_x, ...`. openSMILE writes rows with semicolons, `name;frameTime;...`: one a clip with
functionals, one a frame with low-level descriptors. Others have their own columns for the name of
the clip; what else is a number is a feature.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.errors import InputError
from pipeline.importing.items import SPLIT_NAMES, ClipName, Item, parse_name
from pipeline.schema import Split

_SEPARATORS = (";", "\t", ",")
_NAME_COLUMNS = (
    *("name", "file", "filename", "file_name", "path", "filepath", "file_path"),
    *("clip", "clip_id", "key", "id", "video", "video_id", "segment", "input"),
)
_PAIR = ("dialogue_id", "utterance_id")
_SPLIT = "split"
# When a row is, which makes it a frame of its clip where a clip has several rows.
_TIMES = ("frame", "frameindex", "frametime", "timestamp", "time", "start", "end")
# Of a tracker of faces. They are no features.
_FACE, _SUCCESS, _CONFIDENCE = "face_id", "success", "confidence"
# A table with one of these has a row for each picture.
_PICTURES = ("frame", "timestamp", _SUCCESS)
_PANDAS_ERRORS = (ValueError, KeyError, TypeError, OverflowError, MemoryError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose columns are told apart.

    names, pair, split: columns that name the clip, None where there is none
    features: columns of numbers; texts: columns that hold neither, and are left out
    """

    frame: pd.DataFrame
    names: str | None
    pair: tuple[str, str] | None
    split: str | None
    times: tuple[str, ...]
    features: tuple[str, ...]
    texts: tuple[str, ...]


def read_csv(content: bytes, origin: str) -> Table:
    """`origin` names the file in messages. Raises InputError where it is no table of features."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{origin}: not UTF-8 text, byte {error.start}") from error
    if "\0" in text:
        raise InputError(f"{origin}: not a text file: it holds the character NUL")
    head = text.split("\n", 1)[0]
    separator = max(_SEPARATORS, key=head.count)
    if separator not in head:
        raise InputError(f"{origin}: its first line has no commas, semicolons or tabs")
    try:
        with warnings.catch_warnings():
            # Rows that are longer than the header would lose cells.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                skipinitialspace=True,
                index_col=False,
                low_memory=False,
            )
    except (*_PANDAS_ERRORS, pd.errors.ParserWarning) as error:  # pandas' own are ValueErrors
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{origin}: not a readable CSV ({reason})") from error
    return sort_columns(frame, origin)


def sort_columns(frame: pd.DataFrame, origin: str) -> Table:
    """Tells the columns apart. Raises InputError where there is no row or no column of numbers."""
    frame = frame.rename(columns=lambda name: str(name).strip())
    lower = {name.lower(): name for name in reversed(frame.columns)}
    if len(set(frame.columns)) != len(frame.columns):
        twice = next(name for name in frame.columns if list(frame.columns).count(name) > 1)
        raise InputError(f"{origin}: column {twice!r} stands there twice")
    pair = (lower[_PAIR[0]], lower[_PAIR[1]]) if set(_PAIR) <= lower.keys() else None
    names = next((lower[name] for name in _NAME_COLUMNS if name in lower), None)
    split = lower.get(_SPLIT)
    times = tuple(lower[name] for name in _TIMES if name in lower)
    faces = [lower[name] for name in (_FACE, _SUCCESS, _CONFIDENCE) if name in lower]
    known = {names, split, *times, *faces, *(pair or ())}
    features, texts = [], []
    for name in frame.columns:
        if name in known:
            continue
        numbers = _to_numbers(frame[name])
        if numbers is None:
            texts.append(name)
        else:
            features.append(name)
            frame[name] = numbers
    if not len(frame) or not features:
        raise InputError(f"{origin}: no {'row' if not len(frame) else 'column of numbers'}")
    return Table(
        frame=frame,
        names=names,
        pair=pair,
        split=split,
        times=times,
        features=tuple(features),
        texts=tuple(texts),
    )


def _to_numbers(column: pd.Series) -> pd.Series | None:
    """None where no cell is a number. A cell that is none among numbers becomes NaN: its row is
    listed."""
    if pd.api.types.is_bool_dtype(column):
        return column.astype(np.float64)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        return column.astype(np.float64)
    if column.isna().all():
        return column.astype(np.float64)
    numbers = pd.to_numeric(column.astype(str).str.strip(), errors="coerce").astype(np.float64)
    return None if numbers.isna().all() else numbers


def item_of_clip(table: Table, place: str, clip: ClipName | None) -> Item:
    """The table of one clip, whose name is that of its file."""
    lower = {name.lower() for name in table.frame.columns}
    has_frames = len(table.frame) > 1 or bool(lower & set(_PICTURES))
    return _item(table, table.frame, place, clip, has_frames=has_frames)


def items_of_rows(table: Table, origin: str, split: Split | None) -> Iterator[Item]:
    """The clips of a table of many. Raises InputError where no column names them."""
    groups: dict[ClipName | str, list[int]] = {}
    for row, key in enumerate(names_of_rows(table, origin, split)):
        groups.setdefault(key, []).append(row)
    has_frames = any(_times_differ(table, rows) for rows in groups.values())
    for key, rows in groups.items():
        clip = key if isinstance(key, ClipName) else None
        # Rows without different times are each a whole clip, and only one of them can be this one.
        parts = [rows] if has_frames else [[row] for row in rows]
        for part in parts:
            place = f"{origin} row {part[0] + 1}" if clip is not None else f"{origin} {key}"
            yield _item(table, table.frame.iloc[part], place, clip, has_frames=has_frames)


def names_of_rows(table: Table, origin: str, split: Split | None) -> list[ClipName | str]:
    """The clip of each row, or the text of a name that is none. Raises InputError where no column
    has one."""
    if table.pair is None and table.names is None:
        raise InputError(
            f"{origin}: no column says which clip a row is; it takes dialogue_id and utterance_id, "
            f"or one of {', '.join(_NAME_COLUMNS[:4])}, ... with names such as dia0_utt3"
        )
    frame, count = table.frame, len(table.frame)
    said = [""] * count if table.split is None else frame[table.split].astype(str).tolist()
    splits = [split or SPLIT_NAMES.get(each.strip().lower()) for each in said]
    if table.pair is not None:
        columns = [frame[name].tolist() for name in table.pair]
        return [_clip_of_ids(*ids) for ids in zip(splits, *columns, strict=True)]
    names = frame[str(table.names)].astype(str).tolist()
    return [parse_name(name, each) or name for name, each in zip(names, splits, strict=True)]


def _clip_of_ids(split: Split | None, dialogue: Any, utterance: Any) -> ClipName | str:
    ids = (_whole(dialogue), _whole(utterance))
    if ids[0] is None or ids[1] is None:
        return f"dialogue_id {dialogue}, utterance_id {utterance}"
    return ClipName(split=split, dialogue_id=ids[0], utterance_id=ids[1])


def _whole(value: Any) -> int | None:
    """None where it is no whole number that an id can be."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if 0 <= number < 2**53 and number == int(number) else None


def _times_differ(table: Table, rows: Sequence[int]) -> bool:
    if len(rows) < 2:
        return False
    return any(table.frame[name].iloc[list(rows)].nunique() > 1 for name in table.times)


def _item(
    table: Table, rows: pd.DataFrame, place: str, clip: ClipName | None, *, has_frames: bool
) -> Item:
    seen = _seen_frames(rows)
    if not len(seen):
        problem = f"{place}: no frame of {len(rows)} has success = 1"
        return Item(place=place, clip=clip, code="no_frames", problem=problem)
    values = seen[list(table.features)].to_numpy(np.float64)  # [frames, dim]
    return Item(
        place=place,
        clip=clip,
        values=values if has_frames else values[0],
        columns=table.features,
    )


def _seen_frames(rows: pd.DataFrame) -> pd.DataFrame:
    """Frames in which the tracker saw a face, and of several faces the one that is seen most often,
    the first of them where two are."""
    lower = {name.lower(): name for name in rows.columns}
    if _SUCCESS in lower:
        rows = rows[pd.to_numeric(rows[lower[_SUCCESS]], errors="coerce") == 1]
    if _FACE in lower and rows[lower[_FACE]].nunique() > 1:
        counts = rows[lower[_FACE]].value_counts()
        most = min(counts[counts == counts.max()].index, key=str)
        rows = rows[rows[lower[_FACE]] == most]
    return rows
