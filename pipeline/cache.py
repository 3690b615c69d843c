"""The feature cache on disk: one HDF5 file per split. The only file that imports h5py.

    attributes   format, format_version, split, recipe (JSON), fingerprint, rows_hash,
                 projection_hash (empty before a projection)
    key/         dialogue_id, utterance_id             int64 [rows]
    text, speaker                                      UTF-8 [rows]
    label/       emotion, sentiment                    UTF-8 [rows], by name, "" = unlabelled;
                 attributes emotion_names, sentiment_names: JSON, in our order
    raw/         <modality>                            float32 [rows, layers, dim]
    embedding/   <modality>                            float32 [rows, 128]
    present/     <modality>                            bool [rows]; False: the row's values are 0
    failures/    dialogue_id, utterance_id, modality, stage, code, message, lost

A shard of an unfinished extraction is the same format with fewer rows. Files appear whole
(temporary name, fsync, rename) and are never edited. All strings have fixed length:
variable-length ones lie in a heap without checksums, and a flipped bit there can hang HDF5.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheCorrupt, InputError, StorageError
from pipeline.recipe import FeatureRecipe
from pipeline.schema import (
    EMBEDDING_DIM,
    EMOTIONS,
    MODALITIES,
    SENTIMENTS,
    SPLITS,
    ClipFailure,
    ClipKey,
    Modality,
    Split,
)

FORMAT = "meld-features"
FORMAT_VERSION = 1
# Rows of a chunk: large enough to read fast, small enough that a flipped bit names its place.
_CHUNK_BYTES = 1 << 18
# The first HDF5 generation that checksums its own structure too: attributes, names, addresses.
_LIBRARY_VERSION = "v110"
_IMAGE_BLOCK_BYTES = 1 << 22
# What h5py raises where a file is damaged, or holds something else than is asked for.
_DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError)

Want = Literal["raw", "embedding"]


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """One split (or one shard of it), whole in memory. Row i of every array is one utterance.

    raw:       per modality float32 [rows, layers, dim]
    embedding: per modality float32 [rows, 128]; empty before a projection was fitted
    present:   per modality bool [rows]; where False, raw and embedding hold zeros that mean
               nothing
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

    def __post_init__(self) -> None:
        columns: list[Sized] = [self.utterance_id, self.text, self.speaker]
        columns += [self.emotion, self.sentiment]
        columns += [*self.raw.values(), *self.embedding.values(), *self.present.values()]
        if {len(column) for column in columns} - {len(self)}:
            raise ValueError("every column of a feature cache needs the same number of rows")

    def __len__(self) -> int:
        return len(self.dialogue_id)

    @property
    def fingerprint(self) -> str:
        return self.recipe.fingerprint


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
    _write_atomically(path, lambda file: _fill(file, cache))


def _write_atomically(path: Path, fill: Callable[[h5py.File], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(_build_image(fill))
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except (OSError, RuntimeError) as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # renamed by now, or never made
            temporary.unlink()


def _build_image(fill: Callable[[h5py.File], None]) -> bytes:
    """The file's bytes, made in memory: on a full disk HDF5 leaves silent zeros or takes the
    process down with it, and must not meet one."""
    with h5py.File(
        "image",
        "w",
        driver="core",
        backing_store=False,
        block_size=_IMAGE_BLOCK_BYTES,
        libver=_LIBRARY_VERSION,
    ) as file:
        fill(file)
        file.flush()
        return file.id.get_file_image()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fill(file: h5py.File, cache: FeatureCache) -> None:
    _put_header(file, FORMAT, cache.recipe)
    _put_text(file, "split", cache.split)
    _put_text(file, "rows_hash", cache.rows_hash)
    _put_text(file, "projection_hash", cache.projection_hash or "")
    _put(file, "key/dialogue_id", cache.dialogue_id)
    _put(file, "key/utterance_id", cache.utterance_id)
    _put(file, "text", _encode_strings(cache.text))
    _put(file, "speaker", _encode_strings(cache.speaker))
    _put(file, "label/emotion", _encode_strings(cache.emotion))
    _put(file, "label/sentiment", _encode_strings(cache.sentiment))
    _put_text(file["label"], "emotion_names", json.dumps(EMOTIONS))
    _put_text(file["label"], "sentiment_names", json.dumps(SENTIMENTS))
    for modality, present in cache.present.items():
        _put(file, f"present/{modality}", present)
    for modality, values in cache.raw.items():
        _put(file, f"raw/{modality}", values)
    for modality, values in cache.embedding.items():
        _put(file, f"embedding/{modality}", values)
    _put_failures(file, cache.failures)


def _put_failures(file: h5py.File, failures: Sequence[ClipFailure]) -> None:
    keys = np.array([failure.key[1:] for failure in failures], np.int64).reshape(-1, 2)
    _put(file, "failures/dialogue_id", keys[:, 0])
    _put(file, "failures/utterance_id", keys[:, 1])
    for name in ("modality", "stage", "code", "message"):
        _put(file, f"failures/{name}", _encode_strings([getattr(f, name) for f in failures]))
    _put(file, "failures/lost", np.array([failure.lost for failure in failures], np.bool_))


def _put_header(file: h5py.File, format_name: str, recipe: FeatureRecipe) -> None:
    _put_text(file, "format", format_name)
    file.attrs["format_version"] = FORMAT_VERSION
    _put_text(file, "recipe", recipe.to_json())
    _put_text(file, "fingerprint", recipe.fingerprint)


def _put_text(place: h5py.Group, name: str, text: str) -> None:
    encoded = text.encode()
    dtype = h5py.string_dtype("utf-8", max(len(encoded), 1))
    place.attrs[name] = np.array(encoded, dtype=dtype)


def _put(file: h5py.File, name: str, values: NDArray[Any]) -> None:
    if values.dtype.kind == "S":
        values = values.astype(h5py.string_dtype("utf-8", values.dtype.itemsize))
    if values.size == 0:  # nothing to checksum, and an empty chunk is not allowed
        file.create_dataset(name, data=values)
        return
    row_bytes = max(values.nbytes // len(values), 1)
    rows = max(1, min(len(values), _CHUNK_BYTES // row_bytes))
    file.create_dataset(name, data=values, chunks=(rows, *values.shape[1:]), fletcher32=True)


def _encode_strings(strings: Sequence[str]) -> NDArray[np.bytes_]:
    # A message may name a path that is not UTF-8.
    encoded = [string.encode(errors="backslashreplace") for string in strings]
    width = max([1, *(len(string) for string in encoded)])
    return np.array(encoded, dtype=f"S{width}")


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
    with _open_checked(path, FORMAT) as file:
        recipe = _read_recipe(path, file)
        names = [name for name in recipe.modalities if modalities is None or name in modalities]
        reader = _Reader(path, file)
        split = _read_split(path, file)
        return FeatureCache(
            split=split,
            recipe=recipe,
            rows_hash=_read_text(path, file, "rows_hash"),
            dialogue_id=reader.array("key/dialogue_id", np.int64, 1),
            utterance_id=reader.array("key/utterance_id", np.int64, 1),
            text=reader.strings("text"),
            speaker=reader.strings("speaker"),
            emotion=reader.labels("label/emotion", EMOTIONS),
            sentiment=reader.labels("label/sentiment", SENTIMENTS),
            raw=reader.group("raw", names, np.float32, 3) if "raw" in want else {},
            embedding=(
                reader.group("embedding", names, np.float32, 2) if "embedding" in want else {}
            ),
            present={name: reader.array(f"present/{name}", np.bool_, 1) for name in names},
            failures=reader.failures(split),
            projection_hash=_read_text(path, file, "projection_hash") or None,
        )


@dataclass(frozen=True, kw_only=True)
class CacheHeader:
    """What can be told about a cache without reading its features."""

    split: Split
    recipe: FeatureRecipe
    rows_hash: str
    num_rows: int
    projection_hash: str | None


def read_header(path: Path) -> CacheHeader:
    """Raises StorageError or CacheCorrupt like `read_cache`."""
    with _open_checked(path, FORMAT) as file:
        return CacheHeader(
            split=_read_split(path, file),
            recipe=_read_recipe(path, file),
            rows_hash=_read_text(path, file, "rows_hash"),
            num_rows=len(file["key/dialogue_id"]),
            projection_hash=_read_text(path, file, "projection_hash") or None,
        )


def verify(path: Path) -> list[str]:
    """Reads every chunk of every dataset; names those whose checksum does not hold."""
    bad = []
    with _open_checked(path, FORMAT) as file:
        for name in _dataset_names(file):
            try:
                file[name][()]
            except OSError:
                bad.append(name)
    return bad


class _Reader:
    """Reads datasets of one open file; what is not as this format has it is damage."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        self._file = file

    def array(self, name: str, dtype: type[np.generic], num_axes: int) -> NDArray[Any]:
        dataset = self._file.get(name)
        if dataset is None:
            raise CacheCorrupt(f"{self._path}: dataset {name} is missing")
        kind = np.bytes_ if dataset.dtype.kind == "S" else dataset.dtype
        if kind != dtype or dataset.ndim != num_axes:
            raise CacheCorrupt(
                f"{self._path}: dataset {name} is {dataset.dtype} with {dataset.ndim} axes, not "
                f"{dtype.__name__} with {num_axes}"
            )
        try:
            return dataset[()]
        except OSError as error:
            raise CacheCorrupt(
                f"{self._path}: dataset {name} does not match its checksum; "
                "delete the file and extract again"
            ) from error

    def strings(self, name: str) -> list[str]:
        return [value.decode() for value in self.array(name, np.bytes_, 1)]

    def labels(self, name: str, known: Sequence[str]) -> list[str]:
        labels = self.strings(name)
        unknown = sorted(set(labels) - {*known, ""})
        if unknown:
            raise CacheCorrupt(f"{self._path}: dataset {name} holds unknown label {unknown[0]!r}")
        return labels

    def group(
        self, group: str, names: Sequence[Modality], dtype: type[np.generic], num_axes: int
    ) -> dict[Modality, NDArray[Any]]:
        there = self._file.get(group, {})
        if isinstance(there, h5py.Dataset):
            raise CacheCorrupt(f"{self._path}: {group} is no group")
        return {
            name: self.array(f"{group}/{name}", dtype, num_axes) for name in names if name in there
        }

    def failures(self, split: Split) -> tuple[ClipFailure, ...]:
        columns = [
            self.array("failures/dialogue_id", np.int64, 1).tolist(),
            self.array("failures/utterance_id", np.int64, 1).tolist(),
            *(
                self.strings(f"failures/{name}")
                for name in ("modality", "stage", "code", "message")
            ),
            self.array("failures/lost", np.bool_, 1).tolist(),
        ]
        return tuple(
            ClipFailure(
                key=ClipKey(split, dialogue, utterance),
                modality=modality,
                stage=stage,
                code=code,
                message=message,
                lost=lost,
            )
            for dialogue, utterance, modality, stage, code, message, lost in zip(
                *columns, strict=True
            )
        )


@contextmanager
def _open_checked(path: Path, wanted_format: str) -> Iterator[h5py.File]:
    """Opens a file and checks that it is ours and lies within itself.

    A foreign HDF5 file can read other files of the machine (external links, external storage,
    virtual datasets) and declare terabytes: none of that is ever followed.
    """
    if not path.is_file():
        raise StorageError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except PermissionError as error:
        raise StorageError(f"{path}: cannot be read: no permission") from error
    except OSError as error:
        raise CacheCorrupt(f"{path}: not a readable HDF5 file ({error})") from error
    try:
        _check_header(path, file, wanted_format)
        _check_storage(path, file)
        yield file
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise CacheCorrupt(f"{path}: damaged ({reason}); delete it and make it again") from error
    finally:
        file.close()


def _check_header(path: Path, file: h5py.File, wanted_format: str) -> None:
    if "format" not in file.attrs or _read_text(path, file, "format") != wanted_format:
        raise CacheCorrupt(f"{path}: an HDF5 file, but not a {wanted_format} file")
    version = _read_number(path, file, "format_version")
    if version != FORMAT_VERSION:
        raise CacheCorrupt(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; extract again"
        )


def _check_storage(path: Path, file: h5py.File) -> None:
    budget = path.stat().st_size
    for name in _dataset_names(file):
        dataset = file[name]
        if not isinstance(dataset, h5py.Dataset):
            raise CacheCorrupt(f"{path}: {name} is no dataset")
        external = dataset.id.get_create_plist().get_external_count() > 0
        if external or dataset.is_virtual or dataset.nbytes > budget:
            raise CacheCorrupt(f"{path}: dataset {name} claims data outside the file")


def _dataset_names(file: h5py.File) -> list[str]:
    """Every dataset, two levels deep; links to elsewhere are refused before being followed."""
    names: list[str] = []
    for top in file:
        _refuse_link(file, top)
        if isinstance(file[top], h5py.Dataset):
            names.append(top)
            continue
        for name in file[top]:
            _refuse_link(file, f"{top}/{name}")
            names.append(f"{top}/{name}")
    return names


def _refuse_link(file: h5py.File, name: str) -> None:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise CacheCorrupt(f"{file.filename}: {name} is a link to elsewhere")


def _read_text(path: Path, file: h5py.File, name: str) -> str:
    if name not in file.attrs or file.attrs.get_id(name).dtype.kind != "S":
        raise CacheCorrupt(f"{path}: attribute {name} is missing or no text of fixed length")
    value = file.attrs[name]
    if not isinstance(value, bytes):
        raise CacheCorrupt(f"{path}: attribute {name} is no single text")
    return value.decode()


def _read_number(path: Path, place: h5py.Group, name: str) -> int:
    if name not in place.attrs or place.attrs.get_id(name).dtype != np.int64:
        raise CacheCorrupt(f"{path}: attribute {name} is missing or no whole number")
    return int(place.attrs[name])


def _read_split(path: Path, file: h5py.File) -> Split:
    name = _read_text(path, file, "split")
    for split in SPLITS:
        if split == name:
            return split
    raise CacheCorrupt(f"{path}: split {name!r} is none of {', '.join(SPLITS)}")


def _read_recipe(path: Path, file: h5py.File) -> FeatureRecipe:
    try:
        recipe = FeatureRecipe.from_json(_read_text(path, file, "recipe"))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: its recipe cannot be read ({error})") from error
    if recipe.fingerprint != _read_text(path, file, "fingerprint"):
        raise CacheCorrupt(f"{path}: its recipe does not match its fingerprint")
    return recipe


# ------------------------------------------------------------------------------ projection

PROJECTION_FORMAT = "meld-projection"


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Raw features of one modality to 128: standardise, then principal components.

    mean, scale:        float64 [dim], of the train rows (features averaged over layers)
    components:         float64 [128, dim]; rows beyond the rank are zero
    explained_variance: float64 [128], share of the standardised variance
    num_rows:           train rows it was fitted on
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    components: NDArray[np.float64]
    explained_variance: NDArray[np.float64]
    num_rows: int

    def __post_init__(self) -> None:
        if self.components.shape != (EMBEDDING_DIM, len(self.mean)):
            raise ValueError(f"components must be [{EMBEDDING_DIM}, dim]: {self.components.shape}")


def write_projections(
    path: Path, projections: dict[Modality, Projection], recipe: FeatureRecipe
) -> None:
    """Writes the projections beside the caches; raises StorageError."""

    def fill(file: h5py.File) -> None:
        _put_header(file, PROJECTION_FORMAT, recipe)
        for modality, projection in projections.items():
            for name in ("mean", "scale", "components", "explained_variance"):
                _put(file, f"{modality}/{name}", getattr(projection, name))
            file[modality].attrs["num_rows"] = projection.num_rows

    _write_atomically(path, fill)


def read_projections(path: Path, recipe: FeatureRecipe) -> dict[Modality, Projection] | None:
    """The projections that belong to a recipe; None where there are none for it.

    Raises:
        CacheCorrupt: the file is damaged.
    """
    if not path.is_file():
        return None
    with _open_checked(path, PROJECTION_FORMAT) as file:
        if _read_recipe(path, file) != recipe:
            return None
        reader = _Reader(path, file)
        axes = {"mean": 1, "scale": 1, "components": 2, "explained_variance": 1}
        return {
            modality: Projection(
                **{
                    name: reader.array(f"{modality}/{name}", np.float64, num_axes)
                    for name, num_axes in axes.items()
                },
                num_rows=_read_number(path, file[modality], "num_rows"),
            )
            for modality in MODALITIES
            if modality in file
        }


def require_cache(features: Path, split: Split) -> Path:
    """The split's cache file; raises InputError with the command that makes it."""
    path = features / f"{split}.h5"
    if not path.is_file():
        raise InputError(
            f"{path}: no such cache; make it with: meld extract --split {split} "
            f"--features {features}"
        )
    return path
