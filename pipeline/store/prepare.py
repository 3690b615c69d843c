"""The decoding stage: clips in, a store of decoded clips out, for training on raw media.

    look what is there -> free space -> lock -> shards through Ray -> DecodedStore

Each shard is written when it is finished, so a killed run is resumed by the next one.
"""

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.errors import CacheCorrupt, StorageError
from pipeline.parallel.work import Cluster, ShardTask
from pipeline.schema import LocatedClip, Split, Utterance
from pipeline.store.shard import read_index, write_shard
from pipeline.store.sources import (
    ClipSource,
    describe_clips,
    read_plan,
    refuse_other_clips,
    write_plan,
)
from pipeline.store.store import STORED, DecodedStore, StoreConfig, StoreIndex, concatenate
from pipeline.system import locks

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int, int], None]  # rows done, rows in all, failures so far

# For annotations without times; MELD's utterances last 3.1 s on average.
_ASSUMED_S = 5.0
# Room for clips that are longer than their annotation says.
_LONGER = 1.1
_BYTES_PER_CLIP_BESIDES = 1024


def prepare_store(
    split: Split,
    clips: Sequence[LocatedClip],
    config: StoreConfig,
    cluster: Cluster,
    on_progress: OnProgress = lambda *_: None,
) -> DecodedStore:
    """Decodes what is missing; what earlier runs finished is kept, and Ray not even started
    where that is everything.

    A clip that cannot be decoded is a row without that modality, with its failures.

    Raises:
        RecipeMismatch: the store is of other clips, or a media file has changed since.
        StorageError: too little free space, found before anything is written; the disk.
        CacheBusy: another run is writing this store.
        UsageError: the cluster is not to be reached.
    """
    work = _look(split, clips, config)
    if work.missing:
        _check_space(work)
        lock = work.folder.with_suffix(".lock")
        with locks.hold(lock, f"the store of decoded {split} clips in {work.folder}"):
            work = _look(split, clips, config)  # another run may just have finished it
            _make_ready(work)
            _decode_missing(work, cluster, on_progress)
    return _open_store(work)


def bytes_needed(utterances: Sequence[Utterance], config: StoreConfig) -> int:
    """Estimates the store's size from the annotated durations."""
    decode = config.decode
    total = len(utterances) * _BYTES_PER_CLIP_BESIDES
    for medium in (STORED[modality] for modality in config.modalities):
        if medium.is_fixed:
            values = len(utterances) * math.prod(config.frames_shape)
        else:
            seconds = sum(_seconds(utterance, decode.max_duration_s) for utterance in utterances)
            values = math.ceil(seconds * decode.sample_rate_hz)
        total += values * np.dtype(medium.dtype).itemsize
    return total


def _seconds(utterance: Utterance, at_most_s: float) -> float:
    annotated_s = utterance.end_s - utterance.start_s
    return min(annotated_s * _LONGER if annotated_s > 0 else _ASSUMED_S, at_most_s)


# ------------------------------------------------------------------------------ what is there


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One split on its way; `shards` grows until there are `num_shards`."""

    split: Split
    clips: tuple[LocatedClip, ...]
    sources: tuple[ClipSource, ...]
    config: StoreConfig
    is_begun: bool
    shards: dict[int, StoreIndex] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.config.folder(self.split)

    @property
    def num_shards(self) -> int:
        return -(-len(self.clips) // self.config.clips_per_shard)

    @property
    def missing(self) -> list[int]:
        return [index for index in range(self.num_shards) if index not in self.shards]

    def clips_of(self, index: int) -> tuple[LocatedClip, ...]:
        first = index * self.config.clips_per_shard
        return self.clips[first : first + self.config.clips_per_shard]

    def rows_of(self, index: int) -> list[Utterance]:
        return [clip.utterance for clip in self.clips_of(index)]

    def progress(self) -> tuple[int, int, int]:
        rows = [row for shard in self.shards.values() for row in shard.failures]
        return len(rows), len(self.clips), sum(len(failures) for failures in rows)


def _look(split: Split, clips: Sequence[LocatedClip], config: StoreConfig) -> _Work:
    """Finds out what is done; refuses a store of other clips."""
    plan = read_plan(config.folder(split))
    work = _Work(
        split=split,
        clips=tuple(clips),
        sources=describe_clips(clips),
        config=replace(config, clips_per_shard=plan.clips_per_shard) if plan else config,
        is_begun=plan is not None,
    )
    if plan is not None:
        refuse_other_clips(work.folder, split, plan.sources, work.sources)
        for index in range(work.num_shards):
            _find_shard(work, index)
    return work


def _find_shard(work: _Work, index: int) -> None:
    path = work.config.shard_path(work.split, index)
    if not path.is_file():
        return
    try:
        work.shards[index] = read_index(path, work.rows_of(index), work.config)
    except CacheCorrupt as error:
        logger.warning("%s; decoding these clips again", error)


# ----------------------------------------------------------------------------------- working


def _check_space(work: _Work) -> None:
    rows = [row for index in work.missing for row in work.rows_of(index)]
    needed = bytes_needed(rows, work.config)
    root = work.config.root.absolute()
    free = shutil.disk_usage(next(at for at in (root, *root.parents) if at.exists())).free
    if needed > free:
        raise StorageError(
            f"{root}: {len(rows)} decoded {work.split} clips need about {needed / 2**30:.1f} GiB "
            f"and {free / 2**30:.1f} GiB are free; free some, or choose a folder on another disk"
        )


def _make_ready(work: _Work) -> None:
    """Removes what a killed run left half done, and writes down what is being decoded."""
    leftovers = list(work.folder.glob(".*.tmp"))
    if not work.is_begun:  # without a plan nobody knows which media an old shard is of
        leftovers += work.folder.glob("shard-*.h5")
    for leftover in leftovers:
        leftover.unlink()
    if not work.is_begun:
        write_plan(work.split, work.config, work.sources)


def _decode_missing(work: _Work, cluster: Cluster, on_progress: OnProgress) -> None:
    on_progress(*work.progress())
    tasks = [
        ShardTask(split=work.split, index=index, clips=work.clips_of(index))
        for index in work.missing
    ]
    if not tasks:
        return
    from pipeline.parallel.engine import decode_shards  # Ray, where there is work for it

    config = work.config
    for shard in decode_shards(tasks, config.decode, config.modalities, cluster):
        path = config.shard_path(work.split, shard.index)
        write_shard(path, shard.clips, config)
        work.shards[shard.index] = read_index(path, work.rows_of(shard.index), config)
        on_progress(*work.progress())


def _open_store(work: _Work) -> DecodedStore:
    shards = [work.shards[index] for index in range(work.num_shards)]
    return DecodedStore(
        config=work.config,
        split=work.split,
        utterances=tuple(clip.utterance for clip in work.clips),
        index=concatenate(shards),
    )
