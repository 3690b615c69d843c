"""`meld crossval`: folds of dialogues x seeds, all trained together; test stays sealed.

caches of train (and dev) -> rows in folds, whole dialogues
    │ per fold and seed: one training without the fold; a part of its own dialogues chooses
    │ the epoch, so that nothing is ever chosen on the rows it is measured on
    │ all folds x seeds side by side as one batched model
    └ per seed: every row predicted once, by the training that did not see its dialogue
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from fusion.data.batches import Rows
from fusion.data.load import load_split
from fusion.data.split import FusionData, pool_splits
from fusion.evaluation.bootstrap import Interval, confusions_by_dialogue, mean_interval
from fusion.evaluation.scores import Scoring, accuracy_of, macro_f1_of, weighted_f1_of
from fusion.inference.predict import predict
from fusion.labels import UNLABELLED, Labels
from fusion.model.fusion import InputKind, ModelConfig
from fusion.training.fit import FitConfig, Training, fit_together
from fusion.training.train import build_model, check_modalities, choose_device
from pipeline.errors import InputError, MismatchError
from pipeline.recipe import TestClips
from pipeline.schema import EMOTIONS, SENTIMENTS, Modality
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
_CHOOSING = 8  # one in so many dialogues of a training's own chooses its epoch

OnProgress = Callable[[int, int], None]  # epochs done, epochs at most


@dataclass(frozen=True, kw_only=True)
class CrossvalConfig:
    """splits: whose rows are pooled; test is never among them.

    seed: of the folds; trainings take the seeds 0, 1, ...
    out:  where the JSON goes; None writes none
    """

    features: Path = Path("features")
    modalities: tuple[Modality, ...] | None = None
    input: InputKind = "raw"
    splits: tuple[Literal["train", "dev"], ...] = ("train", "dev")
    folds: int = 5
    seeds: int = 5
    seed: int = 0
    out: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, not {self.folds}")
        if not 1 <= self.seeds <= 1000:  # all of them are in memory at once
            raise ValueError(f"seeds must be in 1 to 1000, not {self.seeds}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), not {self.seed}")
        if not self.splits or not set(self.splits) <= {"train", "dev"}:
            raise ValueError(f"splits are train and dev, not {', '.join(self.splits)}")
        if len(set(self.splits)) != len(self.splits):
            raise ValueError(f"each split once, not {', '.join(self.splits)}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "CrossvalConfig":
        """From a TOML file's tables: `[fit]`, `[fit.loss]`, `[model]`. Raises UsageError."""
        return build_config(cls, values)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of one head.

    by_training: [folds][seeds], each on the fold that the training did not see
    by_seed:     [seeds], on all rows
    interval:    of the mean over seeds, other dialogues being drawn; None for a single dialogue
    majority:    the score of always saying the commonest class
    """

    name: str
    by_training: tuple[tuple[float, ...], ...]
    by_seed: tuple[float, ...]
    interval: Interval | None
    majority: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.by_seed))

    @property
    def over_seeds(self) -> float:
        """Standard deviation of the seeds' scores."""
        return float(np.std(self.by_seed))

    @property
    def over_folds(self) -> float:
        """Standard deviation of the folds' mean scores."""
        return float(np.std(np.mean(self.by_training, axis=1)))


@dataclass(frozen=True, kw_only=True)
class CrossvalReport:
    """seconds: of the trainings alone. emotion and sentiment are empty without such labels."""

    rows: int
    dialogues: int
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

    def to_dict(self) -> dict[str, Any]:
        """The format comes first: by it a file that may be overwritten is recognised."""
        return {"format": FORMAT} | to_values(self)


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Row numbers of one fold: trained on, choosing the epoch, measured. No dialogue is in two."""

    train: NDArray[np.int64]
    choose: NDArray[np.int64]
    measure: NDArray[np.int64]


def crossval(config: CrossvalConfig, on_progress: OnProgress = lambda *_: None) -> CrossvalReport:
    """Raises UsageError, InputError, StorageError or MismatchError."""
    if config.out is not None:
        check_out(config.out, begins=json_bytes({"format": FORMAT})[:-3])
    data = load_pooled(config)
    folds = make_folds(data, config.folds, seed=config.seed)
    started = time.perf_counter()
    emotion, sentiment = _predict_unseen(config, data, folds, on_progress)
    report = CrossvalReport(
        rows=len(data),
        dialogues=int(data.turns.dialogue.max()) + 1,
        rows_by_fold=tuple(len(fold.measure) for fold in folds),
        seeds=config.seeds,
        modalities=data.modalities,
        random_modalities=tuple(
            name for name in data.recipe.random_modalities if name in data.modalities
        ),
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
    """Raises MismatchError where the features have seen the labels of train already."""
    parts: list[FusionData] = []
    for split in config.splits:
        wanted = parts[0].modalities if parts else config.modalities
        parts.append(load_split(config.features, split, modalities=wanted, input=config.input))
    data = pool_splits(parts)
    tuned = [spec.modality for spec in data.recipe.encoders if spec.weights == "finetuned"]
    if "train" in config.splits and set(tuned) & set(data.modalities):
        raise MismatchError(
            f"{config.features}: these encoders ({', '.join(tuned)}) were fine-tuned on the labels "
            "of train, so no fold of it is unseen; cross-validate features of frozen encoders"
        )
    return data


def make_folds(data: FusionData, folds: int, *, seed: int) -> list[Fold]:
    """Whole dialogues, emotions spread evenly. Raises InputError where there are too few."""
    dialogue = data.turns.dialogue.numpy()
    needed = max(folds, 2) + 1
    if len(np.unique(dialogue)) < needed:
        raise InputError(
            f"{folds} folds need at least {needed} dialogues, there are "
            f"{len(np.unique(dialogue))}; ask for fewer --folds"
        )
    labels = data.emotion.numpy()
    made = []
    for number, (rest, measure) in enumerate(_split(labels, dialogue, folds, seed), start=1):
        among = min(_CHOOSING, len(np.unique(dialogue[rest])))
        if among < 2:
            raise InputError(
                f"fold {number} of {folds} leaves one dialogue, which cannot both train and choose "
                "the epoch; ask for more --folds, or take more dialogues"
            )
        train, choose = _split(labels[rest], dialogue[rest], among, seed)[0]
        fold = Fold(train=rest[train], choose=rest[choose], measure=measure)
        _check_fold(data, fold, f"fold {number} of {folds}")
        made.append(fold)
    return made


def _check_fold(data: FusionData, fold: Fold, name: str) -> None:
    """Raises InputError where there is nothing to learn from, or nothing to choose by."""
    train = data.take(fold.train)
    for column, modality in enumerate(train.modalities):
        if not train.present[:, column].any():
            raise InputError(
                f"{name}: {modality} is absent in all {len(train)} rows to train on; leave it out "
                "with --modalities, or ask for other --folds"
            )
    for part, use in ((train, "train on"), (data.take(fold.choose), "choose the epoch by")):
        if not part.has_labels:
            raise InputError(
                f"{name}: none of the {len(part)} rows to {use} has a label; ask for other --folds"
            )


def _split(
    labels: Labels, dialogue: Labels, folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    if np.unique(labels, return_counts=True)[1].max() < folds:
        labels = np.zeros_like(labels)  # no class has enough rows to be spread
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # It warns of a class with fewer rows than there are folds: rare emotions are that.
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter.split(np.zeros(len(labels)), labels, dialogue))


def _predict_unseen(
    config: CrossvalConfig, data: FusionData, folds: Sequence[Fold], on_progress: OnProgress
) -> tuple[Labels, Labels]:
    """Both heads' labels, int64 [seeds, rows]: of each row by the training that did not see it."""
    device = choose_device(config.device)
    trainings: list[Training] = []
    unseen: list[Rows] = []
    for fold in folds:
        train = data.take(fold.train)
        models = [
            build_model(train, config.model, seed=seed).to(device) for seed in range(config.seeds)
        ]
        rows, choose = (
            Rows.prepare(models[0], part, device) for part in (train, data.take(fold.choose))
        )
        unseen.append(Rows.prepare(models[0], data.take(fold.measure), device))
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
    emotion = np.zeros((config.seeds, len(data)), dtype=np.int64)
    sentiment = np.zeros_like(emotion)
    for number, training in enumerate(trainings):
        place, seed = divmod(number, config.seeds)
        output, rows_of = predict(training.model, unseen[place]), folds[place].measure
        emotion[seed, rows_of] = output.emotion_logits.argmax(1).cpu().numpy()
        sentiment[seed, rows_of] = output.sentiment_logits.argmax(1).cpu().numpy()
    return emotion, sentiment


def _measure(
    data: FusionData, true: Labels, predicted: Labels, folds: Sequence[Fold], num_classes: int
) -> tuple[Metric, ...]:
    labelled = true != UNLABELLED
    if not labelled.any():
        return ()
    dialogue = data.turns.dialogue.numpy()
    majority = np.full_like(true, np.bincount(true[labelled]).argmax())

    def score(scoring: Scoring, rows: NDArray[np.int64] | slice, labels: Labels) -> float:
        confusions = confusions_by_dialogue(true[rows], labels[rows], dialogue[rows], num_classes)
        return float(scoring(confusions.sum(axis=0)))

    everywhere = slice(None)
    return tuple(
        Metric(
            name=name,
            by_training=tuple(
                tuple(score(scoring, fold.measure, labels) for labels in predicted)
                for fold in folds
            ),
            by_seed=tuple(score(scoring, everywhere, labels) for labels in predicted),
            interval=mean_interval(true, predicted, dialogue, num_classes, scoring=scoring),
            majority=score(scoring, everywhere, majority),
        )
        for name, scoring in METRICS.items()
    )
