"""The feature cache on disk: one HDF5 file per split.

    attributes   format, format_version, split, recipe (JSON), fingerprint, rows_hash,
                 projection_hash (empty before a projection); encoders_run where a fine-tuned
                 run's encoders made the features: its name, see encoders/find.py
    key/         dialogue_id, utterance_id             int64 [rows]
    text, speaker                                      UTF-8 [rows]
    label/       emotion, sentiment                    UTF-8 [rows], by name, "" = unlabelled;
                 attributes emotion_names, sentiment_names: JSON, in our order
    raw/         <modality>                            float32 [rows, layers, dim]
    embedding/   <modality>                            float32 [rows, 128]
    present/     <modality>                            bool [rows]; False: the row's values are 0
    failures/    dialogue_id, utterance_id, modality, stage, code, message, lost
    source/      file, sha256: UTF-8, size_bytes, mtime_ns: int64 [rows]; each row's media file as
                 it was when it was read; not there where no clip is read

UTF-8 columns have fixed length, or lie end to end where a few long strings would make that wasteful
(see hdf5.py). A shard of an unfinished extraction is the same format with fewer rows.
"""

import json
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.failures import read_failures, write_failures
from pipeline.cache.hdf5 import Reader, Writer, is_of_others, open_hdf5, write_hdf5
from pipeline.errors import CacheCorrupt, InputError, UsageError
from pipeline.recipe import FeatureRecipe
from pipeline.schema import (
    EMOTIONS,
    MODALITIES,
    SENTIMENTS,
    SPLITS,
    UNLABELLED,
    ClipFailure,
    ClipKey,
    ClipSource,
    Modality,
    Split,
)
from pipeline.system.json_values import MALFORMED

FORMAT = "meld-features"
FORMAT_VERSION = 2

Want = Literal["raw", "embedding"]


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """One split (or one shard of it), whole in memory. Row i of every array is one utterance.

    raw:       per modality float32 [rows, layers, dim]
    embedding: per modality float32 [rows, 128]; empty before a projection was fitted
    present:   per modality bool [rows]; where False, raw and embedding hold zeros that mean
               nothing
    encoders_run: name of the fine-tuned run that owns the encoders, None where none does
    sources:   the rows' media files; empty where no clip is read
    """

    split: Split
    recipe: FeatureRecipe
    rows_hash: str
    dialogue_id: NDArray[np.int64]
    utterance_id: NDArray[np.int64]
    text: list[str]
    speaker: list[str]
    emotion: list[str]
    sentiment: list[str]
    raw: dict[Modality, NDArray[np.float32]]
    present: dict[Modality, NDArray[np.bool_]]
    embedding: dict[Modality, NDArray[np.float32]] = field(default_factory=dict)
    failures: tuple[ClipFailure, ...] = ()
    projection_hash: str | None = None
    sources: tuple[ClipSource, ...] = ()
    encoders_run: str | None = None

    def __post_init__(self) -> None:
        columns: list[Sized] = [self.utterance_id, self.text, self.speaker]
        columns += [self.emotion, self.sentiment]
        columns += [*self.raw.values(), *self.embedding.values(), *self.present.values()]
        columns += [self.sources] if self.sources else []
        if {len(column) for column in columns} - {len(self)}:
            raise ValueError("every column of a feature cache needs the same number of rows")

    def __len__(self) -> int:
        return len(self.dialogue_id)

    def key(self, row: int) -> ClipKey:
        return ClipKey(self.split, int(self.dialogue_id[row]), int(self.utterance_id[row]))

    @property
    def keys(self) -> tuple[ClipKey, ...]:
        """Of every row, in order."""
        return tuple(map(self.key, range(len(self))))

    @property
    def labels(self) -> dict[str, NDArray[np.int64]]:
        """{"emotion": int64 [rows], "sentiment": int64 [rows]}: indices in `schema.EMOTIONS` and
        `SENTIMENTS`; -100 (`UNLABELLED`) where the corpus gives none."""
        return {
            "emotion": label_indices(self.emotion, EMOTIONS),
            "sentiment": label_indices(self.sentiment, SENTIMENTS),
        }

    @property
    def fingerprint(self) -> str:
        return self.recipe.fingerprint


def label_indices(names: Sequence[str], order: Sequence[str]) -> NDArray[np.int64]:
    """int64 [rows]; the name "" is `UNLABELLED`. Raises CacheCorrupt for a name that is none of
    `order`."""
    index = {name: position for position, name in enumerate(order)} | {"": UNLABELLED}
    for name in set(names) - index.keys():
        raise CacheCorrupt(f"label {name!r} in the cache is none of {', '.join(order)}")
    return np.array([index[name] for name in names], dtype=np.int64)


def concatenate(shards: Sequence[FeatureCache]) -> FeatureCache:
    """Shards of one split, in row order, as one cache."""
    first = shards[0]
    return replace(
        first,
        dialogue_id=np.concatenate([shard.dialogue_id for shard in shards]),
        utterance_id=np.concatenate([shard.utterance_id for shard in shards]),
        text=[text for shard in shards for text in shard.text],
        speaker=[speaker for shard in shards for speaker in shard.speaker],
        emotion=[label for shard in shards for label in shard.emotion],
        sentiment=[label for shard in shards for label in shard.sentiment],
        raw={
            name: _join([shard.raw.get(name) for shard in shards], shards)
            for name in _names(shards)
        },
        present={
            name: np.concatenate([shard.present[name] for shard in shards])
            for name in first.present
        },
        failures=tuple(failure for shard in shards for failure in shard.failures),
        sources=tuple(source for shard in shards for source in shard.sources),
    )


def replace_rows(cache: FeatureCache, rows: Sequence[int], new: FeatureCache) -> FeatureCache:
    """`cache` with its `rows` those of `new`, in order; every other row stays to the bit.

    The arrays of `cache` are written into: a whole split is large, and nobody else holds it.
    Embeddings are left out: they may need another projection now.
    """
    index = np.asarray(rows, np.int64)
    names = [name for name in MODALITIES if name in cache.raw or name in new.raw]
    shapes = {name: (new.raw if name in new.raw else cache.raw)[name].shape[1:] for name in names}
    raw = {}
    for name in names:
        whole = cache.raw.get(name)
        values = np.zeros((len(cache), *shapes[name]), np.float32) if whole is None else whole
        values[index] = new.raw.get(name, 0)
        raw[name] = values
    present = {name: there.copy() for name, there in cache.present.items()}
    for name, there in present.items():
        there[index] = new.present[name]
    replaced = {cache.key(row) for row in rows}
    order = {cache.key(row): row for row in range(len(cache))}
    failures = [failure for failure in cache.failures if failure.key not in replaced]
    failures = sorted([*failures, *new.failures], key=lambda failure: order[failure.key])
    sources = list(cache.sources)
    for row, source in zip(rows, new.sources, strict=True):
        sources[row] = source
    return replace(
        cache,
        # A modality that no row has any more is no dataset, as if it had never been there.
        raw={name: values for name, values in raw.items() if present[name].any()},
        present=present,
        embedding={},
        projection_hash=None,
        failures=tuple(failures),
        sources=tuple(sources),
    )


def _names(shards: Sequence[FeatureCache]) -> list[Modality]:
    return [name for name in MODALITIES if any(name in shard.raw for shard in shards)]


def _join(
    parts: Sequence[NDArray[np.float32] | None], shards: Sequence[FeatureCache]
) -> NDArray[np.float32]:
    """A shard in which no row has the modality knows no dims and stores nothing for it."""
    shape = next(part.shape[1:] for part in parts if part is not None)
    return np.concatenate(
        [
            np.zeros((len(shard), *shape), np.float32) if part is None else part
            for part, shard in zip(parts, shards, strict=True)
        ]
    )


# --------------------------------------------------------------------------------- writing


def write_cache(path: Path, cache: FeatureCache) -> None:
    """Writes the whole file or none of it.

    Raises:
        StorageError: disk full, no permission; an earlier file of that name is untouched.
    """
    write_hdf5(path, FORMAT, FORMAT_VERSION, lambda writer: _fill(writer, cache))


def check_replaceable(path: Path, option: str = "--out") -> None:
    """Of a file that is there: only a cache, damaged or not, is replaced. Raises UsageError or
    StorageError."""
    if is_of_others(path, FORMAT):
        raise UsageError(
            f"{path} is no feature cache and is left as it is; move it away, or name another "
            f"{option}"
        )


def _fill(writer: Writer, cache: FeatureCache) -> None:
    write_recipe(writer, cache.recipe)
    writer.text("split", cache.split)
    writer.text("rows_hash", cache.rows_hash)
    writer.text("projection_hash", cache.projection_hash or "")
    if cache.encoders_run is not None:
        writer.text("encoders_run", cache.encoders_run)
    writer.array("key/dialogue_id", cache.dialogue_id)
    writer.array("key/utterance_id", cache.utterance_id)
    writer.strings("text", cache.text)
    writer.strings("speaker", cache.speaker)
    writer.strings("label/emotion", cache.emotion)
    writer.strings("label/sentiment", cache.sentiment)
    writer.text("emotion_names", json.dumps(EMOTIONS), at="label")
    writer.text("sentiment_names", json.dumps(SENTIMENTS), at="label")
    for modality, present in cache.present.items():
        writer.array(f"present/{modality}", present)
    for modality, values in cache.raw.items():
        writer.array(f"raw/{modality}", values)
    for modality, values in cache.embedding.items():
        writer.array(f"embedding/{modality}", values)
    write_failures(writer, cache.failures)
    if cache.sources:
        _write_sources(writer, cache.sources)


def _write_sources(writer: Writer, sources: Sequence[ClipSource]) -> None:
    writer.strings("source/file", [source.file for source in sources])
    writer.strings("source/sha256", [source.sha256 for source in sources])
    for name in ("size_bytes", "mtime_ns"):
        values = [getattr(source, name) for source in sources]
        writer.array(f"source/{name}", np.array(values, np.int64))


def _read_sources(reader: Reader) -> tuple[ClipSource, ...]:
    """Empty where no clip was read."""
    if "source" not in reader:
        return ()
    columns = zip(
        reader.strings("source/file"),
        reader.strings("source/sha256"),
        reader.array("source/size_bytes", np.int64, 1).tolist(),
        reader.array("source/mtime_ns", np.int64, 1).tolist(),
        strict=True,
    )
    return tuple(
        ClipSource(file=file, sha256=digest, size_bytes=size, mtime_ns=time)
        for file, digest, size, time in columns
    )


def write_recipe(writer: Writer, recipe: FeatureRecipe) -> None:
    writer.text("recipe", recipe.to_json())
    writer.text("fingerprint", recipe.fingerprint)


# --------------------------------------------------------------------------------- reading


def read_cache(
    path: Path,
    *,
    modalities: Sequence[Modality] | None = None,
    want: Sequence[Want] = ("raw", "embedding"),
) -> FeatureCache:
    """Reads a split whole; every byte read is checked against its checksum.

    Args:
        modalities: only these (those the file lacks are left out); None reads all.
        want: which of the feature groups to read.

    Raises:
        StorageError: not there or not readable.
        CacheCorrupt: no feature cache, or a damaged one; the dataset is named.
    """
    with open_hdf5(path, FORMAT, FORMAT_VERSION) as reader:
        recipe = read_recipe(reader)
        names = [name for name in recipe.modalities if modalities is None or name in modalities]
        split = _read_split(reader)
        return FeatureCache(
            split=split,
            recipe=recipe,
            rows_hash=reader.text("rows_hash"),
            dialogue_id=reader.array("key/dialogue_id", np.int64, 1),
            utterance_id=reader.array("key/utterance_id", np.int64, 1),
            text=reader.strings("text"),
            speaker=reader.strings("speaker"),
            emotion=_read_labels(reader, "label/emotion", EMOTIONS),
            sentiment=_read_labels(reader, "label/sentiment", SENTIMENTS),
            raw=reader.group("raw", names, np.float32, 3) if "raw" in want else {},
            embedding=(
                reader.group("embedding", names, np.float32, 2) if "embedding" in want else {}
            ),
            present={name: reader.array(f"present/{name}", np.bool_, 1) for name in names},
            failures=read_failures(reader, split),
            projection_hash=reader.text("projection_hash") or None,
            encoders_run=reader.optional_text("encoders_run"),
            sources=_read_sources(reader),
        )


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """What can be told about a cache without reading its features."""

    split: Split
    recipe: FeatureRecipe
    rows_hash: str
    num_rows: int
    projection_hash: str | None
    encoders_run: str | None


def read_header(path: Path) -> CacheHeader:
    """Raises StorageError or CacheCorrupt like `read_cache`."""
    with open_hdf5(path, FORMAT, FORMAT_VERSION) as reader:
        return CacheHeader(
            split=_read_split(reader),
            recipe=read_recipe(reader),
            rows_hash=reader.text("rows_hash"),
            num_rows=reader.num_rows("key/dialogue_id"),
            projection_hash=reader.text("projection_hash") or None,
            encoders_run=reader.optional_text("encoders_run"),
        )


def verify(path: Path) -> list[str]:
    """Reads every chunk of every dataset; names those whose checksum does not hold."""
    with open_hdf5(path, FORMAT, FORMAT_VERSION) as reader:
        return reader.damaged_datasets()


def read_recipe(reader: Reader) -> FeatureRecipe:
    """Raises CacheCorrupt where it cannot be read or is not the one of the fingerprint."""
    try:
        recipe = FeatureRecipe.from_json(reader.text("recipe"))
    except MALFORMED as error:
        raise CacheCorrupt(f"{reader.path}: its recipe cannot be read ({error})") from error
    if recipe.fingerprint != reader.text("fingerprint"):
        raise CacheCorrupt(f"{reader.path}: its recipe does not match its fingerprint")
    return recipe


def _read_split(reader: Reader) -> Split:
    name = reader.text("split")
    for split in SPLITS:
        if split == name:
            return split
    raise CacheCorrupt(f"{reader.path}: split {name!r} is none of {', '.join(SPLITS)}")


def _read_labels(reader: Reader, name: str, known: Sequence[str]) -> list[str]:
    labels = reader.strings(name)
    unknown = sorted(set(labels) - {*known, ""})
    if unknown:
        raise CacheCorrupt(f"{reader.path}: dataset {name} holds unknown label {unknown[0]!r}")
    return labels


def require_cache(features: Path, split: Split) -> Path:
    """The split's cache file; raises InputError with the command that makes it, and which splits
    there are."""
    path = features / f"{split}.h5"
    if not path.is_file():
        there = [name for name in SPLITS if (features / f"{name}.h5").is_file()]
        told = f" (there is {' and '.join(there)})" if there else ""
        raise InputError(
            f"{path}: no such cache{told}; where the corpus has {split} annotations, make it with: "
            f"meld extract --split {split} --features {quote(str(features))}"
        )
    return path
