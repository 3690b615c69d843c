"""A file of the store: some clips in a row, decoded. h5py alone reads it.

    attributes   format, format_version, recipe (JSON), split
    key/         dialogue_id, utterance_id    int64 [rows]
    frames       uint8 [rows with video, num_frames, height, width, 3], RGB
    waveform     float32 [samples], mono, one row's after the other's
    times_s      float64 [rows, num_frames]; 0 where there is no video
    span/        video, audio                 int64 [rows, 3]: a row's first byte in frames or
                                              waveform, its bytes, their CRC-32; 0 bytes: absent
    failures/    as in a feature cache

Frames and waveforms lie in one piece, without HDF5's checksums, so that a clip is read and checked
without HDF5: in 0.7 ms instead of the 5 to 8 of one checksummed chunk per clip.
"""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.failures import read_failures, write_failures
from pipeline.cache.hdf5 import Reader, Writer, open_hdf5, write_hdf5
from pipeline.errors import CacheCorrupt
from pipeline.schema import ClipKey, DecodedClip, Modality, Utterance
from pipeline.store.store import REPAIR, STORED, StoreConfig, StoreIndex

FORMAT = "meld-decoded"
FORMAT_VERSION = 1


def write_shard(path: Path, clips: Sequence[DecodedClip], config: StoreConfig) -> None:
    """Writes the whole file or none of it; raises StorageError."""
    write_hdf5(path, FORMAT, FORMAT_VERSION, lambda writer: _fill(writer, clips, config))


def _fill(writer: Writer, clips: Sequence[DecodedClip], config: StoreConfig) -> None:
    keys = [clip.utterance.key for clip in clips]
    writer.text("recipe", config.recipe)
    writer.text("split", keys[0].split)
    writer.array("key/dialogue_id", np.array([key.dialogue_id for key in keys], np.int64))
    writer.array("key/utterance_id", np.array([key.utterance_id for key in keys], np.int64))
    no_times = np.zeros(config.decode.num_frames)
    times_s = [no_times if clip.times_s is None else clip.times_s for clip in clips]
    writer.array("times_s", np.stack(times_s))
    for modality in config.modalities:
        arrays = [getattr(clip, STORED[modality].field) for clip in clips]
        _fill_media(writer, modality, arrays)
    write_failures(writer, [failure for clip in clips for failure in clip.failures])


def _fill_media(writer: Writer, modality: Modality, arrays: Sequence[NDArray[Any] | None]) -> None:
    there = [values for values in arrays if values is not None]
    writer.array(f"span/{modality}", _spans(arrays))
    if there:
        medium = STORED[modality]
        writer.plain(medium.field, np.stack(there) if medium.is_fixed else np.concatenate(there))


def _spans(arrays: Sequence[NDArray[Any] | None]) -> NDArray[np.int64]:
    """int64 [rows, 3]: first byte, bytes, CRC-32."""
    spans = np.zeros((len(arrays), 3), np.int64)
    first = 0
    for row, values in enumerate(arrays):
        if values is not None:
            spans[row] = first, values.nbytes, zlib.crc32(np.ascontiguousarray(values).data)
            first += values.nbytes
    return spans


def read_index(path: Path, rows: Sequence[Utterance], config: StoreConfig) -> StoreIndex:
    """Raises StorageError or CacheCorrupt, also where the shard is not the one of these rows."""
    with open_hdf5(path, FORMAT, FORMAT_VERSION, repair=REPAIR) as reader:
        _check_rows(reader, rows, config)
        times_s = reader.array("times_s", np.float64, 2)
        if times_s.shape != (len(rows), config.decode.num_frames):
            raise CacheCorrupt(f"{path}: dataset times_s is {times_s.shape}")
        spans = {name: _read_spans(reader, name, len(rows), config) for name in config.modalities}
        failures = read_failures(reader, rows[0].key.split)
        return StoreIndex(
            span=spans,
            times_s=times_s,
            failures=tuple(
                tuple(failure for failure in failures if failure.key == row.key) for row in rows
            ),
        )


def _check_rows(reader: Reader, rows: Sequence[Utterance], config: StoreConfig) -> None:
    split = rows[0].key.split
    dialogues = reader.array("key/dialogue_id", np.int64, 1).tolist()
    utterances = reader.array("key/utterance_id", np.int64, 1).tolist()
    keys = [ClipKey(split, *ids) for ids in zip(dialogues, utterances, strict=True)]
    made_so = reader.text("recipe") == config.recipe and reader.text("split") == split
    if not made_so or keys != [row.key for row in rows]:
        raise CacheCorrupt(f"{reader.path}: holds other clips than its place is for")


def _read_spans(
    reader: Reader, modality: Modality, num_rows: int, config: StoreConfig
) -> NDArray[np.int64]:
    """int64 [rows, 3] as in `StoreIndex`: what was counted within a dataset is within the file."""
    spans = reader.array(f"span/{modality}", np.int64, 2)
    size = reader.path.stat().st_size
    if spans.shape != (num_rows, 3) or spans.min() < 0 or spans[:, :2].max() > size:
        raise CacheCorrupt(f"{reader.path}: dataset span/{modality} makes no sense")
    num_bytes, medium = spans[:, 1], STORED[modality]
    of_a_value = np.dtype(medium.dtype).itemsize
    whole = math.prod(config.frames_shape) * of_a_value
    of_a_clip = whole if medium.is_fixed else num_bytes // of_a_value * of_a_value
    if ((num_bytes > 0) & (num_bytes != of_a_clip)).any():
        raise CacheCorrupt(f"{reader.path}: dataset span/{modality} has parts of a clip")
    if num_bytes.any():
        spans[num_bytes > 0, 0] += reader.offset(medium.field, medium.dtype, medium.axes)
    return spans
