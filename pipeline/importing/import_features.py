"""`meld import`: features that another tool made become a modality of feature caches.

sources -> the features of each clip -> matched with the rows of the caches by key -> one shape ->
projected -> caches with one modality more

A row that gets nothing is absent, and the ledger says why; nothing else of a cache changes.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.embeddings import projection_path
from pipeline.cache.format import FeatureCache, check_replaceable, read_cache, write_cache
from pipeline.cache.projection import (
    Projection,
    fit_projection,
    fit_projections,
    hash_projections,
    project,
    read_projections,
    write_projections,
)
from pipeline.corpus.layout import clip_stem
from pipeline.errors import InputError, RecipeMismatch, UsageError
from pipeline.importing.config import ImportConfig
from pipeline.importing.items import ClipName, Item, Pooling, has_frames, pool
from pipeline.importing.report import ImportReport, SplitImport
from pipeline.importing.sources import Source, find_sources
from pipeline.recipe import EncoderSpec, FeatureRecipe
from pipeline.schema import SPLITS, ClipFailure, ClipKey, Modality, Split
from pipeline.system import locks

_STAGE = "import"


def import_features(config: ImportConfig) -> ImportReport:
    """Reads the features of all splits that have a cache, and writes the caches with them.

    Raises:
        UsageError: the caches have the modality, or it is not clear what is to be read.
        InputError, StorageError: nothing that is read is of a row of a cache, or it cannot be read.
        RecipeMismatch: the caches were not made alike.
    """
    out = config.out or config.features
    with ExitStack() as held:
        for split in _splits_there(config):
            held.enter_context(locks.hold_split(out, split))
        caches = _read_caches(config)
        sources = find_sources(config.paths, [*caches])
        found = _read_items(config, sources, caches)
        matched = {split: _match(cache, found[split]) for split, cache in caches.items()}
        shape = _decide_shape(config, matched)
        recipe = _new_recipe(config, caches, sources, shape)
        filled = {
            split: _fill(config, caches[split], matched[split], shape, recipe) for split in caches
        }
        _check_some(config, filled)
        projections = _extend_projections(config, caches, filled)
        for split, cache in filled.items():
            write_cache(out / f"{split}.h5", _embed(config, cache, projections))
        if projections is not None:
            write_projections(projection_path(out), dict(projections.each), recipe)
    own = None if projections is None else projections.each.get(config.modality)
    return ImportReport(
        modality=config.modality,
        name=config.name,
        out=out,
        recipe=recipe,
        shape=shape.values,
        pooling=shape.pooling,
        columns=shape.columns,
        left_out=tuple(sorted({text for source in sources for text in source.texts})),
        splits=tuple(_report_split(config, filled[split], matched[split]) for split in caches),
        variance=None if own is None else float(own.explained_variance.sum()),
    )


def _splits_there(config: ImportConfig) -> list[Split]:
    """Those that have a cache. Raises InputError where none has, UsageError where one would be
    replaced in --out."""
    splits = [split for split in SPLITS if (config.features / f"{split}.h5").is_file()]
    if not splits:
        raise InputError(
            f"{config.features}: no feature cache to import into; make one first, of text alone "
            "for instance: meld extract --split all --modalities text --text minilm"
        )
    if config.is_elsewhere:
        assert config.out is not None
        for path in (config.out / f"{split}.h5" for split in splits):
            if path.exists() and not config.overwrite:
                raise UsageError(
                    f"{path} is there already; name another --out, or replace it with --overwrite"
                )
            if path.exists():
                check_replaceable(path)
    return splits


def _read_caches(config: ImportConfig) -> dict[Split, FeatureCache]:
    paths = {split: config.features / f"{split}.h5" for split in _splits_there(config)}
    caches = {split: read_cache(path) for split, path in paths.items()}
    others: dict[Split, dict[str, Any]] = {}
    for split, cache in caches.items():
        is_there = config.modality in cache.recipe.modalities
        if is_there and not config.overwrite and not config.is_elsewhere:
            spec = cache.recipe.encoder_of(config.modality)
            raise UsageError(
                f"{paths[split]} has {config.modality} already, by {spec.name}; write to another "
                "folder with --out, or replace it with --overwrite"
            )
        values = cache.recipe.to_dict()
        kept = [each for each in values["encoders"] if each["modality"] != config.modality]
        others[split] = {**values, "encoders": kept}
    first = next(iter(others))
    for split, values in others.items():
        if values != others[first]:
            differing = caches[first].recipe.differences(caches[split].recipe)
            raise RecipeMismatch(
                f"{paths[first]} and {paths[split]} were made with different recipes "
                f"({'; '.join(differing)}); extract both alike first"
            )
    return caches


# ----------------------------------------------------------------------- reading and matching


@dataclass(kw_only=True)
class _Found:
    """What was read for a split: by key, and the names that no row has."""

    by_key: dict[ClipKey, list["_Pooled"]] = field(default_factory=dict)
    not_matched: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class _Pooled:
    """An item as a cache keeps it: float32 [layers, dim], or the reason why there is none."""

    place: str
    corrected: bool
    values: NDArray[np.float32] | None = None
    columns: tuple[str, ...] = ()
    had_frames: bool = False
    code: str = ""
    problem: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.values is None else self.values.shape


def _pool(item: Item, how: Pooling | None) -> _Pooled:
    """At once: the frames of a whole corpus are many gigabytes."""
    corrected = item.clip is not None and item.clip.corrected
    if item.code:
        return _Pooled(place=item.place, corrected=corrected, code=item.code, problem=item.problem)
    try:
        values = pool(item, how)
    except ValueError as error:
        problem = f"{item.place}: {error}"
        return _Pooled(place=item.place, corrected=corrected, code="other_shape", problem=problem)
    broken = int((~np.isfinite(values)).sum())
    if broken:
        problem = f"{item.place}: {broken} of {values.size} values are NaN or infinite"
        return _Pooled(place=item.place, corrected=corrected, code="not_finite", problem=problem)
    return _Pooled(
        place=item.place,
        corrected=corrected,
        values=values,
        columns=item.columns,
        had_frames=has_frames(item),
    )


def _read_items(
    config: ImportConfig, sources: Sequence[Source], caches: Mapping[Split, FeatureCache]
) -> dict[Split, _Found]:
    """Every item, with its split; names of other clips are kept by split."""
    found = {split: _Found() for split in caches}
    keys = {split: set(cache.keys) for split, cache in caches.items()}
    first = next(iter(caches))
    suffixes: dict[str, str] = {}
    for source in sources:
        source.column = config.column
        for item in source.items():
            clip = item.clip
            split = (clip and clip.split) or source.split
            if clip is None:
                found[split or first].not_matched.append(item.place)
                continue
            if config.suffix is not None and clip.suffix != config.suffix:
                continue
            suffixes.setdefault(clip.suffix, item.place)
            if split is None:
                raise UsageError(
                    f"{source.path}: {item.place} does not say which split it is of, and there are "
                    f"caches of {', '.join(caches)}; name the paths: --from train=PATH --from ..."
                )
            key = ClipKey(split, clip.dialogue_id, clip.utterance_id)
            if split not in caches or key not in keys[split] or not _is_cut(clip, split):
                found[split if split in caches else first].not_matched.append(item.place)
            else:
                found[split].by_key.setdefault(key, []).append(_pool(item, config.pool))
    _check_suffixes(config, suffixes)
    return found


def _is_cut(clip: ClipName, split: Split) -> bool:
    """Only test has corrected cuts."""
    return not clip.corrected or split == "test"


def _check_suffixes(config: ImportConfig, suffixes: Mapping[str, str]) -> None:
    if config.suffix is not None and not suffixes:
        raise UsageError(f"--suffix {config.suffix}: no name of a clip ends so")
    if len(suffixes) > 1:
        told = " and ".join(f"{suffix!r} ({place})" for suffix, place in [*suffixes.items()][:3])
        raise UsageError(
            f"names of clips are followed by {told}; choose one: --suffix {max(suffixes)}"
        )


@dataclass(frozen=True, kw_only=True)
class _Matched:
    """What each row gets, and why the others get nothing: code and message."""

    pooled: Mapping[ClipKey, _Pooled]
    problems: Mapping[ClipKey, tuple[str, str]]
    not_matched: tuple[str, ...]


def _match(cache: FeatureCache, found: _Found) -> _Matched:
    takes_corrected = (cache.recipe.test_clips or "fixed") == "fixed"
    pooled: dict[ClipKey, _Pooled] = {}
    problems: dict[ClipKey, tuple[str, str]] = {}
    for key in cache.keys:
        several = found.by_key.get(key, [])
        if len({each.corrected for each in several}) == 2:  # both cuts of a test clip
            several = [each for each in several if each.corrected == takes_corrected]
        if not several:
            problems[key] = ("missing", f"no features of {clip_stem(key)} in what was imported")
        elif len(several) > 1 and not _are_equal(several):
            told = " and ".join(each.place for each in several[:3])
            problems[key] = ("doubled", f"{len(several)} different features: {told}")
        elif several[0].code:
            problems[key] = (several[0].code, several[0].problem)
        else:
            pooled[key] = several[0]
    return _Matched(pooled=pooled, problems=problems, not_matched=tuple(found.not_matched))


def _are_equal(several: Sequence[_Pooled]) -> bool:
    first, *others = several
    return first.values is not None and all(
        each.values is not None and np.array_equal(first.values, each.values) for each in others
    )


# ------------------------------------------------------------------------ into the caches


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What most clips have: (layers, dim), and the names of the features."""

    values: tuple[int, int]
    columns: tuple[str, ...]
    pooling: str


def _decide_shape(config: ImportConfig, matched: Mapping[Split, _Matched]) -> _Shape:
    """Raises InputError where no row of a split gets anything."""
    for split, each in matched.items():
        if not each.pooled:
            reasons = [problem for code, problem in each.problems.values() if code != "missing"]
            reasons += [f"{name} is no clip of {split}" for name in each.not_matched]
            why = f"; {reasons[0]}" if reasons else ""
            raise InputError(f"no row of {split} gets features of what was imported{why}")
    there = [one for each in matched.values() for one in each.pooled.values()]
    shapes = Counter((one.shape, one.columns) for one in there)
    [((values, columns), _)] = shapes.most_common(1)
    frames = any(one.had_frames for one in there)
    return _Shape(
        values=(int(values[0]), int(values[1])),
        columns=columns,
        pooling=config.pool or ("mean" if frames else "none"),
    )


def _new_recipe(
    config: ImportConfig,
    caches: Mapping[Split, FeatureCache],
    sources: Sequence[Source],
    shape: _Shape,
) -> FeatureRecipe:
    before = next(iter(caches.values())).recipe
    spec = EncoderSpec(
        modality=config.modality,
        name=config.name,
        weights="foreign",
        weights_hash=_hash_input(sources),
        pooling=shape.pooling,
        precision="float32",
        layers=tuple(range(shape.values[0])),
    )
    others = tuple(each for each in before.encoders if each.modality != config.modality)
    return replace(before, encoders=(*others, spec))


def _hash_input(sources: Sequence[Source]) -> str:
    """SHA-256 over the bytes of the files that were read, each with its split and its name below
    what was named. Where that lies counts nothing."""
    digest = hashlib.sha256()
    for source in sources:
        for name, content in sorted(source.digests.items()):
            digest.update(f"{source.split or ''}\0{name}\0{content}\n".encode())
    return digest.hexdigest()


def _fill(
    config: ImportConfig,
    cache: FeatureCache,
    matched: _Matched,
    shape: _Shape,
    recipe: FeatureRecipe,
) -> FeatureCache:
    """The cache with the modality, whose embeddings are still to be made."""
    modality, problems = config.modality, dict(matched.problems)
    values = np.zeros((len(cache), *shape.values), np.float32)
    present = np.zeros(len(cache), np.bool_)
    for row, key in enumerate(cache.keys):
        one = matched.pooled.get(key)
        if one is None:
            continue
        if one.values is None or (one.shape, one.columns) != (shape.values, shape.columns):
            names = "" if one.columns == shape.columns else " of other columns"
            told = f"{one.place}: {list(one.shape)}{names}, others {list(shape.values)}"
            problems[key] = ("other_shape", told)
        else:
            values[row], present[row] = one.values, True
    order = {key: row for row, key in enumerate(cache.keys)}
    failures = [each for each in cache.failures if each.modality != modality]
    failures += [
        ClipFailure(key=key, modality=modality, stage=_STAGE, code=code, message=message)
        for key, (code, message) in problems.items()
    ]
    raw = {**cache.raw, modality: values}
    there = {**cache.present, modality: present}
    return replace(
        cache,
        recipe=recipe,
        raw={name: raw[name] for name in recipe.modalities if name in raw},
        present={name: there[name] for name in recipe.modalities},
        embedding={name: each for name, each in cache.embedding.items() if name != modality},
        failures=tuple(sorted(failures, key=lambda failure: order[failure.key])),
    )


def _check_some(config: ImportConfig, filled: Mapping[Split, FeatureCache]) -> None:
    for split, cache in filled.items():
        if not cache.present[config.modality].any():
            raise InputError(
                f"no row of {split} has features of the shape that most clips of the other splits "
                f"have: {list(cache.raw[config.modality].shape[1:])}"
            )


@dataclass(frozen=True, kw_only=True)
class _Projections:
    """kept: the hash of the others' projections where they are as they were, and embeddings under
    that hash stay"""

    each: Mapping[Modality, Projection]
    kept: str | None


def _extend_projections(
    config: ImportConfig,
    caches: Mapping[Split, FeatureCache],
    filled: Mapping[Split, FeatureCache],
) -> _Projections | None:
    """The projections of the other modalities as they were, and one of the new; None without a
    train cache to fit it on."""
    train = filled.get("train")
    if train is None:
        return None
    before = read_projections(projection_path(config.features), caches["train"].recipe)
    if before is None:
        return _Projections(each=fit_projections(train), kept=None)
    modality = config.modality
    own = fit_projection(train.raw[modality][train.present[modality]])
    others = {name: each for name, each in before.items() if name != modality}
    return _Projections(each={**others, modality: own}, kept=hash_projections(before))


def _embed(
    config: ImportConfig, cache: FeatureCache, projections: _Projections | None
) -> FeatureCache:
    """Without projections there are no embeddings: one modality's alone would be taken for all."""
    if projections is None:
        return replace(cache, embedding={}, projection_hash=None)
    stay = cache.projection_hash is not None and cache.projection_hash == projections.kept
    embedding = {
        name: cache.embedding[name]
        if stay and name in cache.embedding
        else project(raw, projections.each[name]) * cache.present[name][:, None]
        for name, raw in cache.raw.items()
        if name in projections.each
    }
    digest = hash_projections(dict(projections.each))
    return replace(cache, embedding=embedding, projection_hash=digest)


def _report_split(config: ImportConfig, cache: FeatureCache, matched: _Matched) -> SplitImport:
    return SplitImport(
        split=cache.split,
        rows=len(cache),
        imported=int(cache.present[config.modality].sum()),
        not_matched=matched.not_matched,
        failures=tuple(
            each
            for each in cache.failures
            if each.modality == config.modality and each.stage == _STAGE
        ),
    )
