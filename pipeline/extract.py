"""The extraction stage: annotations and clips in, `features/<split>.h5` out.

    read CSVs -> find clips -> choose encoders (the recipe) -> lock -> shards through Ray
    -> one file per split -> PCA on train -> 128-d embeddings in every split

Each finished shard is a file of its own under `features/.work/<split>/`, so whatever kills a
run, the next one takes up where it stopped and ends with the same file.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import locks
from pipeline.annotations import read_corpus
from pipeline.cache import FeatureCache, concatenate, read_cache, read_header, write_cache
from pipeline.clips import locate_clips
from pipeline.encoders.choice import (
    EncoderChoice,
    EncoderRequest,
    choose_encoder,
    native_precision,
)
from pipeline.encoders.weights import frame_size
from pipeline.errors import CacheBusy, CacheCorrupt, RecipeMismatch, StorageError, UsageError
from pipeline.parallel import Cluster, ShardFeatures, ShardTask, encode_shards
from pipeline.projection import (
    fit_projections,
    hash_projections,
    project,
    read_projections,
    write_projections,
)
from pipeline.recipe import ChannelPolicy, DecodeConfig, FeatureRecipe, Precision
from pipeline.schema import (
    MODALITIES,
    SPLITS,
    ClipFailure,
    LocatedClip,
    Modality,
    Split,
    Utterance,
)

logger = logging.getLogger(__name__)

# A shard is what a kill can cost: a few seconds of work with media, about one with text alone.
ROWS_PER_SHARD = 16
TEXT_ROWS_PER_SHARD = 256

OnProgress = Callable[[int, int, int], None]  # rows done, rows in all, accidents so far


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What to extract and where. Every default is written here and nowhere else.

    splits: None takes every split that has a CSV.
    device, precision: "auto" takes a GPU, and bfloat16, where the machine has them.
    workers: CPU cores; None takes all that this process may use.
    """

    data: Path = Path("data")
    features: Path = Path("features")
    splits: tuple[Split, ...] | None = None
    modalities: tuple[Modality, ...] = MODALITIES
    encoders: EncoderRequest = field(default_factory=EncoderRequest)
    num_frames: int = 16
    channel: ChannelPolicy = "front_centre"
    max_duration_s: float = 30.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: int | None = None
    address: str | None = None
    rows_per_shard: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not self.modalities:
            raise UsageError("--modalities: at least one of text, video, audio")
        if self.rows_per_shard is not None and self.rows_per_shard < 1:
            raise UsageError("rows_per_shard must be at least 1")


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What became of one split. `rows_resumed` were there before this run began."""

    split: Split
    path: Path
    rows: int
    rows_resumed: int
    present: dict[Modality, int]
    failures: tuple[ClipFailure, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "path": str(self.path),
            "rows": self.rows,
            "rows_resumed": self.rows_resumed,
            "present": self.present,
            "failures": [
                {
                    "clip": str(failure.key),
                    "modality": failure.modality,
                    "stage": failure.stage,
                    "code": failure.code,
                    "message": failure.message,
                    "lost": failure.lost,
                }
                for failure in self.failures
            ],
        }


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """The result of a run. `explained_variance` is None until train was extracted."""

    recipe: FeatureRecipe
    splits: tuple[SplitReport, ...]
    seconds: float
    explained_variance: dict[Modality, float] | None

    @property
    def num_failures(self) -> int:
        return sum(len(split.failures) for split in self.splits)

    def to_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self.recipe.fingerprint,
            "recipe": json.loads(self.recipe.to_json()),
            "random_weights": list(self.recipe.random_modalities),
            "splits": [split.to_dict() for split in self.splits],
            "seconds": self.seconds,
            "explained_variance": self.explained_variance,
        }


@dataclass(frozen=True, kw_only=True)
class ExtractPlan:
    """What a run would do (`--dry-run`)."""

    recipe: FeatureRecipe
    device: str
    rows: dict[Split, int]
    rows_done: dict[Split, int]
    clips_missing: dict[Split, int]


def extract(config: ExtractConfig, on_progress: OnProgress = lambda *_: None) -> ExtractReport:
    """Runs the stage; what earlier runs finished is kept.

    Raises:
        InputError: annotations or folder; nothing was decoded.
        RecipeMismatch: a cache or an unfinished run made in another way is in the place.
        WeightsMissing: pretrained weights that are not to be had.
        CacheBusy: another run writes one of these caches.
        StorageError: the disk.
    """
    started_s = time.monotonic()
    job = _prepare(config)
    with ExitStack() as held:
        for work in job.works:
            held.enter_context(locks.hold(work.lock_path, f"the {work.split} cache"))
        for work in job.works:
            _clean_up_after_a_kill(work)
            _check_existing(work, job.recipe, config.overwrite)
        resumed = {work.split: work.rows_done() for work in job.works}
        _encode_missing(job, config, on_progress)
        for work in job.works:
            if not work.is_finished:
                _merge(work, config)
        variance = _complete_embeddings(config.features, job.recipe, {w.split for w in job.works})
        reports = tuple(_report(work, resumed[work.split]) for work in job.works)
    return ExtractReport(
        recipe=job.recipe,
        splits=reports,
        seconds=time.monotonic() - started_s,
        explained_variance=variance,
    )


def plan(config: ExtractConfig) -> ExtractPlan:
    """What `extract` would do; raises what it would raise before any work."""
    if config.features.exists() and not config.features.is_dir():
        raise StorageError(f"{config.features}: not a folder; --features takes one")
    job = _prepare(config)
    for work in job.works:
        _check_existing(work, job.recipe, config.overwrite, dry=True)
    return ExtractPlan(
        recipe=job.recipe,
        device=job.cluster.device,
        rows={work.split: len(work.utterances) for work in job.works},
        rows_done={work.split: work.rows_done() for work in job.works},
        clips_missing={
            work.split: sum(clip.path is None for clip in work.clips) if job.recipe.decode else 0
            for work in job.works
        },
    )


# --------------------------------------------------------------------------------- preparing


@dataclass(kw_only=True)
class _SplitWork:
    """One split on its way. The only mutable thing here is how far it has come."""

    split: Split
    utterances: list[Utterance]
    clips: list[LocatedClip]
    rows_hash: str
    path: Path
    rows_per_shard: int
    is_finished: bool = False
    done: set[int] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        return self.path.parent / ".work" / self.split

    @property
    def lock_path(self) -> Path:
        return self.path.parent / ".work" / f"{self.split}.lock"

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


@dataclass(frozen=True, kw_only=True)
class _Job:
    recipe: FeatureRecipe
    choices: tuple[EncoderChoice, ...]
    cluster: Cluster
    works: tuple[_SplitWork, ...]


def _prepare(config: ExtractConfig) -> _Job:
    """Everything that can be wrong with the input is found here, before any decoding."""
    corpus = read_corpus(config.data, config.splits)
    device = _choose_device(config)
    precision: Precision = (
        config.precision if config.precision != "auto" else native_precision(device)
    )
    choices = tuple(
        choose_encoder(modality, config.encoders, precision)
        for modality in MODALITIES
        if modality in config.modalities
    )
    recipe = FeatureRecipe(
        encoders=tuple(choice.spec for choice in choices), decode=_decode_config(config)
    )
    default_rows = ROWS_PER_SHARD if recipe.decode else TEXT_ROWS_PER_SHARD
    works = tuple(
        _SplitWork(
            split=split,
            utterances=utterances,
            clips=_locate(config, split, utterances, recipe),
            rows_hash=_hash_rows(utterances),
            path=config.features / f"{split}.h5",
            rows_per_shard=config.rows_per_shard or default_rows,
        )
        for split, utterances in corpus.items()
    )
    workers = config.workers if config.workers is not None else _num_cores()
    cluster = Cluster(device=device, workers=workers, address=config.address)
    return _Job(recipe=recipe, choices=choices, cluster=cluster, works=works)


def _choose_device(config: ExtractConfig) -> Literal["cpu", "cuda"]:
    if config.device == "cpu" or (config.device == "cuda" and config.address):
        return config.device
    import torch  # slow to import

    if torch.cuda.is_available():
        return "cuda"
    if config.device == "cuda":
        raise UsageError("--device cuda: PyTorch finds no GPU here; use --device cpu or auto")
    return "cpu"


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _decode_config(config: ExtractConfig) -> DecodeConfig | None:
    if set(config.modalities) == {"text"}:
        return None
    height, width = frame_size(config.encoders.video)
    try:
        return DecodeConfig(
            num_frames=config.num_frames,
            frame_height=height,
            frame_width=width,
            channel=config.channel,
            max_duration_s=config.max_duration_s,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def _locate(
    config: ExtractConfig, split: Split, utterances: list[Utterance], recipe: FeatureRecipe
) -> list[LocatedClip]:
    if recipe.decode is None:
        return [LocatedClip(utterance=utterance) for utterance in utterances]
    return locate_clips(config.data, split, utterances)


def _hash_rows(utterances: Sequence[Utterance]) -> str:
    """Ties a cache to its annotations: another transcript or label is another cache."""
    digest = hashlib.sha256()
    for row in utterances:
        values = [*row.key, row.text, row.speaker, row.emotion, row.sentiment]
        digest.update(json.dumps(values).encode())
    return digest.hexdigest()


# ------------------------------------------------------------------------------ what is there


def _clean_up_after_a_kill(work: _SplitWork) -> None:
    for folder in (work.path.parent, work.folder):
        for leftover in folder.glob(".*.tmp"):
            if folder == work.folder or leftover.name.startswith(f".{work.path.name}."):
                leftover.unlink()


def _check_existing(
    work: _SplitWork, recipe: FeatureRecipe, overwrite: bool, *, dry: bool = False
) -> None:
    """Finds out what of this split is done; refuses what was made in another way."""
    if work.path.is_file() and not overwrite:
        header = read_header(work.path)
        _refuse_other(str(work.path), work, header.recipe, header.rows_hash, recipe)
        work.is_finished = True
        return
    unfinished = _read_plan(work)
    # A new --overwrite starts afresh; one that was killed goes on, with the option or without.
    if unfinished is not None and (unfinished["overwrite"] or not overwrite):
        if not overwrite:
            name = f"the unfinished extraction in {work.folder}"
            theirs = FeatureRecipe.from_json(unfinished["recipe"])
            _refuse_other(name, work, theirs, unfinished["rows_hash"], recipe)
        if unfinished["recipe"] == recipe.to_json() and unfinished["rows_hash"] == work.rows_hash:
            work.rows_per_shard = unfinished["rows_per_shard"]
            work.done = _finished_shards(work, dry=dry)
            return
    if not dry:
        _start_afresh(work, recipe, overwrite)


def _refuse_other(
    name: str, work: _SplitWork, theirs: FeatureRecipe, rows_hash: str, recipe: FeatureRecipe
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


def _read_plan(work: _SplitWork) -> dict[str, Any] | None:
    path = work.folder / "plan.json"
    if not path.is_file():
        return None
    try:
        plan = json.loads(path.read_text())
        FeatureRecipe.from_json(plan["recipe"])
        if plan["rows_per_shard"] < 1 or not isinstance(plan["overwrite"], bool):
            raise ValueError("its settings make no sense")
        str(plan["rows_hash"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheCorrupt(f"{path}: cannot be read ({error}); delete {work.folder}") from error
    return plan


def _start_afresh(work: _SplitWork, recipe: FeatureRecipe, overwrite: bool) -> None:
    plan = {
        "recipe": recipe.to_json(),
        "rows_hash": work.rows_hash,
        "rows_per_shard": work.rows_per_shard,
        "overwrite": overwrite,
    }
    try:
        shutil.rmtree(work.folder, ignore_errors=True)
        work.folder.mkdir(parents=True)
        temporary = work.folder / ".plan.tmp"
        temporary.write_text(json.dumps(plan, indent=1))
        temporary.replace(work.folder / "plan.json")
    except OSError as error:
        raise StorageError(f"{work.folder}: cannot be written: {error.strerror}") from error


def _finished_shards(work: _SplitWork, *, dry: bool) -> set[int]:
    done = set()
    for index in range(work.num_shards):
        path = work.shard_path(index)
        if not path.is_file():
            continue
        try:
            read_cache(path)
            done.add(index)
        except CacheCorrupt as error:
            logger.warning("%s; extracting these rows again", error)
            if not dry:
                path.unlink()
    return done


# ----------------------------------------------------------------------------------- working


def _encode_missing(job: _Job, config: ExtractConfig, on_progress: OnProgress) -> None:
    works = {work.split: work for work in job.works}
    total = sum(len(work.utterances) for work in job.works)
    done = sum(work.rows_done() for work in job.works)
    accidents = 0
    on_progress(done, total, accidents)
    tasks = [task for work in job.works for task in _missing_tasks(work)]
    if not tasks:
        return
    for shard in encode_shards(tasks, job.choices, job.recipe.decode, job.cluster):
        work = works[shard.split]
        write_cache(work.shard_path(shard.index), _shard_cache(shard, work, job.recipe))
        work.done.add(shard.index)
        done += len(shard.features)
        accidents += sum(len(clip.failures) for clip in shard.features)
        on_progress(done, total, accidents)


def _missing_tasks(work: _SplitWork) -> Iterator[ShardTask]:
    if work.is_finished:
        return
    for index in range(work.num_shards):
        if index not in work.done:
            clips = tuple(work.clips[work.rows_of(index)])
            yield ShardTask(split=work.split, index=index, clips=clips)


def _shard_cache(shard: ShardFeatures, work: _SplitWork, recipe: FeatureRecipe) -> FeatureCache:
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
    )


def _stack_raw(
    shard: ShardFeatures, recipe: FeatureRecipe
) -> dict[Modality, np.ndarray[Any, np.dtype[np.float32]]]:
    """float32 [rows, layers, dim] per modality that any row has; absent rows hold zeros."""
    stacked = {}
    for modality in recipe.modalities:
        shape = next((c.raw[modality].shape for c in shard.features if modality in c.raw), None)
        if shape is not None:
            empty = np.zeros(shape, np.float32)
            stacked[modality] = np.stack([clip.raw.get(modality, empty) for clip in shard.features])
    return stacked


def _merge(work: _SplitWork, config: ExtractConfig) -> None:
    """Shards to one file. A kill in here costs nothing: the shards go last."""
    shards = [read_cache(work.shard_path(index)) for index in range(work.num_shards)]
    if work.split == "train":  # whatever was fitted on an earlier train file is stale now
        _projection_path(config.features).unlink(missing_ok=True)
    write_cache(work.path, concatenate(shards))
    shutil.rmtree(work.folder, ignore_errors=True)
    work.is_finished = True


# -------------------------------------------------------------------------------- embeddings


def _projection_path(features: Path) -> Path:
    return features / "projection.h5"


def _complete_embeddings(
    features: Path, recipe: FeatureRecipe, locked: set[Split]
) -> dict[Modality, float] | None:
    """Fits the projection once train is there and brings every split of this recipe up to it.

    Returns the share of variance kept per modality; None while train is missing.
    """
    if not _is_there(features / "train.h5", recipe):
        return None
    path = _projection_path(features)
    projections = read_projections(path, recipe)
    if projections is None:
        with ExitStack() as held:
            if "train" not in locked and not _try_lock(held, features, "train"):
                return None  # train is being written anew: its run fits, and completes the others
            projections = fit_projections(read_cache(features / "train.h5", want=("raw",)))
            write_projections(path, projections, recipe)
    wanted_hash = hash_projections(projections)
    for split in SPLITS:
        cache_path = features / f"{split}.h5"
        if _is_there(cache_path, recipe) and read_header(cache_path).projection_hash != wanted_hash:
            with ExitStack() as held:
                if split not in locked and not _try_lock(held, features, split):
                    continue  # whoever holds it finds the projection when it finishes
                cache = read_cache(cache_path, want=("raw",))
                embedding = {
                    modality: project(raw, projections[modality]) * cache.present[modality][:, None]
                    for modality, raw in cache.raw.items()
                    if modality in projections
                }
                completed = replace(cache, embedding=embedding, projection_hash=wanted_hash)
                write_cache(cache_path, completed)
    return {name: float(p.explained_variance.sum()) for name, p in projections.items()}


def _is_there(path: Path, recipe: FeatureRecipe) -> bool:
    return path.is_file() and read_header(path).recipe == recipe


def _try_lock(held: ExitStack, features: Path, split: Split) -> bool:
    try:
        held.enter_context(locks.hold(features / ".work" / f"{split}.lock", f"the {split} cache"))
    except CacheBusy:
        return False
    return True


# --------------------------------------------------------------------------------- reporting


def _report(work: _SplitWork, rows_resumed: int) -> SplitReport:
    cache = read_cache(work.path, want=())
    return SplitReport(
        split=work.split,
        path=work.path,
        rows=len(cache),
        rows_resumed=rows_resumed,
        present={name: int(present.sum()) for name, present in cache.present.items()},
        failures=cache.failures,
    )


def count_failures(failures: Sequence[ClipFailure]) -> dict[str, int]:
    """Accidents by "modality stage code", most frequent first."""
    counts = Counter(f"{f.modality} {f.stage} {f.code}" for f in failures)
    return dict(counts.most_common())
