"""What an earlier run left of a split, and whether this one may go on from there.

`plan.json` beside the shards says how they are made; a cache says it of itself. Whatever was
made in another way is refused, never mixed.
"""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cache.format import read_cache, read_header
from pipeline.corpus.sources import compare, describe
from pipeline.errors import CacheCorrupt, RecipeMismatch, StorageError
from pipeline.extract.shards import SplitWork
from pipeline.recipe import FeatureRecipe
from pipeline.schema import ClipSource
from pipeline.system.files import write_whole

logger = logging.getLogger(__name__)


def clean_up_after_a_kill(work: SplitWork) -> None:
    for folder in (work.path.parent, work.folder):
        for leftover in folder.glob(".*.tmp"):
            if folder == work.folder or leftover.name.startswith(f".{work.path.name}."):
                leftover.unlink()


def check_existing(
    work: SplitWork, recipe: FeatureRecipe, overwrite: bool, *, dry: bool = False
) -> None:
    """Finds out what of this split is done, and makes room where nothing is.

    A new --overwrite starts afresh; one that was killed goes on, with the option or without,
    and until it is finished the cache that it is to replace stays where it is.

    Args:
        dry: changes nothing on the disk.

    Raises:
        RecipeMismatch: a cache or an unfinished run made in another way is in the place.
        CacheCorrupt: what is in the place cannot be read.
        StorageError: the folder cannot be written.
    """
    plan = _read_plan(work)
    if plan is not None and plan.overwrite and _is_same(plan, work, recipe):
        _go_on(work, plan, dry=dry)
    elif work.path.is_file() and not overwrite:
        header = read_header(work.path)
        _refuse_other(str(work.path), work, header.recipe, header.rows_hash, recipe)
        _check_finished(work, plan, recipe, dry=dry)
    elif plan is not None and plan.rows is None and not overwrite:
        name = f"the unfinished extraction in {work.folder}"
        _refuse_other(name, work, plan.recipe, plan.rows_hash, recipe)
        _go_on(work, plan, dry=dry)
    elif not dry:
        _start_afresh(work, recipe, overwrite)


def _describe_clips(work: SplitWork) -> None:
    if work.reads_clips and not work.sources:
        work.sources = tuple(describe(clip, work.data) for clip in work.clips)


def _check_finished(
    work: SplitWork, plan: "_Plan | None", recipe: FeatureRecipe, *, dry: bool
) -> None:
    """A cache of this recipe and these rows: only clips that changed since are read again."""
    cache = read_cache(work.path, modalities=(), want=())
    is_same = plan is not None and _is_same(plan, work, recipe)
    if cache.sources:
        compared = compare(cache.sources, work.clips, work.data)
        work.sources = compared.now
        if compared.changed:
            work.rows = compared.changed
            logger.warning("%s", _tell_changes(work, cache.sources))
            if plan is not None and is_same and plan.rows == work.rows:
                _go_on(work, plan, dry=dry)
            elif not dry:
                _start_afresh(work, recipe, overwrite=False)
            return
    work.is_finished = True
    work.is_outdated = (
        cache.sources != work.sources
        or cache.emotion != [row.emotion or "" for row in work.utterances]
        or cache.sentiment != [row.sentiment or "" for row in work.utterances]
    )
    # A run that was killed when all was written has left its shards.
    if not dry and (plan is None or (is_same and not plan.overwrite)):
        shutil.rmtree(work.folder, ignore_errors=True)


def _tell_changes(work: SplitWork, then: Sequence[ClipSource]) -> str:
    rows = work.rows or ()
    first = rows[0]
    before, here = then[first].file, work.sources[first].file
    what = "changed" if before and here else "appeared" if here else "went"
    return (
        f"{work.path}: of {len(rows)} of {len(then)} rows the clip is not the one that was read "
        f"(first: {work.utterances[first].key}, {what}); these rows are extracted again"
    )


def _is_same(plan: "_Plan", work: SplitWork, recipe: FeatureRecipe) -> bool:
    return plan.recipe == recipe and plan.rows_hash == work.rows_hash


def _go_on(work: SplitWork, plan: "_Plan", *, dry: bool) -> None:
    _describe_clips(work)
    work.rows_per_shard = plan.rows_per_shard
    work.done = _finished_shards(work, dry=dry)


def _refuse_other(
    name: str, work: SplitWork, theirs: FeatureRecipe, rows_hash: str, recipe: FeatureRecipe
) -> None:
    if theirs != recipe:
        differing = "; ".join(theirs.differences(recipe))
        raise RecipeMismatch(
            f"{name} was made with another recipe ({differing}); ask for that recipe, choose "
            "another --features folder, or replace it with --overwrite"
        )
    if rows_hash != work.rows_hash:
        raise RecipeMismatch(
            f"{name} was made from other annotations than the {work.split} CSV here; choose "
            "another --features folder, or replace it with --overwrite"
        )


def _finished_shards(work: SplitWork, *, dry: bool) -> set[int]:
    done = set()
    for index in range(work.num_shards):
        path = work.shard_path(index)
        if not path.is_file():
            continue
        try:
            sources = read_cache(path).sources
        except CacheCorrupt as error:
            logger.warning("%s; extracting these rows again", error)
        else:
            clips = [work.clips[row] for row in work.numbers_of(index)]
            if not sources or not compare(sources, clips, work.data).changed:
                done.add(index)
                continue
            logger.warning("%s: clips changed since; extracting these rows again", path)
        if not dry:
            path.unlink()
    return done


# ---------------------------------------------------------------------------------- plan.json


@dataclass(frozen=True, kw_only=True)
class _Plan:
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


def _read_plan(work: SplitWork) -> _Plan | None:
    path = work.plan_path
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        rows = values["rows"]
        plan = _Plan(
            **{
                **values,
                "recipe": FeatureRecipe.from_json(values["recipe"]),
                "rows": None if rows is None else tuple(rows),
            }
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: cannot be read ({error}); delete {work.folder}") from error
    return plan


def _start_afresh(work: SplitWork, recipe: FeatureRecipe, overwrite: bool) -> None:
    _describe_clips(work)
    plan = {
        "recipe": recipe.to_json(),
        "rows_hash": work.rows_hash,
        "rows_per_shard": work.rows_per_shard,
        "overwrite": overwrite,
        "rows": work.rows,
    }
    try:
        shutil.rmtree(work.folder, ignore_errors=True)
        work.folder.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{work.folder}: cannot be written: {error.strerror}") from error
    write_whole(work.plan_path, json.dumps(plan, indent=1).encode())
