"""Feature caches as `.npz` files, which NumPy alone reads: `np.load(file)["text_raw"]`.

    dialogue_id, utterance_id          int64 [rows]
    text, speaker, emotion, sentiment  texts [rows], "" = unlabelled
    <modality>_present                 bool [rows]; where it is false, the features are zeros
    <modality>_raw                     float32 [rows, layers, dim]
    <modality>_embedding               float32 [rows, 128]
    source_file, source_sha256, source_size_bytes, source_mtime_ns   where clips were read
    meld                               a text: the rest, as JSON (see header.py)

NumPy gives every text of a column the room of its longest. Where that would be much more than there
is, a column lies end to end instead, as in our HDF5 files: `text` uint8 [bytes], UTF-8, and
`text_ends` int64 [rows].
"""

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.format import FeatureCache, label_indices
from pipeline.errors import CacheCorrupt, InputError, StorageError
from pipeline.exchange.arrays import read_npz as read_arrays
from pipeline.exchange.header import header_json, read_header_json
from pipeline.schema import EMBEDDING_DIM, EMOTIONS, SENTIMENTS, ClipSource
from pipeline.system.files import write_whole

HEADER = "meld"
_ENDS = "_ends"
_MAX_PADDED_CHARS = 1 << 24
_MAX_PADDING = 4
_SOURCE_TEXTS = ("file", "sha256")
_SOURCE_NUMBERS = ("size_bytes", "mtime_ns")

Arrays = Mapping[str, NDArray[Any]]


def write_npz(path: Path, cache: FeatureCache) -> None:
    """Writes the whole file or none of it. Raises StorageError."""
    arrays: dict[str, NDArray[Any]] = {
        HEADER: np.array(header_json(cache)),
        "dialogue_id": cache.dialogue_id,
        "utterance_id": cache.utterance_id,
    }
    for name in ("text", "speaker", "emotion", "sentiment"):
        arrays |= _pack(name, getattr(cache, name))
    for modality, present in cache.present.items():
        arrays[f"{modality}_present"] = present
    for kind, features in (("raw", cache.raw), ("embedding", cache.embedding)):
        arrays |= {f"{modality}_{kind}": values for modality, values in features.items()}
    if cache.sources:
        for name in _SOURCE_TEXTS:
            arrays |= _pack(f"source_{name}", [getattr(each, name) for each in cache.sources])
        for name in _SOURCE_NUMBERS:
            values = [getattr(each, name) for each in cache.sources]
            arrays[f"source_{name}"] = np.array(values, np.int64)
    written = io.BytesIO()
    np.savez(written, allow_pickle=False, **arrays)
    write_whole(path, written.getvalue())


def _pack(name: str, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    longest = max((len(text) for text in texts), default=0)
    padded, there = longest * len(texts), sum(len(text) for text in texts)
    ends_in_nul = any(text.endswith("\0") for text in texts)  # NumPy would take it for padding
    if not ends_in_nul and padded <= max(_MAX_PADDED_CHARS, _MAX_PADDING * there):
        return {name: np.array(texts, dtype=f"U{max(longest, 1)}")}
    encoded = [text.encode() for text in texts]
    return {
        name: np.frombuffer(b"".join(encoded), np.uint8),
        name + _ENDS: np.cumsum([len(each) for each in encoded], dtype=np.int64),
    }


def is_of_others(path: Path) -> bool:
    """Whether a file is anything but one of `write_npz`; a damaged archive may have been one.

    Raises StorageError.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                begins = file.read(4)
            return bool(begins) and begins != b"PK\x03\x04"
        with zipfile.ZipFile(path) as archive:
            return f"{HEADER}.npy" not in archive.namelist()
    except zipfile.BadZipFile:
        return False
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error


def read_npz(path: Path) -> FeatureCache:
    """Raises StorageError where it cannot be read, InputError where `write_npz` did not write it,
    CacheCorrupt where it contradicts itself."""
    arrays = read_arrays(path)
    text = arrays.get(HEADER)
    if text is None or text.ndim != 0 or text.dtype.kind != "U":
        raise InputError(f"{path}: not written by meld convert; meld import reads other features")
    header = read_header_json(str(text), str(path))
    modalities = header.recipe.modalities
    try:
        cache = FeatureCache(
            split=header.split,
            recipe=header.recipe,
            rows_hash=header.rows_hash,
            dialogue_id=_take(arrays, "dialogue_id", np.int64, 1),
            utterance_id=_take(arrays, "utterance_id", np.int64, 1),
            text=_unpack(arrays, "text"),
            speaker=_unpack(arrays, "speaker"),
            emotion=_unpack(arrays, "emotion"),
            sentiment=_unpack(arrays, "sentiment"),
            raw={
                name: _take(arrays, f"{name}_raw", np.float32, 3)
                for name in modalities
                if f"{name}_raw" in arrays
            },
            embedding={
                name: _take(arrays, f"{name}_embedding", np.float32, 2)
                for name in modalities
                if f"{name}_embedding" in arrays
            },
            present={name: _take(arrays, f"{name}_present", np.bool_, 1) for name in modalities},
            failures=header.failures,
            projection_hash=header.projection_hash,
            encoders_run=header.encoders_run,
            sources=_sources(arrays),
        )
        for values in cache.embedding.values():
            if values.shape[1] != EMBEDDING_DIM:
                raise ValueError(f"embeddings of {values.shape[1]}, not {EMBEDDING_DIM}")
        label_indices(cache.emotion, EMOTIONS)
        label_indices(cache.sentiment, SENTIMENTS)
    except (ValueError, KeyError) as error:
        raise CacheCorrupt(f"{path}: damaged ({error}); convert the cache again") from error
    return cache


def _take(arrays: Arrays, name: str, dtype: type[np.generic], num_axes: int) -> NDArray[Any]:
    values = arrays[name]
    if values.dtype != dtype or values.ndim != num_axes:
        raise ValueError(
            f"{name} is {values.dtype} with {values.ndim} axes, not {dtype.__name__} with "
            f"{num_axes}"
        )
    return values


def _unpack(arrays: Arrays, name: str) -> list[str]:
    values = arrays[name]
    if values.dtype.kind == "U" and values.ndim == 1:
        return [str(value) for value in values.tolist()]
    content = _take(arrays, name, np.uint8, 1).tobytes()
    ends = _take(arrays, name + _ENDS, np.int64, 1)
    firsts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    if (ends < firsts).any() or (firsts < 0).any() or ends[-1:].tolist() != [len(content)]:
        raise ValueError(f"{name + _ENDS} does not fit {name}")
    pairs = zip(firsts.tolist(), ends.tolist(), strict=True)
    return [content[first:end].decode() for first, end in pairs]


def _sources(arrays: Arrays) -> tuple[ClipSource, ...]:
    if "source_file" not in arrays:
        return ()
    texts = [_unpack(arrays, f"source_{name}") for name in _SOURCE_TEXTS]
    numbers = [_take(arrays, f"source_{name}", np.int64, 1).tolist() for name in _SOURCE_NUMBERS]
    names = (*_SOURCE_TEXTS, *_SOURCE_NUMBERS)
    rows = zip(*texts, *numbers, strict=True)
    return tuple(ClipSource(**dict(zip(names, row, strict=True))) for row in rows)
