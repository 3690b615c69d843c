"""Where features lie -> the features of each clip: a folder of .npy or .csv files, one a clip; or
one .npz, .parquet or .csv file of all."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.layout import MEDIA_FOLDERS
from pipeline.errors import InputError, MeldError, StorageError, UsageError
from pipeline.exchange.arrays import iterate_npz, parse_npy, read_bytes
from pipeline.importing.items import SPLIT_NAMES, ClipName, Item, parse_name
from pipeline.importing.tables import (
    Table,
    item_of_clip,
    items_of_rows,
    names_of_rows,
    read_csv,
    sort_columns,
)
from pipeline.schema import Split
from pipeline.system.extras import needs_extra

_CLIP_FILES = (".npy", ".csv")
_ALL_IN_ONE = (".npz", ".parquet", ".csv")
_PAIR = ("dialogue_id", "utterance_id")
# What v-iashin/video_features writes beside its features.
_SIDE_FILES = ("_fps", "_timestamps_ms")


@dataclass(kw_only=True)
class Source:
    """One file or folder, of one split or (None) of those that its names say.

    column: which column of a Parquet file or array of an .npz holds the features; None where there
        is no choice
    digests: SHA-256 of each file that was read, by its name below `path`
    texts: columns that held no numbers and were left out
    """

    path: Path
    split: Split | None
    column: str | None = None
    digests: dict[str, str] = field(default_factory=dict)
    texts: set[str] = field(default_factory=set)

    def items(self) -> Iterator[Item]:
        """Raises StorageError, InputError or UsageError; what is wrong with one clip of many is an
        item with a `problem`."""
        if self.path.is_dir():
            self._refuse_column()
            yield from self._folder_items()
            return
        if not self.path.is_file():
            raise StorageError(f"{self.path}: no such file or folder")
        readers = {
            ".npz": self._npz_items,
            ".parquet": self._parquet_items,
            ".csv": self._csv_items,
        }
        suffix = self.path.suffix.lower()
        if suffix not in readers:
            raise UsageError(
                f"--from {self.path}: a folder, or a file that ends in {', '.join(_ALL_IN_ONE)}"
            )
        yield from readers[suffix]()

    def _refuse_column(self) -> None:
        if self.column is not None:
            raise UsageError(
                f"--column {self.column}: {self.path} is neither .npz nor .parquet, and has no "
                "columns to choose from; leave it out"
            )

    def _read(self, path: Path) -> bytes:
        content = read_bytes(path)
        name = path.relative_to(self.path).as_posix() if path != self.path else ""
        self.digests[name] = hashlib.sha256(content).hexdigest()
        return content

    # --------------------------------------------------------------------- a file a clip

    def _folder_items(self) -> Iterator[Item]:
        files = list_files(self.path)
        if not files:
            raise InputError(f"{self.path}: no .npy and no .csv file in it")
        for path in files:
            clip = parse_name(path.name, self.split)
            if clip is not None and clip.suffix in _SIDE_FILES:
                continue
            if clip is None:
                yield Item(place=path.name, clip=None)
                continue
            try:
                content = self._read(path)
                if path.suffix.lower() == ".npy":
                    values = numbers_of(parse_npy(content, path.name), path.name)
                    yield Item(place=path.name, clip=clip, values=values)
                else:
                    table = read_csv(content, path.name)
                    self.texts |= {*table.texts}
                    yield item_of_clip(table, path.name, clip)
            except MeldError as error:  # the other clips' files are read on
                yield Item(place=path.name, clip=clip, code="unreadable", problem=str(error))

    # ------------------------------------------------------------------------ all in one

    def _csv_items(self) -> Iterator[Item]:
        self._refuse_column()
        table = read_csv(self._read(self.path), str(self.path))
        self.texts |= {*table.texts}
        yield from items_of_rows(table, self.path.name, self.split)

    def _npz_items(self) -> Iterator[Item]:
        self._read(self.path)
        arrays = dict(iterate_npz(self.path))
        if set(_PAIR) <= arrays.keys():
            yield from self._row_items(arrays)
            return
        self._refuse_column()
        for name, array in arrays.items():
            clip, place = parse_name(name, self.split), f"{self.path.name}: {name}"
            if clip is None:
                yield Item(place=place, clip=None)
                continue
            try:
                yield Item(place=place, clip=clip, values=numbers_of(array, place))
            except InputError as error:
                yield Item(place=place, clip=clip, code="unreadable", problem=str(error))

    def _row_items(self, arrays: Mapping[str, NDArray[Any]]) -> Iterator[Item]:
        """An archive whose arrays have a row for each clip, as `meld convert --to npz` writes."""
        rows = len(arrays[_PAIR[0]]) if arrays[_PAIR[0]].ndim == 1 else -1
        choices = [
            name
            for name, values in arrays.items()
            if values.ndim > 1 and len(values) == rows and values.dtype.kind in "biuf"
        ]
        name = self._choose(choices)
        ids = [arrays[each] for each in _PAIR]
        if any(each.shape != (rows,) or each.dtype.kind not in "iu" for each in ids):
            raise InputError(
                f"{self.path}: dialogue_id and utterance_id are no whole numbers a row"
            )
        there = arrays.get(f"{name.rpartition('_')[0]}_present", np.ones(rows, np.bool_))
        splits = arrays.get("split")
        for row in range(rows):
            if there.shape == (rows,) and not there[row]:
                continue
            said = None if splits is None or splits.shape != (rows,) else str(splits[row]).lower()
            clip = ClipName(
                split=self.split or SPLIT_NAMES.get(said or ""),
                dialogue_id=int(ids[0][row]),
                utterance_id=int(ids[1][row]),
            )
            place = f"{self.path.name} row {row}"
            yield Item(place=place, clip=clip, values=arrays[name][row], is_layers=True)

    def _parquet_items(self) -> Iterator[Item]:
        with needs_extra("parquet"):
            from pipeline.exchange.arrow import list_columns, read_lists, read_table
        self._read(self.path)
        table = read_table(self.path)
        lists = list_columns(table)
        if not lists and self.column is None:
            frame = table.to_pandas(ignore_metadata=True)
            yield from self._table_items(sort_columns(frame, str(self.path)))
            return
        name = self._choose(lists)
        others = [each for each in table.column_names if each not in lists]
        frame = table.select(others).to_pandas(ignore_metadata=True)
        frame["_"] = 0.0  # a table needs a column of numbers; here the features are the lists
        named = sort_columns(frame, str(self.path))
        there = frame.get(f"{name.rpartition('_')[0]}_present")
        clips = names_of_rows(named, str(self.path), self.split)
        for row, (key, values) in enumerate(zip(clips, read_lists(table, name), strict=True)):
            if values is None or (there is not None and not there.iloc[row]):
                continue
            clip = key if isinstance(key, ClipName) else None
            place = f"{self.path.name} row {row + 1}" if clip is not None else str(key)
            if isinstance(values, str):
                problem = f"{place}: {values}"
                yield Item(place=place, clip=clip, code="unreadable", problem=problem)
            else:
                yield Item(place=place, clip=clip, values=values, is_layers=True)

    def _table_items(self, table: Table) -> Iterator[Item]:
        self.texts |= {*table.texts}
        yield from items_of_rows(table, self.path.name, self.split)

    def _choose(self, choices: list[str]) -> str:
        if self.column is not None:
            if self.column not in choices:
                raise UsageError(
                    f"--column {self.column}: {self.path} has no such features; it has "
                    f"{', '.join(choices) or 'none'}"
                )
            return self.column
        if len(choices) != 1:
            raise UsageError(
                f"{self.path} has {'several features' if choices else 'no features'}: "
                f"{', '.join(choices) or 'no lists of numbers'}; name one with --column"
            )
        return choices[0]


def list_files(folder: Path) -> list[Path]:
    """The files of clips in a folder, not in those below it, by name. Raises StorageError."""
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in _CLIP_FILES and not path.name.startswith(".")
        )
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed: {error.strerror}") from error


def numbers_of(array: NDArray[Any], place: str) -> NDArray[Any]:
    """Raises InputError unless the array is of numbers."""
    if array.dtype.kind not in "biuf":
        raise InputError(f"{place}: holds texts, and not numbers")
    return array


def find_sources(given: Mapping[Split | None, Path], splits: list[Split]) -> list[Source]:
    """The sources of the splits that have a cache.

    given: a path of each split; or one path under None, which may hold all of them: a folder with
        one folder or file a split, or names that say the split

    Raises UsageError where a split has none.
    """
    if None in given:
        path = given[None]
        below = _find_below(path) if path.is_dir() else {}
        if not below:
            return [Source(path=path, split=splits[0] if len(splits) == 1 else None)]
        given = {split: below[split] for split in splits if split in below}
    found = {split: path for split, path in given.items() if split is not None}
    for split in splits:
        if split not in found:
            raise UsageError(
                f"there is a cache of {split} and nothing to import into it; name it: "
                f"--from {split}=PATH"
            )
    for split in found:
        if split not in splits:
            raise UsageError(f"--from {split}={found[split]}: there is no cache of {split}")
    return [Source(path=found[split], split=split) for split in splits]


def _find_below(folder: Path) -> dict[Split, Path]:
    """Folders and files of splits in a folder, named as people name them."""
    names = {**SPLIT_NAMES, **{name: split for split, name in MEDIA_FOLDERS.items()}}
    found: dict[Split, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise StorageError(f"{folder}: cannot be listed: {error.strerror}") from error
    for path in paths:
        stem = path.stem if path.suffix.lower() in _ALL_IN_ONE else path.name
        split = names.get(stem.lower())
        if split is None or not (path.is_dir() or path.suffix.lower() in _ALL_IN_ONE):
            continue
        if split in found:
            raise UsageError(
                f"{folder} has {found[split].name} and {path.name}; name one: --from {split}=PATH"
            )
        found[split] = path
    return found
