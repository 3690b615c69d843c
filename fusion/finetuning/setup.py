"""Opens and checks what fine-tuning starts from: run, cache, weights, clips; and builds the model,
which is compared with the cache before training."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

import torch

from fusion.data.load import load_split
from fusion.data.set_aside import SetAside
from fusion.data.split import FusionData, check_recipe
from fusion.finetuning.clips import ClipDataset, ClipReader, Collate, SomeClips
from fusion.finetuning.endtoend import EndToEnd, LearningRates
from fusion.finetuning.job import FinetuneJob
from fusion.finetuning.loop import TuneConfig
from fusion.inference.checkpoint import Checkpoint, read_checkpoint
from fusion.inference.encoders import find_encoders_of
from fusion.labels import Head
from fusion.model.fusion import FusionModel
from fusion.training.config import check_modality_dropout
from fusion.training.distil import SoftTargets, soft_targets
from fusion.training.parts import check_choosable, find_untrained
from fusion.training.warm_start import refuse_ensemble
from pipeline.cache.format import read_cache, read_header
from pipeline.corpus.annotations import hash_rows, read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.corpus.texts import with_surroundings
from pipeline.encode import Encoders
from pipeline.encoders.augment import CONCERNS, AugmentConfig
from pipeline.encoders.encoder import AnyPreparation, EncoderChoice, EncoderEntry
from pipeline.encoders.registry import find_entry, prepare_for
from pipeline.errors import ParityError, RecipeMismatch, UsageError
from pipeline.recipe import REVISION, EncoderSpec, FeatureRecipe, Precision
from pipeline.schema import MEDIA, MODALITIES, Modality, Split, Utterance

if TYPE_CHECKING:
    from pipeline.store.store import DecodedStore


@dataclass(frozen=True)
class Watch:
    """Progress callbacks. on_decoded: clips done, clips in all, failures."""

    say: Callable[[str], None] = lambda line: None
    on_decoded: Callable[[int, int, int], None] = lambda *_: None


# Largest difference of any logit that rounding explains, measured (LOG.md). In bfloat16 two ways
# of batching alone give features that differ in the third digit.
TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.25}
_PARITY_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class LiveData:
    """recipe: of features that these encoders give, in the precision of training

    soft: a teacher's probabilities for the rows of train; None without a teacher
    untrained: heads without labels here and in the start; their labels are removed from dev
    """

    job: FinetuneJob
    start: Checkpoint
    unfrozen: tuple[Modality, ...]
    choices: tuple[EncoderChoice, ...]
    recipe: FeatureRecipe
    train: ClipDataset
    dev: ClipDataset
    untrained: tuple[Head, ...]
    soft: SoftTargets | None = None


def open_live(job: FinetuneJob, watch: Watch | None = None) -> LiveData:
    """Opens and checks everything that is needed; decodes the clips that are not in the store yet.

    Raises UsageError, InputError, StorageError, RecipeMismatch or WeightsMissing.
    """
    start = read_checkpoint(job.run)
    unfrozen = check_wishes(job, start)
    if start.recipe.revision != REVISION:
        raise RecipeMismatch(
            f"{job.run} was trained on features of revision {start.recipe.revision}, this "
            f"program makes revision {REVISION}; extract and train again"
        )
    choices = find_encoders_of(job.run, start, weights_dir=job.weights_dir, encoders=job.encoders)
    recipe = FeatureRecipe(
        encoders=tuple(_retuned(choice.spec, job, unfrozen) for choice in choices),
        # A run on the text of a cache that also has pictures needs no decoding.
        decode=start.recipe.decode if set(start.dims.names) & set(MEDIA) else None,
    )
    train, dev = _open_parts(job, start, unfrozen, watch or Watch())
    untrained = find_untrained(train.data, job.tune.loss, start)
    dev = replace(dev, data=dev.data.without_labels(untrained))
    check_choosable(dev.data, untrained)
    preparations = {
        choice.spec.modality: prepare_for(choice, start.recipe.decode)
        for choice in choices
        if choice.spec.modality in unfrozen
    }
    return LiveData(
        job=job,
        start=start,
        unfrozen=unfrozen,
        choices=choices,
        recipe=recipe,
        train=train.as_dataset(preparations, augment=job.tune.augment, seed=job.seed),
        dev=dev.as_dataset(preparations, augment=None, seed=job.seed),
        untrained=untrained,
        soft=None
        if job.distil is None
        else soft_targets(job.distil, train.data, job.tune.loss.teacher_temperature),
    )


def check_wishes(job: FinetuneJob, start: Checkpoint) -> tuple[Modality, ...]:
    """The modalities to unfreeze, in our order.

    Raises UsageError where `start` cannot be fine-tuned as asked.
    """
    names = start.dims.names
    refuse_ensemble(start.dims, f"--run {job.run}")
    if start.dims.input != "raw":
        raise UsageError(
            f"{job.run} was trained on 128-d embeddings; fine-tuning starts from a run on raw "
            "features: meld train-fusion --input raw"
        )
    if start.dims.model.context != "none":
        raise UsageError(
            f"{job.run} sees whole dialogues (--context dialogue), and fine-tuning takes clips "
            "one by one; start from a run without, on features of meld extract --context K"
        )
    if job.modalities is not None and set(job.modalities) != set(names):
        raise UsageError(
            f"--modalities {','.join(job.modalities)}: {job.run} was trained on "
            f"{','.join(names)}; leave the option out, or train such a run first"
        )
    strange = [name for name in job.unfreeze or () if name not in names]
    if strange:
        raise UsageError(f"--unfreeze {strange[0]}: {job.run} has only {', '.join(names)}")
    entries = {
        spec.modality: find_entry(spec.modality, spec.name)
        for spec in start.recipe.encoders
        if spec.modality in names
    }
    unfrozen = _choose_unfrozen(job, start, entries)
    learning = [entries[name] for name in unfrozen]
    check_modality_dropout(names, job.tune.modality_dropout, "tune.modality_dropout")
    if job.asked_precision == "bfloat16" and not any(entry.autocast for entry in learning):
        raise UsageError(
            f"--precision bfloat16: the encoders that learn ({','.join(unfrozen)}) compute in "
            "float32 alone; leave it out, or unfreeze another"
        )
    if not any(entry.is_layered for entry in learning):
        _refuse_settings_of_layers(job.tune, unfrozen)
    if job.tune.train_batchnorm and not any(entry.has_batchnorm for entry in learning):
        raise UsageError(
            f"tune.train_batchnorm: no encoder of {','.join(unfrozen)} has BatchNorm; unfreeze one "
            "that has (video)"
        )
    for name in MODALITIES:
        rate = getattr(job.tune.learning_rates, name)
        if name not in unfrozen and rate != getattr(LearningRates(), name):
            raise UsageError(
                f"tune.learning_rates.{name} = {rate}: no {name} encoder learns here; leave it out"
            )
    for setting, modality in CONCERNS.items():
        strength = getattr(job.tune.augment, setting)
        if modality not in unfrozen and strength != getattr(AugmentConfig(), setting):
            raise UsageError(
                f"tune.augment.{setting} = {strength}: no {modality} encoder learns here; leave it "
                "out"
            )
    aside = None if start.set_aside is None else start.set_aside.share
    if job.dev_share is not None and job.dev_share != aside:
        raise UsageError(
            f"--dev-share {job.dev_share}: {job.run} "
            + (f"set {aside} of train aside" if aside else "learned from all of train")
            + ", and the same dialogues must choose the epoch here; leave it out"
        )
    if job.address is not None and job.workers == 1 and not _needs_clips(start, unfrozen):
        raise UsageError(
            f"--address {job.address}: one worker trains here, and there is no clip to decode; ask "
            "for more --workers, or leave it out"
        )
    if job.store is not None and not _needs_clips(start, unfrozen):
        raise UsageError(
            f"store = {job.store}: {','.join(unfrozen)} alone learns, and no clip is decoded; "
            "leave it out"
        )
    return unfrozen


def _choose_unfrozen(
    job: FinetuneJob, start: Checkpoint, entries: Mapping[Modality, EncoderEntry]
) -> tuple[Modality, ...]:
    """What was asked for, or all that can learn, in our order.

    Raises UsageError where one was asked for that has no parameters, or none has any.
    """
    names = {spec.modality: spec.name for spec in start.recipe.encoders}
    fixed = [name for name in job.unfreeze or () if not entries[name].learns]
    if fixed:
        raise UsageError(
            f"--unfreeze {fixed[0]}: its encoder {names[fixed[0]]} has no parameters to train; "
            "leave it out"
        )
    wanted = job.unfreeze or [name for name, entry in entries.items() if entry.learns]
    if not wanted:
        told = ", ".join(names[name] for name in entries)
        raise UsageError(
            f"{job.run}: its encoders ({told}) have no parameters to train; meld train-fusion "
            "trains what is behind them"
        )
    return tuple(name for name in MODALITIES if name in wanted)


def _refuse_settings_of_layers(tune: TuneConfig, unfrozen: Sequence[Modality]) -> None:
    """Raises UsageError for what only an encoder of many layers heeds."""
    decay = tune.learning_rates.layer_decay
    for name, value, default in (
        ("gradient_checkpointing", tune.gradient_checkpointing, False),
        ("learning_rates.layer_decay", decay, LearningRates().layer_decay),
    ):
        if value != default:
            raise UsageError(
                f"tune.{name} = {value}: {','.join(unfrozen)} has no layers that it would change; "
                "leave it out, or let a transformer learn (text)"
            )


def _needs_clips(start: Checkpoint, unfrozen: tuple[Modality, ...]) -> bool:
    return start.recipe.decode is not None and bool(set(unfrozen) & set(MEDIA))


def _retuned(spec: EncoderSpec, job: FinetuneJob, unfrozen: tuple[Modality, ...]) -> EncoderSpec:
    if spec.modality not in unfrozen or not find_entry(spec.modality, spec.name).autocast:
        return spec
    return replace(spec, precision=job.hardware.precision)


@dataclass(frozen=True, kw_only=True)
class _Clips:
    """Rows with their annotations and, where media are read, their decoded clips."""

    data: FusionData
    utterances: Sequence[Utterance]
    store: ClipReader | None

    def part(self, set_aside: SetAside, split: Literal["train", "dev"]) -> "_Clips":
        """Of all of train; see `SetAside.part`."""
        rows = tuple(set_aside.rows(self.data, split).tolist())
        return _Clips(
            data=set_aside.part(self.data, split),
            utterances=[self.utterances[row] for row in rows],
            store=None if self.store is None else SomeClips(self.store, rows),
        )

    def as_dataset(
        self,
        preparations: Mapping[Modality, AnyPreparation],
        *,
        augment: AugmentConfig | None,
        seed: int,
    ) -> ClipDataset:
        """Raises RecipeMismatch where an encoder finds nothing in what the cache has."""
        clips = ClipDataset(
            self.data,
            self.utterances,
            preparations,
            store=self.store,
            augment=augment,
            seed=seed,
        )
        for modality, rows in clips.lost.items():
            raise RecipeMismatch(
                f"{self.data.keys[rows[0]]}: the cache has its {modality}, and its encoder finds "
                f"none here ({len(rows)} such rows); extract again with the libraries that are "
                "here now"
            )
        return clips


def _open_parts(
    job: FinetuneJob, start: Checkpoint, unfrozen: tuple[Modality, ...], watch: Watch
) -> tuple[_Clips, _Clips]:
    """What is learned from, and what chooses the epoch: as in the start."""
    train = _open_split("train", job, start, unfrozen, watch)
    if start.set_aside is None:
        return train, _open_split("dev", job, start, unfrozen, watch)
    return train.part(start.set_aside, "train"), train.part(start.set_aside, "dev")


def _open_split(
    split: Split,
    job: FinetuneJob,
    start: Checkpoint,
    unfrozen: tuple[Modality, ...],
    watch: Watch,
) -> _Clips:
    data = load_split(job.features, split, modalities=start.dims.names, input="raw")
    check_recipe(start.recipe, start.projection_hash, data)
    utterances = _read_rows(split, job, start)
    store = _open_store(split, utterances, job, start, unfrozen, watch)
    _check_presence(data, store, unfrozen, job)
    return _Clips(data=data, utterances=utterances, store=store)


def _read_rows(split: Split, job: FinetuneJob, start: Checkpoint) -> list[Utterance]:
    utterances = read_corpus(job.data, (split,))[split]
    path = job.features / f"{split}.h5"
    if hash_rows(utterances) != read_header(path).rows_hash:
        raise RecipeMismatch(
            f"{path} was made from other annotations than the {split} CSV in {job.data}; name "
            "the corpus it was made from with --data, or extract again"
        )
    _check_labels(path, utterances, job.data)
    return with_surroundings(utterances, start.recipe.encoders)


def _check_labels(path: Path, utterances: Sequence[Utterance], data: Path) -> None:
    cache = read_cache(path, modalities=(), want=())
    if cache.keys != tuple(row.key for row in utterances):
        raise RecipeMismatch(
            f"{path} holds other rows than the {cache.split} CSV in {data}, though it says that it "
            "was made from it; extract again with --overwrite"
        )
    for row, emotion, sentiment in zip(utterances, cache.emotion, cache.sentiment, strict=True):
        if (row.emotion or "", row.sentiment or "") != (emotion, sentiment):
            raise RecipeMismatch(
                f"{row.key}: {path} has another label than the CSV in {data}; correct the cache, "
                f"which encodes nothing: run the command that made it with --split {cache.split} "
                f"--data {quote(str(data))} --features {quote(str(path.parent))}"
            )


def _open_store(
    split: Split,
    utterances: list[Utterance],
    job: FinetuneJob,
    start: Checkpoint,
    unfrozen: tuple[Modality, ...],
    watch: Watch,
) -> "DecodedStore | None":
    if start.recipe.decode is None or not _needs_clips(start, unfrozen):
        return None
    # Both, whichever is unfrozen: the next wish must not decode everything once more.
    media = tuple(name for name in start.recipe.modalities if name in MEDIA)
    # Opens a decoder and Ray: only where clips are to be decoded.
    from pipeline.parallel.work import Cluster
    from pipeline.store.prepare import bytes_needed, prepare_store
    from pipeline.store.store import StoreConfig
    from pipeline.system.resources import num_cores

    config = StoreConfig(
        root=job.store or job.features / "decoded",
        decode=start.recipe.decode,
        modalities=media,
    )
    watch.say(
        f"decoded {split} clips are kept in {config.folder(split)}: "
        f"{bytes_needed(utterances, config) / 2**30:.2f} GiB where none is there yet"
    )
    return prepare_store(
        split,
        locate_clips(job.data, split, utterances, start.recipe.decode.test_clips),
        config,
        Cluster(workers=num_cores(), address=job.address),
        watch.on_decoded,
    )


def _check_presence(
    data: FusionData,
    store: "DecodedStore | None",
    unfrozen: tuple[Modality, ...],
    job: FinetuneJob,
) -> None:
    """What the cache has must be there raw as well: a moved file would be trained as silence."""
    for column, name in enumerate(data.modalities):
        if store is None or name not in MEDIA or name not in unfrozen:
            continue
        lost = data.present[:, column] & ~torch.from_numpy(store.present[name])
        if lost.any():
            first = data.keys[int(lost.nonzero()[0])]
            raise RecipeMismatch(
                f"{first}: the cache has its {name}, but the clip under {job.data} does not "
                f"give any ({int(lost.sum())} such clips); were files moved? Name the corpus with "
                "--data, or extract again"
            )


def build_end_to_end(live: LiveData, device: torch.device) -> EndToEnd:
    """Encoders with float32 weights, whatever precision they compute in, and the run's fusion."""
    whole = [
        replace(choice, spec=replace(choice.spec, precision="float32")) for choice in live.choices
    ]
    start = live.start.model
    assert isinstance(start, FusionModel)  # `check_wishes` refuses ensembles
    model = EndToEnd(
        Encoders(whole, live.start.recipe.decode),
        copy.deepcopy(start),
        unfrozen=live.unfrozen,
        precision=live.job.hardware.precision,
        train_batchnorm=live.job.tune.train_batchnorm,
    )
    if device.type == "cpu":
        from pipeline.encoders.attention import drop_by_bytes  # transformers, which takes seconds

        for name in live.unfrozen:
            drop_by_bytes(model.encoders.by_modality[name])
    if live.job.tune.gradient_checkpointing:
        model.checkpoint_gradients()
    return model.to(device)


@torch.no_grad()
def check_parity(model: EndToEnd, live: LiveData, device: torch.device) -> float:
    """The largest difference between logits from raw input and from the cache, over a few rows
    of dev.

    Raises:
        ParityError: above `TOLERANCE`.
    """
    clips = live.dev
    rows = torch.linspace(0, len(clips) - 1, min(_PARITY_ROWS, len(clips))).long().unique()
    batch = Collate(clips.preparations)([clips[0, row] for row in rows.tolist()]).to(device)
    model.eval()
    raw = model(batch)
    cached = model.fusion(
        {name: values[rows].to(device) for name, values in clips.data.features.items()},
        batch.present,
    )
    differences = torch.cat(
        [
            (raw.emotion_logits - cached.emotion_logits).abs(),
            (raw.sentiment_logits - cached.sentiment_logits).abs(),
        ],
        dim=1,
    )  # [rows, 7 + 3]
    largest = float(differences.max())
    tolerance = _tolerance(live)
    if not largest <= tolerance:  # NaN is no parity either
        worst = clips.data.keys[int(rows[int(differences.amax(dim=1).argmax())])]
        raise ParityError(
            f"before step 1, logits on raw input and on the cache differ by {largest:.3g} "
            f"(tolerance {tolerance:g}; most for {worst}). Likely causes: other weights than those "
            "that made the cache, another version of a library or of this program, or clips that "
            "changed since extraction. Extract and train again with what is here now"
        )
    return largest


def _tolerance(live: LiveData) -> float:
    cached = {spec.modality: spec.precision for spec in live.start.recipe.encoders}
    exact = live.job.hardware.precision == "float32" and all(
        cached[name] == "float32" for name in live.unfrozen
    )
    return TOLERANCE["float32" if exact else "bfloat16"]
