"""The extraction of one split: rows in shards, each a file of its own, merged into one cache.

    features/.work/<split>/shard-00000.h5, shard-00001.h5 ...  ->  features/<split>.h5

A kill costs at most the shards in work; `resume.py` finds the finished ones.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.embeddings import projection_path
from pipeline.cache.format import (
    FeatureCache,
    concatenate,
    read_cache,
    replace_rows,
    write_cache,
)
from pipeline.corpus.sources import with_digest
from pipeline.errors import RecipeMismatch, StorageError
from pipeline.parallel.work import ShardFeatures, ShardTask
from pipeline.recipe import FeatureRecipe
from pipeline.schema import ClipSource, LocatedClip, Modality, Split, Utterance

PLAN = "plan.json"
_SHARD_NAME = re.compile(r"shard-\d{5,}\.h5")
_HALF_WRITTEN = re.compile(rf"\.(plan\.json|{_SHARD_NAME.pattern})\..+\.tmp")


@dataclass(kw_only=True)
class SplitWork:
    """The extraction of one split. Only its progress is mutable.

    rows_hash: ties the cache to its annotations
    path:      where the finished cache goes
    encoders_run: as in `FeatureCache`
    sources:   the clips' files as they are now; empty where no clip is read
    rows:      the only ones that are worked on, as the others stand in the cache; None for all
    is_outdated: finished, but labels or times of files in the cache are not those of today
    done:      indices of finished shards
    """

    split: Split
    utterances: list[Utterance]
    clips: list[LocatedClip]
    rows_hash: str
    path: Path
    rows_per_shard: int
    encoders_run: str | None = None
    data: Path = Path()
    sources: tuple[ClipSource, ...] = ()
    rows: tuple[int, ...] | None = None
    is_finished: bool = False
    is_outdated: bool = False
    done: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.path.parent / ".work" / self.split

    @property
    def plan_path(self) -> Path:
        return self.folder / PLAN

    @property
    def reads_clips(self) -> bool:
        return any(clip.path is not None or clip.missing for clip in self.clips)

    @property
    def num_rows(self) -> int:
        """Those that are worked on."""
        return len(self.utterances) if self.rows is None else len(self.rows)

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.rows_per_shard)

    def shard_path(self, index: int) -> Path:
        return self.folder / f"shard-{index:05d}.h5"

    def rows_of(self, index: int) -> slice:
        first = index * self.rows_per_shard
        return slice(first, min(first + self.rows_per_shard, self.num_rows))

    def numbers_of(self, index: int) -> Sequence[int]:
        """A shard's rows as numbers in the split."""
        rows = range(len(self.utterances)) if self.rows is None else self.rows
        return rows[self.rows_of(index)]

    def rows_done(self) -> int:
        if self.is_finished:
            return len(self.utterances)
        standing = len(self.utterances) - self.num_rows
        return standing + sum(len(self.numbers_of(index)) for index in self.done)


def missing_tasks(work: SplitWork) -> Iterator[ShardTask]:
    if work.is_finished:
        return
    for index in range(work.num_shards):
        if index not in work.done:
            clips = tuple(work.clips[row] for row in work.numbers_of(index))
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
        sources=tuple(
            with_digest(work.clips[row], work.sources[row], work.data)
            for row in work.numbers_of(shard.index)
            if work.sources
        ),
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
    """Merges shards into one file. A kill during it loses nothing: the shards are removed last,
    after their plan.

    Raises:
        StorageError: the disk; CacheCorrupt: a shard is damaged.
        RecipeMismatch: the rows together are not those of the CSV.
    """
    shards = [read_cache(work.shard_path(index)) for index in range(work.num_shards)]
    cache = _with_times_of_today(work, concatenate(shards))
    if work.rows is not None:
        cache = replace_rows(_up_to_date(work, read_cache(work.path)), work.rows, cache)
    if work.split == "train":  # whatever was fitted on an earlier train file is stale now
        _remove(projection_path(work.path.parent))
    write_cache(work.path, _labelled(work, cache))
    clear_shards(work.folder)
    work.is_finished = True


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be removed: {error.strerror}") from error


def remove_half_written(folder: Path) -> None:
    """Removes temporary files of plan and shards that a kill left. Raises OSError."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if _HALF_WRITTEN.fullmatch(path.name):
            path.unlink()


def clear_shards(folder: Path) -> None:
    """Removes a split's plan, then its shards, and their folder unless something else is in it.

    Raises StorageError.
    """
    try:
        (folder / PLAN).unlink(missing_ok=True)
        if not folder.is_dir():
            return
        names = [path.name for path in folder.iterdir()]
        for name in names:
            if _SHARD_NAME.fullmatch(name):
                (folder / name).unlink()
        if all(_SHARD_NAME.fullmatch(name) or name == PLAN for name in names):
            folder.rmdir()
    except OSError as error:
        raise StorageError(f"{folder}: cannot be cleared: {error.strerror}") from error


def update(work: SplitWork) -> None:
    """Writes into a finished cache what changed without changing a feature: labels, and times of
    files whose bytes are the same. Raises StorageError, CacheCorrupt or RecipeMismatch."""
    write_cache(work.path, _labelled(work, _up_to_date(work, read_cache(work.path))))


def _with_times_of_today(work: SplitWork, cache: FeatureCache) -> FeatureCache:
    """Shards of an earlier run may hold other times of files whose bytes are the same."""
    rows = range(len(work.utterances)) if work.rows is None else work.rows
    sources = (
        replace(work.sources[row], sha256=source.sha256) if source.sha256 else source
        for row, source in zip(rows, cache.sources, strict=False)  # none where no clip is read
    )
    return replace(cache, sources=tuple(sources))


def _up_to_date(work: SplitWork, cache: FeatureCache) -> FeatureCache:
    return replace(cache, sources=work.sources if cache.sources else ())


def _labelled(work: SplitWork, cache: FeatureCache) -> FeatureCache:
    """With the labels that the CSV has now: shards may be of a time before a correction.

    Raises RecipeMismatch where the cache's rows are not those of the CSV.
    """
    rows = {row.key: row for row in work.utterances}
    if sorted(cache.keys) != sorted(rows):
        raise other_rows(work)
    return replace(
        cache,
        emotion=[rows[key].emotion or "" for key in cache.keys],
        sentiment=[rows[key].sentiment or "" for key in cache.keys],
    )


def other_rows(work: SplitWork) -> RecipeMismatch:
    """Of a cache that has other rows than its hash says."""
    return RecipeMismatch(
        f"{work.path} holds other rows than the {work.split} CSV here, though it says that it was "
        "made from it; choose another --features folder, or replace it with --overwrite"
    )
