"""How good predictions are, with the majority baseline always beside them."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from fusion.bootstrap import Interval, accuracy_of, interval
from fusion.calibration import HeadCalibration
from fusion.losses import UNLABELLED
from pipeline.recipe import TestClips
from pipeline.schema import EMOTIONS, SENTIMENTS, Modality, Split

if TYPE_CHECKING:  # they are measured with what stands here
    from fusion.error_analysis import ErrorAnalysis
    from fusion.leakage import Leakage, NotChecked

Labels = NDArray[np.int64]  # [rows], an index into the head's label names


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What one set of predictions is worth. confusion[true][predicted] counts rows."""

    accuracy: float
    weighted_f1: float
    macro_f1: float
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class HeadReport:
    """One head's scores over its labelled rows.

    majority: the same numbers for always saying `majority_label`, the commonest in train
    intervals: of the model's scores, over dialogues; None where there are fewer than two
    """

    labels: tuple[str, ...]
    rows: int
    model: Scores
    majority_label: str
    majority: Scores
    weighted_f1_interval: Interval | None = None
    accuracy_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class ModalityPresence:
    """In how many rows a modality was there; `random_weights`: its encoder was never trained."""

    modality: Modality
    rows: int
    random_weights: bool


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far each head's probabilities can be believed; None for one without labelled rows."""

    emotion: HeadCalibration | None
    sentiment: HeadCalibration | None


@dataclass(frozen=True, kw_only=True)
class JointScores:
    """Both heads decoded together, against each head's own first choice.

    contradictions: share of rows whose two first choices never occur together in train; decoded
                    together none is left
    rows_changed:   rows in which at least one label became another
    *_f1, *_f1_joint: weighted F1 of the first choices and of the joint ones; None without labels
    """

    rows: int
    sentiment_weight: float
    contradictions: float
    rows_changed: int
    emotion_rows_changed: int
    sentiment_rows_changed: int
    emotion_f1: float | None
    emotion_f1_joint: float | None
    sentiment_f1: float | None
    sentiment_f1_joint: float | None


@dataclass(frozen=True, kw_only=True)
class SubsetScores:
    """The run when nothing but `modalities` may be seen.

    rows:      all rows of the split, so that subsets are comparable
    rows_seen: those of them in which one of `modalities` is present
    *_f1, *_ece: weighted F1 and expected calibration error through the run's temperature over the
               labelled rows; None without labels
    """

    modalities: tuple[Modality, ...]
    rows: int
    rows_seen: int
    emotion_f1: float | None
    sentiment_f1: float | None
    emotion_ece: float | None
    sentiment_ece: float | None


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """One run on one split. `fingerprint` is that of the features' recipe.

    test_clips: which cuts of MELD's test clips the features are of; None where they are of no clip
    calibration, joint: None for a run without a `Decoding`
    subsets:            every choice of the run's modalities; empty where it was not measured
    test_looks: how often test was looked at with this run, this time included; 0 for other splits
    leakage:    what of it stands in train; None for train itself
    errors:     where the run is wrong. Training's own reports have neither of the two
    """

    run: str
    split: Split
    fingerprint: str
    rows: int
    presence: tuple[ModalityPresence, ...]
    emotion: HeadReport
    sentiment: HeadReport
    test_clips: TestClips | None = None
    calibration: Calibration | None = None
    joint: JointScores | None = None
    subsets: tuple[SubsetScores, ...] = ()
    test_looks: int = 0
    leakage: "Leakage | NotChecked | None" = None
    errors: "ErrorAnalysis | None" = None

    @property
    def random_modalities(self) -> tuple[Modality, ...]:
        return tuple(each.modality for each in self.presence if each.random_weights)

    @property
    def score(self) -> float:
        """What dev chooses by: `selection_score` of the two weighted F1s."""
        heads = (self.emotion, self.sentiment)
        return selection_score([head.model.weighted_f1 for head in heads if head.rows])

    def to_json(self) -> str:
        values = dataclasses.asdict(self)
        values["random_modalities"] = list(self.random_modalities)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


def selection_score(weighted_f1s: Sequence[float]) -> float:
    """Mean over the heads that have labels."""
    return float(np.mean(weighted_f1s)) if weighted_f1s else 0.0


def weighted_f1(true: Labels, predicted: Labels) -> float | None:
    """Over the labelled rows; None where there is none."""
    labelled = true != UNLABELLED
    if not labelled.any():
        return None
    true, predicted = true[labelled], predicted[labelled]
    # Not scikit-learn's: its checks cost more than an epoch of a small training.
    hits = np.bincount(true[true == predicted], minlength=true.max() + 1)[: true.max() + 1]
    support = np.bincount(true)
    claimed = np.bincount(predicted, minlength=len(support))[: len(support)]
    return float((2 * hits / np.maximum(support + claimed, 1) * support).sum() / support.sum())


def report_emotion(
    true: Labels,
    predicted: Labels,
    train_counts: Sequence[int],
    *,
    dialogue: Labels | None = None,
) -> HeadReport:
    """dialogue: which dialogue each row is of, numbered from 0; None leaves out the intervals."""
    return _report_head(EMOTIONS, true, predicted, train_counts, dialogue)


def report_sentiment(
    true: Labels,
    predicted: Labels,
    train_counts: Sequence[int],
    *,
    dialogue: Labels | None = None,
) -> HeadReport:
    """See `report_emotion`."""
    return _report_head(SENTIMENTS, true, predicted, train_counts, dialogue)


def _report_head(
    labels: tuple[str, ...],
    true: Labels,
    predicted: Labels,
    train_counts: Sequence[int],
    dialogue: Labels | None,
) -> HeadReport:
    f1_interval = accuracy_interval = None
    if dialogue is not None:
        f1_interval = interval(true, predicted, dialogue, len(labels))
        accuracy_interval = interval(true, predicted, dialogue, len(labels), scoring=accuracy_of)
    labelled = true != UNLABELLED
    true, predicted = true[labelled], predicted[labelled]
    majority = int(np.argmax(train_counts))
    return HeadReport(
        labels=labels,
        rows=len(true),
        model=score(labels, true, predicted),
        majority_label=labels[majority],
        majority=score(labels, true, np.full_like(true, majority)),
        weighted_f1_interval=f1_interval,
        accuracy_interval=accuracy_interval,
    )


def score(labels: tuple[str, ...], true: Labels, predicted: Labels) -> Scores:
    """Every class of `labels` counts, also one that occurs in neither (its scores are 0).

    Macro F1 is the plain mean over `labels`.
    """
    order = list(range(len(labels)))
    if len(true) == 0:
        return _no_scores(labels)
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=order, zero_division=0
    )
    classes = tuple(
        ClassScores(
            label=label,
            precision=float(precision[k]),
            recall=float(recall[k]),
            f1=float(f1[k]),
            support=int(support[k]),
        )
        for k, label in enumerate(labels)
    )
    confusion = confusion_matrix(true, predicted, labels=order)
    return Scores(
        accuracy=float((true == predicted).mean()),
        weighted_f1=float(np.average(f1, weights=support)),
        macro_f1=float(f1.mean()),
        classes=classes,
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def _no_scores(labels: tuple[str, ...]) -> Scores:
    return Scores(
        accuracy=0.0,
        weighted_f1=0.0,
        macro_f1=0.0,
        classes=tuple(
            ClassScores(label=label, precision=0.0, recall=0.0, f1=0.0, support=0)
            for label in labels
        ),
        confusion=tuple((0,) * len(labels) for _ in labels),
    )
