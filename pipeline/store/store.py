"""The store of decoded clips on disk, which training on raw media reads in every epoch instead of
decoding.

    <root>/<recipe, 12 hex>/<split>/plan.json         which clips, as they were when decoded
                                    shard-00000.h5    the first 16 of them, and so on

`shard.py` has the format of a shard, `prepare.py` writes them.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheCorrupt, StorageError, UsageError
from pipeline.recipe import REVISION, DecodeConfig
from pipeline.schema import (
    MEDIA,
    MODALITIES,
    ClipFailure,
    DecodedClip,
    Modality,
    Split,
    Utterance,
)

# What to do about a damaged shard, once it is deleted.
REPAIR = "decode again"
_FOLDER_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Medium:
    """How a modality is kept.

    field:    of a `DecodedClip`, and the dataset of a shard
    axes:     of that dataset
    is_fixed: whether every clip's part has the shape of frames; the others lie end to end
    """

    field: str
    dtype: type[np.generic]
    axes: int
    is_fixed: bool


STORED: dict[Modality, Medium] = {
    "video": Medium(field="frames", dtype=np.uint8, axes=5, is_fixed=True),
    "audio": Medium(field="waveform", dtype=np.float32, axes=1, is_fixed=False),
}


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where decoded clips are kept, and what was decoded how.

    modalities:      video, audio or both
    clips_per_shard: what a kill can cost; a store keeps to the number it was begun with
    """

    root: Path
    decode: DecodeConfig
    modalities: tuple[Modality, ...] = MEDIA
    clips_per_shard: int = 16

    def __post_init__(self) -> None:
        ordered = tuple(name for name in MODALITIES if name in self.modalities)
        if not ordered or set(self.modalities) - set(MEDIA):
            raise UsageError(f"decoded clips hold video, audio or both, not {self.modalities}")
        if self.clips_per_shard < 1:
            raise UsageError(f"clips_per_shard must be at least 1, not {self.clips_per_shard}")
        # The order they were asked for in changes no value.
        object.__setattr__(self, "modalities", ordered)

    @property
    def recipe(self) -> str:
        """Canonical JSON of all that decides the decoded values."""
        decode = dataclasses.asdict(self.decode)
        if not self.decode.more_views:
            del decode["more_views"]  # stores that are older than it have none
        made_by = {
            "decode": decode,
            "modalities": self.modalities,
            "revision": REVISION,
        }
        return json.dumps(made_by, sort_keys=True, separators=(",", ":"))

    @property
    def frames_shape(self) -> tuple[int, int, int, int]:
        return (self.decode.num_frames, *self.decode.frame_shape)

    def folder(self, split: Split) -> Path:
        digest = hashlib.sha256(self.recipe.encode()).hexdigest()
        return self.root / digest[:_FOLDER_DIGITS] / split

    def shard_path(self, split: Split, index: int) -> Path:
        return self.folder(split) / f"shard-{index:05d}.h5"


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """An index of the rows, without their media.

    span:     per modality int64 [rows, 3]: first byte in the shard's file, bytes, their CRC-32;
              without bytes the row has none of it
    times_s:  float64 [rows, num_frames]; without meaning where there is no video
    failures: the failures of each row
    """

    span: dict[Modality, NDArray[np.int64]]
    times_s: NDArray[np.float64]
    failures: tuple[tuple[ClipFailure, ...], ...]


def concatenate(parts: Sequence[StoreIndex]) -> StoreIndex:
    """The rows of shards, in order, as one index."""
    return StoreIndex(
        span={name: np.concatenate([part.span[name] for part in parts]) for name in parts[0].span},
        times_s=np.concatenate([part.times_s for part in parts]),
        failures=tuple(row for part in parts for row in part.failures),
    )


@dataclass(frozen=True, kw_only=True)
class DecodedStore:
    """The decoded clips of one split; row i is one utterance.

    Holds no open file: it may be pickled, and read by forked and spawned processes and by
    threads.
    """

    config: StoreConfig
    split: Split
    utterances: tuple[Utterance, ...]
    index: StoreIndex

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def present(self) -> dict[Modality, NDArray[np.bool_]]:
        """Per modality bool [rows]."""
        return {name: span[:, 1] > 0 for name, span in self.index.span.items()}

    @property
    def failures(self) -> tuple[tuple[ClipFailure, ...], ...]:
        """The failures of each row."""
        return self.index.failures

    def read(self, row: int, modalities: Collection[Modality] = MODALITIES) -> DecodedClip:
        """The clip exactly as it was decoded, less the modalities that are not asked for: their
        bytes are not read. Its arrays are the caller's own.

        Raises:
            IndexError: no such row.
            CacheCorrupt: it does not match its checksum; file and clip are named.
            StorageError: its file cannot be read.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} decoded clips")
        media: dict[str, Any] = {}
        for name, content in self._read_media(row, modalities).items():
            medium = STORED[name]
            values = content.view(medium.dtype)
            shape = self.config.frames_shape if medium.is_fixed else values.shape
            media[medium.field] = values.reshape(shape)
        return DecodedClip(
            utterance=self.utterances[row],
            times_s=self.index.times_s[row].copy() if "frames" in media else None,
            failures=self.failures[row],
            **media,
        )

    def _read_media(
        self, row: int, modalities: Collection[Modality]
    ) -> dict[Modality, NDArray[np.uint8]]:
        """uint8 [bytes] of each of these modalities that the row has."""
        path = self.config.shard_path(self.split, row // self.config.clips_per_shard)
        what = f"{path}: {self.utterances[row].key}"
        try:
            with path.open("rb") as file:
                return {
                    modality: _read_span(file, span[row], f"{what}: {modality}")
                    for modality, span in self.index.span.items()
                    if modality in modalities and span[row, 1] > 0
                }
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error


def _read_span(file: BufferedReader, span: NDArray[np.int64], what: str) -> NDArray[np.uint8]:
    first, size, checksum = span.tolist()
    content = np.empty(size, np.uint8)
    file.seek(first)
    if file.readinto(content.data) != size or zlib.crc32(content.data) != checksum:
        raise CacheCorrupt(f"{what} does not match its checksum; delete the file and {REPAIR}")
    return content
