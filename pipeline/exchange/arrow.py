"""Feature caches as Arrow tables: Parquet files, and datasets of Hugging Face. The only file that
imports pyarrow and datasets.

One row of a table is one utterance:

    dialogue_id, utterance_id     int64
    text, speaker                 string
    emotion, sentiment            string, null = unlabelled
    <modality>_present            bool; where it is false, the features are zeros
    <modality>_raw                float32 [layers][dim], lists of fixed length
    <modality>_embedding          float32 [128]
    source_file, source_sha256, source_size_bytes, source_mtime_ns   where clips were read

and the schema's metadata hold the rest, under `meld` (see header.py). A modality that no row has
has no features. The columns' bytes are those of the cache: pyarrow copies neither them nor its own.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
from numpy.typing import NDArray

from pipeline.cache.format import FeatureCache, label_indices
from pipeline.errors import CacheCorrupt, InputError, StorageError
from pipeline.exchange.header import header_json, read_header_json
from pipeline.schema import EMBEDDING_DIM, EMOTIONS, SENTIMENTS, ClipSource
from pipeline.system.extras import needs_extra
from pipeline.system.files import write_whole

if TYPE_CHECKING:
    import datasets

HEADER = b"meld"
_SIGNATURE = b"PAR1"
_SOURCE_TYPES = {
    "file": pa.string(),
    "sha256": pa.string(),
    "size_bytes": pa.int64(),
    "mtime_ns": pa.int64(),
}
# A file may hold this many times its own size, beyond the first megabytes: equal rows are stored
# once, and a few kilobytes could claim terabytes.
_MAX_RATIO = 200
_MAX_SMALL_BYTES = 1 << 30


def to_table(cache: FeatureCache) -> pa.Table:
    """A cache as one table; the features share the memory of the cache's arrays."""
    columns: dict[str, pa.Array] = {
        "dialogue_id": pa.array(cache.dialogue_id),
        "utterance_id": pa.array(cache.utterance_id),
        "text": pa.array(cache.text, pa.string()),
        "speaker": pa.array(cache.speaker, pa.string()),
        "emotion": pa.array([label or None for label in cache.emotion], pa.string()),
        "sentiment": pa.array([label or None for label in cache.sentiment], pa.string()),
    }
    for modality, present in cache.present.items():
        columns[f"{modality}_present"] = pa.array(present)
        for kind, arrays in (("raw", cache.raw), ("embedding", cache.embedding)):
            if modality in arrays:
                columns[f"{modality}_{kind}"] = _to_lists(arrays[modality])
    if cache.sources:
        for name, kind in _SOURCE_TYPES.items():
            values = [getattr(source, name) for source in cache.sources]
            columns[f"source_{name}"] = pa.array(values, kind)
    return pa.table(columns).replace_schema_metadata({HEADER: header_json(cache).encode()})


def _to_lists(values: NDArray[np.float32]) -> pa.Array:
    """float32 [rows, ..., dim] -> [rows], lists of lists of fixed length."""
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def from_table(table: pa.Table, origin: str) -> FeatureCache:
    """The inverse. `origin` names the file in messages.

    Raises InputError where the table was not written by `to_table`, CacheCorrupt where it is
    damaged or contradicts itself.
    """
    header = read_header_json(_header_text(table.schema, origin), origin)
    with _told_as_damage(origin):
        names = set(table.column_names)
        modalities = header.recipe.modalities
        cache = FeatureCache(
            split=header.split,
            recipe=header.recipe,
            rows_hash=header.rows_hash,
            dialogue_id=_flat(table, "dialogue_id", pa.int64()),
            utterance_id=_flat(table, "utterance_id", pa.int64()),
            text=_strings(table, "text"),
            speaker=_strings(table, "speaker"),
            emotion=_strings(table, "emotion", may_be_null=True),
            sentiment=_strings(table, "sentiment", may_be_null=True),
            raw={
                name: _features(table, f"{name}_raw", 2)
                for name in modalities
                if f"{name}_raw" in names
            },
            embedding={
                name: _features(table, f"{name}_embedding", 1)
                for name in modalities
                if f"{name}_embedding" in names
            },
            present={name: _flat(table, f"{name}_present", pa.bool_()) for name in modalities},
            failures=header.failures,
            projection_hash=header.projection_hash,
            encoders_run=header.encoders_run,
            sources=_sources(table) if "source_file" in names else (),
        )
        for values in cache.embedding.values():
            if values.shape[1:] != (EMBEDDING_DIM,):
                raise ValueError(f"embeddings of {values.shape[1:]}, not {EMBEDDING_DIM}")
        label_indices(cache.emotion, EMOTIONS)
        label_indices(cache.sentiment, SENTIMENTS)
        return cache


def _header_text(schema: pa.Schema, origin: str) -> str:
    try:
        return (schema.metadata or {})[HEADER].decode()
    except (KeyError, UnicodeDecodeError) as error:
        raise InputError(
            f"{origin}: not written by meld convert; meld import reads other features"
        ) from error


@contextmanager
def _told_as_damage(origin: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise CacheCorrupt(f"{origin}: damaged ({reason}); convert the cache again") from error


def _column(table: pa.Table, name: str, kind: pa.DataType, *, may_be_null: bool = False) -> Any:
    column = table.column(name)
    # A writer of pandas or datasets may have made the strings large ones.
    if not column.type.equals(kind) and not (
        pa.types.is_string(kind) and pa.types.is_large_string(column.type)
    ):
        raise ValueError(f"column {name} is {column.type}, not {kind}")
    if column.null_count and not may_be_null:
        raise ValueError(f"column {name} has empty cells")
    return column


def _flat(table: pa.Table, name: str, kind: pa.DataType) -> NDArray[Any]:
    return np.array(_column(table, name, kind).to_numpy())  # a copy that can be written to


def _strings(table: pa.Table, name: str, *, may_be_null: bool = False) -> list[str]:
    column = _column(table, name, pa.string(), may_be_null=may_be_null)
    return [value or "" for value in column.to_pylist()]


def _features(table: pa.Table, name: str, num_axes: int) -> NDArray[np.float32]:
    """[rows, *lists] of float32; a list of no fixed length is accepted where all are as long."""
    column = table.column(name)
    shape = [len(column)]
    for _ in range(num_axes):
        if column.null_count or not _is_list(column.type):
            raise ValueError(f"column {name} is {table.column(name).type}, not {num_axes} lists")
        lengths = np.unique(pyarrow.compute.list_value_length(column).to_numpy())
        if len(lengths) != 1:  # without rows nothing tells the shape, and no features are written
            raise ValueError(f"column {name} has lists of {len(lengths)} lengths")
        shape.append(int(lengths[0]))
        kind = column.type.value_type
        column = pa.chunked_array([chunk.flatten() for chunk in column.chunks], kind)
    if not pa.types.is_float32(column.type) or column.null_count:
        raise ValueError(f"column {name} is {table.column(name).type}, not of float32")
    return np.array(column.to_numpy()).reshape(shape)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)


def _sources(table: pa.Table) -> tuple[ClipSource, ...]:
    columns = {
        name: _column(table, f"source_{name}", kind).to_pylist()
        for name, kind in _SOURCE_TYPES.items()
    }
    rows = zip(*columns.values(), strict=True)
    return tuple(ClipSource(**dict(zip(columns, row, strict=True))) for row in rows)


# ------------------------------------------------------------------------------ on the disk


def write_parquet(path: Path, cache: FeatureCache) -> None:
    """Writes the whole file or none of it. Raises StorageError."""
    table = to_table(cache)
    # Only texts: a dictionary would hold one NaN of several, and features have no equal values.
    texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
    written = io.BytesIO()
    pyarrow.parquet.write_table(
        table, written, use_dictionary=texts, write_page_checksum=True, compression="zstd"
    )
    write_whole(path, written.getvalue())


def read_parquet(path: Path) -> FeatureCache:
    """Raises StorageError where it cannot be read, and as `from_table`."""
    return from_table(read_table(path), str(path))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, whole in memory. Its checksums are verified.

    Raises StorageError where there is no such file, InputError where it is no Parquet file, is
    damaged, or unpacks to far more than its size.
    """
    try:
        with path.open("rb") as file:  # pyarrow opens no name that is no UTF-8
            size = path.stat().st_size
            parquet = pyarrow.parquet.ParquetFile(
                file, page_checksum_verification=True, arrow_extensions_enabled=False
            )
            _check_claims(path, size, parquet)
            return parquet.read(columns=None if columns is None else list(columns))
    except FileNotFoundError as error:
        raise StorageError(f"{path}: no such file") from error
    except PermissionError as error:
        raise StorageError(f"{path}: cannot be read: no permission") from error
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable Parquet file ({reason})") from error


def _check_claims(path: Path, size: int, parquet: "pyarrow.parquet.ParquetFile") -> None:
    """Before anything is unpacked. The unpacked bytes that the file declares do not count values
    that are stored once, so the values are counted too."""
    groups = [parquet.metadata.row_group(index) for index in range(parquet.num_row_groups)]
    unpacked = sum(group.total_byte_size for group in groups)
    values = sum(
        group.column(index).num_values for group in groups for index in range(group.num_columns)
    )
    claimed = max(unpacked, 4 * values)
    if min(unpacked, values) < 0 or claimed > max(_MAX_SMALL_BYTES, _MAX_RATIO * size):
        raise InputError(f"{path}: {size:,} bytes that claim to hold {claimed:,}; not read")


def is_ours(path: Path) -> bool:
    """Whether `write_parquet` wrote a file; not whether it is whole. Raises StorageError."""
    return HEADER in (_metadata(path) or ())


def is_of_others(path: Path) -> bool:
    """Whether a file is anything but one of `write_parquet`; a damaged Parquet file may have been
    one. Raises StorageError."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_SIGNATURE))
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error})") from error
    if begins != _SIGNATURE:
        return bool(begins)
    found = _metadata(path)
    return found is not None and HEADER not in found


def _metadata(path: Path) -> Mapping[bytes, bytes] | None:
    """Of a Parquet file's schema; None where it is none, or damaged. Raises StorageError."""
    try:
        with path.open("rb") as file:
            return pyarrow.parquet.read_schema(file).metadata or {}
    except (pa.ArrowException, ValueError):
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error})") from error


def list_columns(table: pa.Table) -> list[str]:
    """The columns that hold lists of numbers, or lists of such lists."""
    return [field.name for field in table.schema if _is_list_of_numbers(field.type)]


def _is_list_of_numbers(kind: pa.DataType) -> bool:
    if not _is_list(kind):
        return False
    inner = kind.value_type.value_type if _is_list(kind.value_type) else kind.value_type
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))


def read_lists(table: pa.Table, name: str) -> Iterator[NDArray[Any] | str | None]:
    """Each row of a column of `list_columns`: numbers [dim] or [layers, dim]; None for an empty
    cell; a text that says what is wrong with a cell."""
    for cell in table.column(name):
        yield None if not cell.is_valid else _read_list(cell.values)


def _read_list(values: pa.Array) -> NDArray[Any] | str:
    if not _is_list(values.type):
        return "empty numbers" if values.null_count else values.to_numpy(zero_copy_only=False)
    lengths = set(pyarrow.compute.list_value_length(values).to_pylist())
    if len(lengths) != 1 or None in lengths:
        return "lists of different lengths"
    numbers = values.flatten()
    if numbers.null_count:
        return "empty numbers"
    return numbers.to_numpy(zero_copy_only=False).reshape(len(values), -1)


def column_names(path: Path) -> list[str]:
    """Of a Parquet file, read from its schema alone. Raises as `read_table`."""
    try:
        with path.open("rb") as file:
            return list(pyarrow.parquet.read_schema(file).names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from error


def to_dataset(cache: FeatureCache) -> "datasets.Dataset":
    """The rows of a cache as a dataset of Hugging Face's `datasets`, with the columns of the
    Parquet file. Nothing is written and nothing downloaded.

    Raises UsageError where `datasets` is not installed.
    """
    with needs_extra("datasets"):
        import datasets
    return datasets.Dataset(to_table(cache).replace_schema_metadata(None))
