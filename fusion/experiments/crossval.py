"""`meld crossval`: folds of dialogues or speakers x seeds, trained as one batched model; test is
not read.

caches of train (and dev) -> rows in folds, whole groups: dialogues, or speakers
    │ per fold and seed: one training without the fold; some of its own dialogues choose
    │ the epoch, so that nothing is chosen on the measured rows
    │ all folds x seeds side by side as one batched model
    └ per seed: every row predicted once, by the training that did not see its group
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.data.batches import Rows
from fusion.data.load import load_split
from fusion.data.split import FusionData, pool_splits
from fusion.evaluation.bootstrap import Interval, confusions_by_dialogue, mean_interval
from fusion.evaluation.scores import (
    Scoring,
    accuracy_of,
    macro_classes_of,
    macro_f1_of,
    value_of,
    weighted_f1_of,
)
from fusion.experiments.folds import Fold, Group, group_numbers, make_folds
from fusion.inference.predict import predict
from fusion.labels import UNLABELLED, Head, Labels
from fusion.model.dims import InputKind, ModelConfig
from fusion.training.build import build_model, choose_device
from fusion.training.config import (
    check_layers,
    check_modalities,
    check_modality_dropout,
    check_projection,
)
from fusion.training.fit import FitConfig, Training, fit_together
from fusion.training.losses import check_teacher
from fusion.training.parts import find_untrained
from pipeline.errors import InputError, MismatchError, UsageError
from pipeline.recipe import TestClips
from pipeline.schema import EMOTIONS, SENTIMENTS, Modality, Split
from pipeline.settings import build_config, describe_config
from pipeline.system.files import check_out, write_whole
from pipeline.system.json_values import json_bytes, to_values
from pipeline.system.resources import num_cores

FORMAT = "meld-crossval"
METRICS: dict[str, Scoring] = {
    "weighted F1": weighted_f1_of,
    "accuracy": accuracy_of,
    "macro F1": macro_f1_of,
}

OnProgress = Callable[[int, int], None]  # epochs done, epochs at most


@dataclass(frozen=True, kw_only=True)
class CrossvalConfig:
    """What to cross-validate, and how.

    features: folder of the feature caches
    modalities: modalities that the models get; None takes all that the caches have
    input: raw features, or their 128-d embeddings
    splits: splits whose rows are pooled; None takes train and, if it has a cache, dev. Test is
        never among them
    group: group that stays in one fold. With "speaker", models are trained without what the
        measured speakers say, but with what others say in the same dialogues
    folds: number of folds, each measured once; as many as there are groups is leave-one-out
    seeds: number of seeds, each trained on every fold
    seed: random seed of the dialogues that choose the epoch, and of the folds where groups are
        alike in labels: the others are dealt so that labels are spread evenly, whatever the seed.
        Trainings take the seeds 0, 1, ...
    out:  JSON file to write; None writes none
    device: "auto" uses a GPU if there is one
    """

    features: Path = Path("features")
    modalities: tuple[Modality, ...] | None = None
    input: InputKind = "raw"
    splits: tuple[Literal["train", "dev"], ...] | None = None
    group: Group = "dialogue"
    folds: int = 5
    seeds: int = 5
    seed: int = 0
    out: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        check_teacher(self.fit.loss, None, "fit.loss")
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, not {self.folds}")
        if not 1 <= self.seeds <= 1000:  # all of them are in memory at once
            raise ValueError(f"seeds must be in 1 to 1000, not {self.seeds}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), not {self.seed}")
        if self.splits is not None:
            if not self.splits or not set(self.splits) <= {"train", "dev"}:
                raise ValueError(f"splits are train and dev, not {', '.join(self.splits)}")
            if len(set(self.splits)) != len(self.splits):
                raise ValueError(f"each split once, not {', '.join(self.splits)}")
        if self.group == "speaker" and self.model.context != "none":
            raise UsageError(
                "--group speaker leaves speakers out, and with --context dialogue a model sees "
                "what all speakers of a dialogue say; leave one of the two out"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "CrossvalConfig":
        """From a TOML file's tables: `[fit]`, `[fit.loss]`, `[model]`. Raises UsageError."""
        config = build_config(cls, values)
        check_projection((config.model.fusion,), config.model)
        if config.modalities is not None:
            check_modality_dropout(config.modalities, config.fit.modality_dropout)
        return config


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of one head.

    by_training: [folds][seeds], each on the fold that the training did not see; None where no row
                 of that fold has the head's label, or none that the training learned from
    by_seed:     [seeds], on all rows that are measured
    interval:    of the mean over seeds, other dialogues being drawn; None for a single dialogue
    majority:    the score of always saying the commonest class
    classes:     [seeds], how many classes the score is a plain mean over; empty where it is none
    """

    name: str
    by_training: tuple[tuple[float | None, ...], ...]
    by_seed: tuple[float, ...]
    interval: Interval | None
    majority: float
    classes: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        return float(np.mean(self.by_seed))

    @property
    def over_seeds(self) -> float:
        """Standard deviation of the seeds' scores."""
        return float(np.std(self.by_seed))

    @property
    def over_folds(self) -> float:
        """Standard deviation of the mean scores of the folds that have one."""
        folds = [[score for score in fold if score is not None] for fold in self.by_training]
        return float(np.std([np.mean(fold) for fold in folds if fold]))


@dataclass(frozen=True, kw_only=True)
class CrossvalReport:
    """seconds: of the trainings alone. emotion and sentiment are empty without such labels.

    splits: those whose rows were pooled
    groups: how many dialogues or speakers were dealt to the folds
    speakers_by_fold: who was measured in each; empty where dialogues were dealt
    text_context: number of previous utterances in the text features of each
    text_dialogue: its text features were read in its dialogue
    foreign: modalities whose features were imported, and the tool that made them
    """

    rows: int
    dialogues: int
    splits: tuple[Split, ...]
    group: Group
    groups: int
    speakers_by_fold: tuple[tuple[str, ...], ...]
    text_context: int
    text_dialogue: bool
    rows_by_fold: tuple[int, ...]
    seeds: int
    modalities: tuple[Modality, ...]
    random_modalities: tuple[Modality, ...]
    test_clips: TestClips | None
    fingerprint: str
    seconds: float
    settings: Mapping[str, Any]
    emotion: tuple[Metric, ...]
    sentiment: tuple[Metric, ...]
    foreign: Mapping[Modality, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The format comes first: by it a file that may be overwritten is recognised."""
        return {"format": FORMAT} | to_values(self)


def crossval(config: CrossvalConfig, on_progress: OnProgress = lambda *_: None) -> CrossvalReport:
    """Raises UsageError, InputError, StorageError or MismatchError."""
    if config.out is not None:
        check_out(config.out, begins=json_bytes({"format": FORMAT})[:-3])
    data = load_pooled(config)
    check_modality_dropout(data.modalities, config.fit.modality_dropout)
    check_layers(data.features, config.model)
    folds = make_folds(data, config.folds, seed=config.seed, group=config.group)
    started = time.perf_counter()
    emotion, sentiment = _predict_unseen(config, data, folds, on_progress)
    by_speaker = config.group == "speaker"
    report = CrossvalReport(
        rows=len(data),
        dialogues=int(data.turns.dialogue.max()) + 1,
        splits=tuple(dict.fromkeys(key.split for key in data.keys)),
        group=config.group,
        groups=len(np.unique(group_numbers(data, config.group))),
        speakers_by_fold=tuple(
            tuple(sorted({data.speaker[row] for row in fold.measure})) for fold in folds
        )
        if by_speaker
        else (),
        text_context=max(
            spec.context for spec in data.recipe.encoders if spec.modality in data.modalities
        ),
        text_dialogue=any(
            spec.dialogue != "none"
            for spec in data.recipe.encoders
            if spec.modality in data.modalities
        ),
        rows_by_fold=tuple(len(fold.measure) for fold in folds),
        seeds=config.seeds,
        modalities=data.modalities,
        random_modalities=tuple(
            name for name in data.recipe.random_modalities if name in data.modalities
        ),
        foreign={
            name: tool for name, tool in data.recipe.foreign.items() if name in data.modalities
        },
        test_clips=data.recipe.test_clips,
        fingerprint=data.recipe.fingerprint,
        seconds=time.perf_counter() - started,
        settings=describe_config(config),
        emotion=_measure(data, data.emotion.numpy(), emotion, folds, len(EMOTIONS)),
        sentiment=_measure(data, data.sentiment.numpy(), sentiment, folds, len(SENTIMENTS)),
    )
    if config.out is not None:
        write_whole(config.out, json_bytes(report.to_dict()))
    return report


def load_pooled(config: CrossvalConfig) -> FusionData:
    """Raises MismatchError where the encoders were fine-tuned on the labels of train."""
    parts: list[FusionData] = []
    for split in _splits(config):
        wanted = parts[0].modalities if parts else config.modalities
        parts.append(load_split(config.features, split, modalities=wanted, input=config.input))
    data = pool_splits(parts)
    tuned = [spec.modality for spec in data.recipe.encoders if spec.weights == "finetuned"]
    if "train" in _splits(config) and set(tuned) & set(data.modalities):
        raise MismatchError(
            f"{config.features}: these encoders ({', '.join(tuned)}) were fine-tuned on the labels "
            "of train, so no fold of it is unseen; cross-validate features of frozen encoders"
        )
    return data


def _splits(config: CrossvalConfig) -> tuple[Split, ...]:
    if config.splits is not None:
        return config.splits
    return ("train", "dev") if (config.features / "dev.h5").is_file() else ("train",)


def _predict_unseen(
    config: CrossvalConfig, data: FusionData, folds: Sequence[Fold], on_progress: OnProgress
) -> tuple[Labels, Labels]:
    """Both heads' labels, int64 [seeds, rows]: of each row by the training that did not see it;
    UNLABELLED where that had no such label to learn from, or its loss counts 0."""
    device = choose_device(config.device)
    # One copy of the features for all folds, each of which standardises them in its own way.
    shared = {name: values.to(device) for name, values in data.features.items()}
    labels = replace(data, features={})
    trainings: list[Training] = []
    unseen: list[Rows] = []
    untrained: list[tuple[Head, ...]] = []
    for number, fold in enumerate(folds, start=1):
        train = data.take(fold.train)  # another copy, until the models know its statistics
        untrained.append(find_untrained(train, config.fit.loss))
        chooses = labels.take(fold.choose).without_labels(untrained[-1])
        if not chooses.has_labels:
            raise InputError(
                f"fold {number} of {len(folds)}: none of the {len(chooses)} rows to choose the "
                "epoch by has a label of what is learned; ask for other --folds"
            )
        models = [
            build_model(train, config.model, seed=seed).to(device) for seed in range(config.seeds)
        ]
        rows, choose, measure = (
            Rows.of_shared(models[0], shared, part, torch.as_tensor(places, device=device))
            for part, places in (
                (labels.take(fold.train), fold.train),
                (chooses, fold.choose),
                (labels.take(fold.measure), fold.measure),
            )
        )
        unseen.append(measure)
        trainings += [
            Training(model=model, train=rows, dev=choose, seed=seed)
            for seed, model in enumerate(models)
        ]
    done = 0

    def follow(*_: object) -> None:
        nonlocal done
        done += 1
        on_progress(done, len(trainings) * config.fit.epochs)

    fit_together(trainings, config.fit, follow, cores=num_cores())
    emotion = np.full((config.seeds, len(data)), UNLABELLED, dtype=np.int64)
    sentiment = np.full_like(emotion, UNLABELLED)
    for number, training in enumerate(trainings):
        place, seed = divmod(number, config.seeds)
        output, rows_of = predict(training.model, unseen[place]), folds[place].measure
        if "emotion" not in untrained[place]:
            emotion[seed, rows_of] = output.emotion_logits.argmax(1).cpu().numpy()
        if "sentiment" not in untrained[place]:
            sentiment[seed, rows_of] = output.sentiment_logits.argmax(1).cpu().numpy()
    return emotion, sentiment


def _measure(
    data: FusionData, true: Labels, predicted: Labels, folds: Sequence[Fold], num_classes: int
) -> tuple[Metric, ...]:
    true = np.where(predicted[0] == UNLABELLED, UNLABELLED, true)  # nobody said anything of it
    labelled = true != UNLABELLED
    if not labelled.any():
        return ()
    dialogue = data.turns.dialogue.numpy()
    majority = np.full_like(true, np.bincount(true[labelled]).argmax())

    everywhere = np.arange(len(true))

    def count(rows: NDArray[np.int64], labels: Labels) -> NDArray[np.int64]:
        confusions = confusions_by_dialogue(true[rows], labels[rows], dialogue[rows], num_classes)
        return confusions.sum(axis=0)

    def score(scoring: Scoring, labels: Labels) -> float:
        return float(scoring(count(everywhere, labels)))

    return tuple(
        Metric(
            name=name,
            by_training=tuple(
                tuple(value_of(scoring, count(fold.measure, labels)) for labels in predicted)
                for fold in folds
            ),
            by_seed=tuple(score(scoring, labels) for labels in predicted),
            interval=mean_interval(true, predicted, dialogue, num_classes, scoring=scoring),
            majority=score(scoring, majority),
            classes=tuple(int(macro_classes_of(count(everywhere, labels))) for labels in predicted)
            if scoring is macro_f1_of
            else (),
        )
        for name, scoring in METRICS.items()
    )
