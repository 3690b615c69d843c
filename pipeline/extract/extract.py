"""The extraction stage: annotations and clips in, `features/<split>.h5` out.

    read CSVs -> find clips -> choose encoders (the recipe) -> lock -> shards through Ray
    -> one file per split -> PCA on train -> 128-d embeddings in every split

Each finished shard is a file of its own under `features/.work/<split>/`, so after a kill the next
run resumes and ends with the same file.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.cache.embeddings import complete_embeddings
from pipeline.cache.format import read_cache
from pipeline.corpus.annotations import hash_rows, read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.corpus.texts import with_surroundings
from pipeline.encoders.choice import (
    EncoderRequest,
    choose_encoder,
)
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.find import name_of_owner
from pipeline.encoders.registry import find_entry
from pipeline.encoders.saved import SavedEncoders, read_encoders
from pipeline.encoders.weights import count_layers
from pipeline.errors import StorageError, UsageError
from pipeline.extract.resume import begin_split, find_progress
from pipeline.extract.shards import SplitWork, merge, missing_tasks, update, write_shard
from pipeline.parallel.work import Cluster
from pipeline.recipe import ChannelPolicy, DecodeConfig, FeatureRecipe, Precision, TestClips
from pipeline.schema import (
    MEDIA,
    MODALITIES,
    ClipFailure,
    LocatedClip,
    Modality,
    Split,
    Utterance,
)
from pipeline.system import locks
from pipeline.system.device import has_gpu, native_precision
from pipeline.system.resources import num_cores

log = logging.getLogger(__name__)

# A shard is what a kill can cost: a few seconds of work with media, about one with text alone.
ROWS_PER_SHARD = 16
TEXT_ROWS_PER_SHARD = 256

# The decode settings that one modality alone reads.
_ONLY_FOR: Mapping[str, Modality] = {"num_frames": "video", "channel": "audio"}

OnProgress = Callable[[int, int, int], None]  # rows done, rows in all, failures so far


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What to extract and where.

    data: folder with the CSVs and the split folders
    features: folder of the feature caches
    splits: None takes every split that has a CSV
    modalities: modalities to extract; None takes all, or those of `encoders.run`
    num_frames: number of frames of a clip that the video encoder sees, spread evenly over the
        utterance; None takes 16, or the number of `encoders.run`
    channel: channel of surround sound that the audio encoder gets: "front_centre" carries the
        dialogue, "downmix" is the mean of all; None takes front_centre, or that of `encoders.run`
    max_duration_s: longest part of a clip that is read, in seconds from its start; None takes 30,
        or the length of `encoders.run`
    test_clips: 132 of MELD's test clips exist twice: "fixed" reads the corrected cuts, "legacy" the
        plain names; None takes fixed, or the choice of `encoders.run`
    device: "auto" uses a GPU if there is one: on this machine, or with `address` on the cluster
    precision: "auto" uses bfloat16 if the hardware supports it: this machine's, or with `address`
        the cluster's
    workers: number of CPU cores; None takes all that this process may use. Not allowed with
        `address`
    address: existing Ray cluster, "auto" or "host:port"; None starts Ray on this machine
    rows_per_shard: number of utterances that are written together, and so are lost by a kill at
        most; None takes 16, or 256 where text alone is extracted
    overwrite: extract every row again and replace the caches
    """

    data: Path = Path("data")
    features: Path = Path("features")
    splits: tuple[Split, ...] | None = None
    modalities: tuple[Modality, ...] | None = None
    encoders: EncoderRequest = field(default_factory=EncoderRequest)
    num_frames: int | None = None
    channel: ChannelPolicy | None = None
    max_duration_s: float | None = None
    test_clips: TestClips | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: int | None = None
    address: str | None = None
    rows_per_shard: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.modalities == ():
            raise UsageError("--modalities: at least one of text, video, audio")
        if self.rows_per_shard is not None and self.rows_per_shard < 1:
            raise UsageError("rows_per_shard must be at least 1")
        if self.workers is not None and self.address is not None:
            raise UsageError(
                f"--workers {self.workers}: these are cores of this machine, but with --address "
                f"{self.address} the work runs on the cluster; leave one of the two out"
            )


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """The result of one split. `rows_resumed` were extracted by earlier runs."""

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
            "recipe": self.recipe.to_dict(),
            "random_weights": list(self.recipe.random_modalities),
            "splits": [split.to_dict() for split in self.splits],
            "seconds": self.seconds,
            "explained_variance": self.explained_variance,
        }


@dataclass(frozen=True, kw_only=True)
class ExtractPlan:
    """What an extraction would do (`--dry-run`). rows_stale: rows of a cache whose clips changed
    since."""

    recipe: FeatureRecipe
    device: str
    rows: dict[Split, int]
    rows_done: dict[Split, int]
    rows_stale: dict[Split, int]
    clips_missing: dict[Split, int]

    def to_dict(self) -> dict[str, Any]:
        return {
            "fingerprint": self.recipe.fingerprint,
            "recipe": self.recipe.to_dict(),
            "device": self.device,
            "rows": self.rows,
            "rows_done": self.rows_done,
            "rows_stale": self.rows_stale,
            "clips_missing": self.clips_missing,
        }


def extract(config: ExtractConfig, on_progress: OnProgress = lambda *_: None) -> ExtractReport:
    """Runs the stage; rows that earlier runs finished are kept.

    Raises:
        InputError: annotations or folder, or no clip of a cache is here; nothing was decoded.
        RecipeMismatch: there is a cache or an unfinished run with another recipe.
        WeightsMissing: pretrained weights are missing.
        CacheBusy: another run writes one of these caches.
        StorageError: the disk.
    """
    started_s = time.monotonic()
    job = _prepare(config)
    with ExitStack() as held:
        for work in job.works:
            held.enter_context(locks.hold_split(config.features, work.split))
        found = [find_progress(work, job.recipe, config.overwrite) for work in job.works]
        job = replace(job, works=tuple(begin_split(progress) for progress in found))
        resumed = {work.split: work.rows_done() for work in job.works}
        for work in job.works:
            rows, done = len(work.utterances), resumed[work.split]
            log.info("%s: %d rows, %d of them extracted before", work.path, rows, done)
        for work in job.works:
            if work.is_outdated:  # before hours of work that may be killed
                update(work)
        _encode_missing(job, on_progress)
        for work in job.works:
            if not work.is_finished:
                merge(work)
        variance = complete_embeddings(config.features, job.recipe, {w.split for w in job.works})
        reports = tuple(_report(work, resumed[work.split]) for work in job.works)
    # Once more without our locks: a run beside this one that ended while we held them has left
    # our splits to us, and we may have left its splits to it.
    variance = complete_embeddings(config.features, job.recipe, ()) or variance
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
    job = _prepare(config, check_files=False)
    works = [find_progress(work, job.recipe, config.overwrite).work for work in job.works]
    return ExtractPlan(
        recipe=job.recipe,
        device=job.cluster.device,
        rows={work.split: len(work.utterances) for work in works},
        rows_done={work.split: work.rows_done() for work in works},
        rows_stale={work.split: len(work.rows or ()) for work in works},
        clips_missing={
            work.split: sum(clip.path is None for clip in work.clips) if job.recipe.decode else 0
            for work in works
        },
    )


# --------------------------------------------------------------------------------- preparing


@dataclass(frozen=True, kw_only=True)
class _Job:
    recipe: FeatureRecipe
    choices: tuple[EncoderChoice, ...]
    cluster: Cluster
    works: tuple[SplitWork, ...]


def _prepare(config: ExtractConfig, *, check_files: bool = True) -> _Job:
    """Resolves the configuration and checks all input before any decoding.

    check_files: False leaves the weights of a fine-tuned run unread
    """
    corpus = read_corpus(config.data, config.splits)
    run = config.encoders.run
    saved = None if run is None else read_encoders(run)
    modalities, decode = _what_to_encode(config, saved)
    device, precision = _choose_hardware(config, any_precision=saved is not None)
    choices = tuple(
        choose_encoder(modality, config.encoders, precision, check_files=check_files)
        for modality in modalities
    )
    recipe = FeatureRecipe(encoders=tuple(choice.spec for choice in choices), decode=decode)
    corpus = {split: with_surroundings(rows, recipe.encoders) for split, rows in corpus.items()}
    owner = None if run is None else name_of_owner(run, config.features)
    default_rows = ROWS_PER_SHARD if recipe.decode else TEXT_ROWS_PER_SHARD
    works = tuple(
        SplitWork(
            split=split,
            utterances=utterances,
            clips=_locate(config, split, utterances, recipe),
            rows_hash=hash_rows(utterances),
            path=config.features / f"{split}.h5",
            rows_per_shard=config.rows_per_shard or default_rows,
            encoders_run=owner,
            data=config.data,
        )
        for split, utterances in corpus.items()
    )
    workers = config.workers if config.workers is not None else num_cores()
    cluster = Cluster(device=device, workers=workers, address=config.address)
    for spec, path in ((choice.spec, choice.path) for choice in choices):
        where = "" if path is None else f" from {path}"
        log.info("%s: %s, weights %s%s", spec.modality, spec.name, spec.weights, where)
    log.info("on %s, recipe %s", device, recipe.fingerprint[:12])
    return _Job(recipe=recipe, choices=choices, cluster=cluster, works=works)


def _choose_hardware(
    config: ExtractConfig, *, any_precision: bool
) -> tuple[Literal["cpu", "cuda"], Precision]:
    """Of the machine that the encoders will run on.

    any_precision: the encoders have one of their own
    """
    device = config.device
    precision = "float32" if any_precision else config.precision
    if config.address is not None and "auto" in (device, precision):
        from pipeline.parallel.cluster import look_at_cluster  # Ray

        return look_at_cluster(config.address, device, precision)
    if device == "auto":
        device = "cuda" if has_gpu() else "cpu"
    elif device == "cuda" and config.address is None and not has_gpu():
        raise UsageError("--device cuda: PyTorch finds no GPU here; use --device cpu or auto")
    return device, native_precision(device) if precision == "auto" else precision


def _what_to_encode(
    config: ExtractConfig, saved: SavedEncoders | None
) -> tuple[tuple[Modality, ...], DecodeConfig | None]:
    """The modalities and decode settings; those of a fine-tuned run are its own."""
    there = MODALITIES if saved is None else saved.recipe.modalities
    wanted = config.modalities or there
    modalities = tuple(name for name in MODALITIES if name in wanted)
    _refuse_what_changes_nothing(config, modalities)
    if saved is not None:
        _refuse_what_contradicts(config, saved, modalities)
    if not set(modalities) & set(MEDIA):
        return modalities, None
    return modalities, (
        _decode_config(config, modalities) if saved is None else saved.recipe.decode
    )


def _given_decode(config: ExtractConfig) -> dict[str, Any]:
    names = ("num_frames", "channel", "max_duration_s", "test_clips")
    given = {name: getattr(config, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _refuse_what_changes_nothing(config: ExtractConfig, modalities: Sequence[Modality]) -> None:
    """Raises UsageError for a setting of what is not extracted."""
    for modality in MODALITIES:
        for name, value in config.encoders.given(modality).items():
            if modality not in modalities:
                raise UsageError(
                    f"encoders.{name} = {value}: {modality} is not extracted; leave it out, or "
                    "name other --modalities"
                )
    wishes = [(modality, config.encoders.wish(modality).name) for modality in modalities]
    takes_any = any(find_entry(modality, name).autocast for modality, name in wishes)
    if config.precision == "bfloat16" and config.encoders.run is None and not takes_any:
        raise UsageError(
            f"precision = bfloat16: {', '.join(name for _, name in wishes)} computes in float32 "
            "alone; leave it out, or name other --modalities"
        )
    weights_dir = config.encoders.weights_dir
    searches = (
        find_entry(modality, name).searches(config.encoders.wish(modality))
        for modality, name in wishes
    )
    if weights_dir is not None and config.encoders.run is None and not any(searches):
        raise UsageError(
            f"weights_dir = {weights_dir}: no weights are searched for; the encoders "
            f"{', '.join(name for _, name in wishes)} need none from there; leave it out"
        )
    for name, value in _given_decode(config).items():
        reader = _ONLY_FOR.get(name)
        if reader is not None and reader not in modalities:
            raise UsageError(
                f"{name} = {value}: only the {reader} encoder reads it, and {reader} is not "
                "extracted; leave it out, or name other --modalities"
            )
        if not set(modalities) & set(MEDIA):
            raise UsageError(
                f"{name} = {value}: text alone is extracted, and no clip is read; leave it out, or "
                "name other --modalities"
            )


def _refuse_what_contradicts(
    config: ExtractConfig, saved: SavedEncoders, modalities: Sequence[Modality]
) -> None:
    """Raises UsageError for a setting that is another than that of the fine-tuned run."""
    run = config.encoders.run
    if config.encoders.weights_dir is not None:
        raise UsageError(
            f"weights_dir = {config.encoders.weights_dir}: the encoders of {run} bring their own "
            "weights; leave it out"
        )
    pairs: list[tuple[str, Any, Any]] = []  # setting, what was asked for, what the run says
    for modality in modalities:
        spec = saved.spec(modality)
        layers = f"{modality}_layers"
        its = {
            modality: spec.name,
            f"{modality}_weights": spec.weights,
            layers: spec.layers,
            "context": spec.asked_context,
            "future": spec.dialogue == "whole",
        }
        asked = config.encoders.given(modality)
        if asked.get(layers) == ():
            asked[layers] = tuple(range(count_layers(saved.path(modality))))
        pairs += [(f"encoders.{name}", value, its[name]) for name, value in asked.items()]
        if find_entry(modality, spec.name).autocast and config.precision != "auto":
            pairs.append(("precision", config.precision, spec.precision))
    decode = saved.recipe.decode
    pairs += [(name, value, getattr(decode, name)) for name, value in _given_decode(config).items()]
    for name, value, there in pairs:
        if value != there:
            raise UsageError(
                f"{name} = {value}: the encoders of {run} were fine-tuned with {there}; leave it "
                "out, or choose encoders without --encoders"
            )


def _decode_config(config: ExtractConfig, modalities: Sequence[Modality]) -> DecodeConfig:
    """Raises UsageError."""
    frames: dict[str, Any] = {}
    for modality in modalities:
        name = config.encoders.wish(modality).name
        wants = find_entry(modality, name).frames
        if wants is not None:
            view, *more = wants(name)
            frames = {
                "frame_height": view.height,
                "frame_width": view.width,
                "frame_fit": view.fit,
                "more_views": tuple(more),
            }
    try:
        return DecodeConfig(**frames, **_given_decode(config))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _locate(
    config: ExtractConfig, split: Split, utterances: list[Utterance], recipe: FeatureRecipe
) -> list[LocatedClip]:
    if recipe.decode is None:
        return [LocatedClip(utterance=utterance) for utterance in utterances]
    return locate_clips(config.data, split, utterances, recipe.decode.test_clips)


# ----------------------------------------------------------------------------------- working


def _encode_missing(job: _Job, on_progress: OnProgress) -> None:
    works = {work.split: work for work in job.works}
    total = sum(len(work.utterances) for work in job.works)
    done = sum(work.rows_done() for work in job.works)
    num_failures = 0
    on_progress(done, total, num_failures)
    tasks = [task for work in job.works for task in missing_tasks(work)]
    if not tasks:
        return
    from pipeline.parallel.engine import (
        encode_shards,  # Ray: a second that checking alone need not wait
    )

    for shard in encode_shards(tasks, job.choices, job.recipe.decode, job.cluster):
        write_shard(works[shard.split], shard, job.recipe)
        done += len(shard.features)
        num_failures += sum(len(clip.failures) for clip in shard.features)
        on_progress(done, total, num_failures)


# --------------------------------------------------------------------------------- reporting


def _report(work: SplitWork, rows_resumed: int) -> SplitReport:
    cache = read_cache(work.path, want=())
    return SplitReport(
        split=work.split,
        path=work.path,
        rows=len(cache),
        rows_resumed=rows_resumed,
        present={name: int(present.sum()) for name, present in cache.present.items()},
        failures=cache.failures,
    )
