"""128-d embeddings: the projection is fitted once train exists, and then applied to every cache."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pipeline.cache.format import read_cache, read_header, write_cache
from pipeline.cache.projection import (
    Projection,
    fit_projections,
    hash_projections,
    project,
    read_projections,
    write_projections,
)
from pipeline.errors import CacheBusy
from pipeline.recipe import FeatureRecipe
from pipeline.schema import SPLITS, Modality, Split
from pipeline.system import locks

Projections = dict[Modality, Projection]


def projection_path(features: Path) -> Path:
    return features / "projection.h5"


def complete_embeddings(
    features: Path, recipe: FeatureRecipe, locked: Collection[Split]
) -> dict[Modality, float] | None:
    """Fits the projection if train has none, and applies it to every split of this recipe.

    Caches that another run is writing are left to it; it does the same when it finishes.

    Args:
        locked: splits whose lock the caller holds.

    Returns:
        The share of variance kept per modality; None while there is neither a projection nor a
        train to fit it on.

    Raises:
        StorageError: the disk; CacheCorrupt: a damaged file is in the place.
    """
    projections = read_projections(projection_path(features), recipe)
    if projections is None and _is_there(features / "train.h5", recipe):
        projections = _fit(features, recipe, locked)
    if projections is None:
        return None
    for split in SPLITS:
        _complete(features, split, recipe, projections, locked)
    return {name: float(p.explained_variance.sum()) for name, p in projections.items()}


def _fit(features: Path, recipe: FeatureRecipe, locked: Collection[Split]) -> Projections | None:
    with ExitStack() as held:
        if not _may_write(held, features, "train", locked):
            return None
        train = read_cache(features / "train.h5", want=("raw",))
        if train.recipe != recipe:  # replaced by another run before the lock was ours
            return None
        projections = fit_projections(train)
        write_projections(projection_path(features), projections, recipe)
    return projections


def _complete(
    features: Path,
    split: Split,
    recipe: FeatureRecipe,
    projections: Mapping[Modality, Projection],
    locked: Collection[Split],
) -> None:
    path, wanted_hash = features / f"{split}.h5", hash_projections(dict(projections))
    if not _is_there(path, recipe) or read_header(path).projection_hash == wanted_hash:
        return
    with ExitStack() as held:
        if not _may_write(held, features, split, locked):
            return
        cache = read_cache(path, want=("raw",))
        if cache.recipe != recipe:  # replaced by another run before the lock was ours
            return
        embedding = {
            modality: project(raw, projections[modality]) * cache.present[modality][:, None]
            for modality, raw in cache.raw.items()
            if modality in projections
        }
        write_cache(path, replace(cache, embedding=embedding, projection_hash=wanted_hash))


def _is_there(path: Path, recipe: FeatureRecipe) -> bool:
    return path.is_file() and read_header(path).recipe == recipe


def _may_write(held: ExitStack, features: Path, split: Split, locked: Collection[Split]) -> bool:
    if split in locked:
        return True
    try:
        held.enter_context(locks.hold_split(features, split))
    except CacheBusy:
        return False
    return True
