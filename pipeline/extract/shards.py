"""One split on its way to its cache: rows in shards, each a file of its own, then one file.

    features/.work/<split>/shard-00000.h5, shard-00001.h5 ...  ->  features/<split>.h5

A shard is what a kill can cost; `resume.py` says which of them are there already.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.embeddings import projection_path
from pipeline.cache.format import FeatureCache, concatenate, read_cache, write_cache
from pipeline.parallel.work import ShardFeatures, ShardTask
from pipeline.recipe import FeatureRecipe
from pipeline.schema import LocatedClip, Modality, Split, Utterance


@dataclass(kw_only=True)
class SplitWork:
    """One split on its way. The only mutable thing of a run is how far it has come.

    rows_hash: ties the cache to its annotations
    path:      where the finished cache goes
    encoders_run: as in `FeatureCache`
    done:      indices of finished shards
    """

    split: Split
    utterances: list[Utterance]
    clips: list[LocatedClip]
    rows_hash: str
    path: Path
    rows_per_shard: int
    encoders_run: str | None = None
    is_finished: bool = False
    done: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.path.parent / ".work" / self.split

    @property
    def plan_path(self) -> Path:
        return self.folder / "plan.json"

    @property
    def num_shards(self) -> int:
        return -(-len(self.utterances) // self.rows_per_shard)

    def shard_path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.h5"

    def rows_of(self, index: int) -> slice:
        first = index * self.rows_per_shard
        return slice(first, min(first + self.rows_per_shard, len(self.utterances)))

    def rows_done(self) -> int:
        if self.is_finished:
            return len(self.utterances)
        return sum(self.rows_of(i).stop - self.rows_of(i).start for i in self.done)


def missing_tasks(work: SplitWork) -> Iterator[ShardTask]:
    if work.is_finished:
        return
    for index in range(work.num_shards):
        if index not in work.done:
            clips = tuple(work.clips[work.rows_of(index)])
            yield ShardTask(split=work.split, index=index, clips=clips)


def write_shard(work: SplitWork, shard: ShardFeatures, recipe: FeatureRecipe) -> None:
    """Raises StorageError."""
    write_cache(work.shard_path(shard.index), _as_cache(work, shard, recipe))
    work.done.add(shard.index)


def _as_cache(work: SplitWork, shard: ShardFeatures, recipe: FeatureRecipe) -> FeatureCache:
    rows = [clip.utterance for clip in shard.features]
    return FeatureCache(
        split=shard.split,
        recipe=recipe,
        rows_hash=work.rows_hash,
        dialogue_id=np.array([row.key.dialogue_id for row in rows], np.int64),
        utterance_id=np.array([row.key.utterance_id for row in rows], np.int64),
        text=[row.text for row in rows],
        speaker=[row.speaker for row in rows],
        emotion=[row.emotion or "" for row in rows],
        sentiment=[row.sentiment or "" for row in rows],
        raw=_stack_raw(shard, recipe),
        present={
            modality: np.array([modality in clip.raw for clip in shard.features])
            for modality in recipe.modalities
        },
        failures=tuple(failure for clip in shard.features for failure in clip.failures),
        encoders_run=work.encoders_run,
    )


def _stack_raw(shard: ShardFeatures, recipe: FeatureRecipe) -> dict[Modality, NDArray[np.float32]]:
    """float32 [rows, layers, dim] per modality that any row has; absent rows hold zeros."""
    stacked = {}
    for modality in recipe.modalities:
        shape = next((c.raw[modality].shape for c in shard.features if modality in c.raw), None)
        if shape is not None:
            empty = np.zeros(shape, np.float32)
            stacked[modality] = np.stack([clip.raw.get(modality, empty) for clip in shard.features])
    return stacked


def merge(work: SplitWork) -> None:
    """Shards to one file. A kill in here costs nothing: the shards go last, their plan first.

    Raises:
        StorageError: the disk; CacheCorrupt: a shard is damaged.
    """
    shards = [read_cache(work.shard_path(index)) for index in range(work.num_shards)]
    if work.split == "train":  # whatever was fitted on an earlier train file is stale now
        projection_path(work.path.parent).unlink(missing_ok=True)
    write_cache(work.path, concatenate(shards))
    work.plan_path.unlink(missing_ok=True)
    shutil.rmtree(work.folder, ignore_errors=True)
    work.is_finished = True
