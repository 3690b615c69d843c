"""Resumes a split that an earlier run left unfinished: `find_progress` looks, `begin_split` acts.

`plan.json` beside the shards records how they are made; a cache records it itself. Shards and
caches of another recipe are refused, never mixed.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.cache.format import FeatureCache, check_replaceable, read_cache, read_header
from pipeline.corpus.sources import compare, describe
from pipeline.errors import CacheCorrupt, InputError, RecipeMismatch, StorageError
from pipeline.extract.shards import SplitWork, clear_shards, other_rows, remove_half_written
from pipeline.recipe import FeatureRecipe
from pipeline.schema import ClipSource
from pipeline.system.files import remove_temporaries, write_whole
from pipeline.system.json_values import MALFORMED

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a split, and what is to be done on the disk before it is resumed.

    work:      the split, with its finished shards
    plan:      is to be written; None where the one that is there holds, or nothing is left to do
    is_afresh: what earlier runs left beside the cache is to be removed first
    bad:       numbers of shards that are to be removed: damaged ones, and those of other clips
    """

    work: SplitWork
    plan: "Plan | None" = None
    is_afresh: bool = False
    bad: tuple[int, ...] = ()


def find_progress(work: SplitWork, recipe: FeatureRecipe, overwrite: bool) -> Progress:
    """Finds out which rows of this split are done; changes neither `work` nor the disk.

    A new --overwrite starts again from nothing; a killed one is resumed, with the option or
    without, and until it is finished the old cache stays.

    Raises:
        RecipeMismatch: there is a cache or an unfinished run with another recipe or other rows.
        InputError: none of the clips exists any more.
        CacheCorrupt: the existing file cannot be read.
        UsageError: it is to be replaced, and is no cache.
    """
    plan = _read_plan(work)
    if plan is not None and plan.overwrite and _is_same(plan, work, recipe):
        return _go_on(_described(work), plan)
    if work.path.is_file() and not overwrite:
        header = read_header(work.path)
        _refuse_other(str(work.path), work, header.recipe, header.rows_hash, recipe)
        return _compare_finished(work, plan, recipe)
    if plan is not None and plan.rows is None and not overwrite:
        name = f"the unfinished extraction in {work.folder}"
        _refuse_other(name, work, plan.recipe, plan.rows_hash, recipe)
        return _go_on(_described(work), plan)
    if work.path.is_file():
        check_replaceable(work.path, "--features")
    return _start_afresh(_described(work), recipe, overwrite)


def begin_split(progress: Progress) -> SplitWork:
    """Prepares the disk according to `find_progress`, and removes partly written files. The caller
    must hold the split's lock.

    Raises StorageError.
    """
    work = progress.work
    try:
        remove_temporaries(work.path)
        remove_half_written(work.folder)
        for index in progress.bad:
            work.shard_path(index).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{work.folder}: cannot be cleaned up: {error.strerror}") from error
    if progress.is_afresh:
        clear_shards(work.folder)
    if progress.plan is not None:
        write_whole(work.plan_path, progress.plan.to_json().encode())
    return work


def _described(work: SplitWork) -> SplitWork:
    if not work.reads_clips:
        return work
    return replace(work, sources=tuple(describe(clip, work.data) for clip in work.clips))


def _compare_finished(work: SplitWork, plan: "Plan | None", recipe: FeatureRecipe) -> Progress:
    """A cache of this recipe and these rows: only clips that changed since are read again."""
    cache = read_cache(work.path, modalities=(), want=())
    if cache.keys != tuple(row.key for row in work.utterances):  # clips are compared in order
        raise other_rows(work)
    if cache.sources:
        compared = compare(cache.sources, work.clips, work.data)
        _refuse_clips_that_are_away(work, work.path, cache.sources, compared.now)
        work = replace(work, sources=compared.now)
        if compared.changed:
            return _redo(work, compared.changed, cache.sources, plan, recipe)
    is_outdated = (
        cache.sources != work.sources
        or cache.emotion != [row.emotion or "" for row in work.utterances]
        or cache.sentiment != [row.sentiment or "" for row in work.utterances]
    )
    # A run that was killed when all was written has left its shards.
    is_left_over = plan is None or (not plan.overwrite and _is_same(plan, work, recipe))
    finished = replace(work, is_finished=True, is_outdated=is_outdated)
    return Progress(work=finished, is_afresh=is_left_over)


def _redo(
    work: SplitWork,
    changed: tuple[int, ...],
    then: Sequence[ClipSource],
    plan: "Plan | None",
    recipe: FeatureRecipe,
) -> Progress:
    """These rows of a finished cache alone. A killed run that redid some of them goes on: clips
    that changed since come after its own."""
    if plan is not None and plan.overwrite:  # its shards would have to go
        name = f"the unfinished --overwrite in {work.folder}"
        _refuse_other(name, work, plan.recipe, plan.rows_hash, recipe)
    logger.warning("%s", _tell_changes(work, changed, then))
    if plan is None or plan.rows is None or not _is_same(plan, work, recipe):
        return _start_afresh(replace(work, rows=changed), recipe, overwrite=False)
    if not set(plan.rows) <= set(changed):  # the old file is back, and its row stands in the cache
        return _start_afresh(replace(work, rows=changed), recipe, overwrite=False)
    rows = (*plan.rows, *sorted(set(changed) - set(plan.rows)))
    progress = _go_on(replace(work, rows=rows), plan)
    return progress if rows == plan.rows else replace(progress, plan=replace(plan, rows=rows))


def _refuse_clips_that_are_away(
    work: SplitWork, made: Path, then: Sequence[ClipSource], now: Sequence[ClipSource]
) -> None:
    """Raises InputError if all clips are missing: a disk that is not mounted must not cost the
    features of a whole corpus."""
    num_clips = sum(bool(source.file) for source in then)
    if num_clips and not any(source.file for source in now):
        raise InputError(
            f"{work.data}: none of the {num_clips} clips that {made} was made from is here, so "
            f"{made} is left as it is; name their corpus with --data, or delete {made}"
        )


def _tell_changes(work: SplitWork, rows: Sequence[int], then: Sequence[ClipSource]) -> str:
    first = rows[0]
    before, here = then[first].file, work.sources[first].file
    what = "changed" if before and here else "appeared" if here else "went"
    return (
        f"{work.path}: of {len(rows)} of {len(then)} rows the clip is not the one that was read "
        f"(first: {work.utterances[first].key}, {what}); these rows are extracted again"
    )


def _is_same(plan: "Plan", work: SplitWork, recipe: FeatureRecipe) -> bool:
    return plan.recipe == recipe and plan.rows_hash == work.rows_hash


def _refuse_other(
    name: str, work: SplitWork, theirs: FeatureRecipe, rows_hash: str, recipe: FeatureRecipe
) -> None:
    if theirs != recipe:
        differing = "; ".join(_differences(theirs, recipe))
        raise RecipeMismatch(
            f"{name} was made with another recipe (there != here: {differing}); give "
            "the options of that recipe, choose another --features folder, or replace it with "
            "--overwrite"
        )
    if rows_hash != work.rows_hash:
        raise RecipeMismatch(
            f"{name} was made from other annotations than the {work.split} CSV here; choose "
            "another --features folder, or replace it with --overwrite"
        )


def _differences(theirs: FeatureRecipe, recipe: FeatureRecipe) -> list[str]:
    """The differing fields; of an encoder with another name, its name alone."""
    differing = theirs.differences(recipe)
    renamed = {field.partition(".")[0] for field in differing if ".name: " in field}
    return [
        field for field in differing if ".name: " in field or field.partition(".")[0] not in renamed
    ]


def _start_afresh(work: SplitWork, recipe: FeatureRecipe, overwrite: bool) -> Progress:
    plan = Plan(
        recipe=recipe,
        rows_hash=work.rows_hash,
        rows_per_shard=work.rows_per_shard,
        overwrite=overwrite,
        rows=work.rows,
    )
    return Progress(work=work, plan=plan, is_afresh=True)


def _go_on(work: SplitWork, plan: "Plan") -> Progress:
    """With the shards that are of these rows, and of the clips that are here."""
    work = replace(work, rows_per_shard=plan.rows_per_shard)
    done: set[int] = set()
    bad: list[int] = []
    then: list[ClipSource] = []
    for index in range(work.num_shards):
        path = work.shard_path(index)
        if not path.is_file():
            continue
        try:
            shard = read_cache(path)
        except CacheCorrupt as error:
            logger.warning("%s; extracting these rows again", error)
            bad.append(index)
            continue
        then += shard.sources
        if _is_of_these_rows(work, index, shard):
            done.add(index)
        else:
            logger.warning("%s: belongs to other rows or clips; extracting these again", path)
            bad.append(index)
    _refuse_clips_that_are_away(work, work.folder, then, work.sources)
    return Progress(work=replace(work, done=done), bad=tuple(bad))


def _is_of_these_rows(work: SplitWork, index: int, shard: FeatureCache) -> bool:
    clips = [work.clips[row] for row in work.numbers_of(index)]
    keys = [shard.key(row) for row in range(len(shard))]
    if keys != [clip.utterance.key for clip in clips]:
        return False
    return not shard.sources or not compare(shard.sources, clips, work.data).changed


# ---------------------------------------------------------------------------------- plan.json


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the shards beside it are made.

    overwrite: they are to replace a finished cache
    rows:      they are these rows of a finished cache; None for all
    """

    recipe: FeatureRecipe
    rows_hash: str
    rows_per_shard: int
    overwrite: bool
    rows: tuple[int, ...] | None

    def __post_init__(self) -> None:
        # The file may have been edited or damaged: what it says is not yet of any type.
        if type(self.rows_per_shard) is not int or self.rows_per_shard < 1:
            raise ValueError(f"rows_per_shard is {self.rows_per_shard!r}")
        if not isinstance(self.rows_hash, str) or not isinstance(self.overwrite, bool):
            raise ValueError(f"rows_hash is {self.rows_hash!r}, overwrite {self.overwrite!r}")
        if self.rows is not None and any(type(row) is not int for row in self.rows):
            raise ValueError(f"rows are {self.rows!r}")

    def to_json(self) -> str:
        values = {**dataclasses.asdict(self), "recipe": self.recipe.to_json()}
        return json.dumps(values, indent=1)


def _read_plan(work: SplitWork) -> Plan | None:
    path = work.plan_path
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        rows = values["rows"]
        plan = Plan(
            **{
                **values,
                "recipe": FeatureRecipe.from_json(values["recipe"]),
                "rows": None if rows is None else tuple(rows),
            }
        )
    except (OSError, *MALFORMED) as error:
        raise CacheCorrupt(f"{path}: cannot be read ({error}); delete {work.folder}") from error
    return plan
