"""Scores of predicted labels. All of them are functions of one confusion array."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.labels import UNLABELLED, Labels

Scoring = Callable[[NDArray[np.generic]], NDArray[np.float64]]  # [..., C, C] -> [...]


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """One class; support: rows of it.

    recall: None without such rows
    precision, f1: None for a class that occurs neither in truth nor in prediction; precision is 0
        for one that occurs and is never predicted (scikit-learn's `zero_division=0`)
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one set of predictions; a score is None where there is no row to measure.

    macro_f1:      plain mean of F1 over the classes that occur in truth or prediction
    macro_classes: how many classes those are
    confusion:     confusion[true][predicted] counts rows
    """

    accuracy: float | None
    weighted_f1: float | None
    macro_f1: float | None
    macro_classes: int
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]


def confusion(true: Labels, predicted: Labels, num_classes: int) -> NDArray[np.int64]:
    """[rows] twice -> [true, predicted]: rows counted. UNLABELLED rows count nowhere."""
    labelled = true != UNLABELLED
    cell = true[labelled] * num_classes + predicted[labelled]
    return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


def weighted_f1_of(confusions: NDArray[np.generic]) -> NDArray[np.float64]:
    """[..., true, predicted] -> [...]: F1 of each class, weighted by its rows.

    As sklearn's `f1_score(average="weighted", zero_division=0)`. Where nothing is counted there is
    no score, and what stands there means nothing: `value_of` says None.
    """
    counts = np.asarray(confusions, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    support, claimed = counts.sum(axis=-1), counts.sum(axis=-2)
    f1 = 2 * right / np.maximum(support + claimed, 1)
    return (support * f1).sum(axis=-1) / np.maximum(support.sum(axis=-1), 1)


def accuracy_of(confusions: NDArray[np.generic]) -> NDArray[np.float64]:
    """[..., true, predicted] -> [...]. Where nothing is counted as in `weighted_f1_of`."""
    counts = np.asarray(confusions, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1).sum(axis=-1)
    return right / np.maximum(counts.sum(axis=(-2, -1)), 1)


def macro_f1_of(confusions: NDArray[np.generic]) -> NDArray[np.float64]:
    """[..., true, predicted] -> [...]: plain mean of F1 over the classes that occur in truth or
    prediction; where nothing is counted as in `weighted_f1_of`.

    As sklearn's `f1_score(average="macro", zero_division=0)`, which averages over the labels that
    occur in y_true or y_pred where it is given none: a corpus of four emotions has four F1s, and
    three that are no measurement.
    """
    counts = np.asarray(confusions, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = 2 * right / np.maximum(counts.sum(axis=-1) + counts.sum(axis=-2), 1)
    return f1.sum(axis=-1) / np.maximum(macro_classes_of(counts), 1)


def macro_classes_of(confusions: NDArray[np.generic]) -> NDArray[np.int64]:
    """[..., true, predicted] -> [...]: how many classes occur in truth or prediction."""
    counts = np.asarray(confusions)
    return ((counts.sum(axis=-1) + counts.sum(axis=-2)) > 0).sum(axis=-1)


def value_of(scoring: Scoring, counts: NDArray[np.generic]) -> float | None:
    """The score of one confusion [true, predicted]; None where it counts no row."""
    return float(scoring(counts)) if np.any(counts) else None


def describe_macro(head: str, counted: Sequence[int], num_classes: int) -> str:
    """Describes the classes that macro F1 is a mean over, if they are not all; else "".

    counted: of each set of predictions, how many classes; 0 for one without rows
    """
    few = sorted({count for count in counted if count > 0})
    if not few or few[0] == num_classes:
        return ""
    span = str(few[0]) if len(few) == 1 else f"{few[0]} to {few[-1]}"
    return (
        f"{head}: macro F1 over {span} of {num_classes} classes, those that occur in truth or "
        "prediction"
    )


def weighted_f1(true: Labels, predicted: Labels) -> float | None:
    """Over the labelled rows; None where there is none."""
    labelled = true != UNLABELLED
    if not labelled.any():
        return None
    num_classes = int(max(true.max(), predicted[labelled].max())) + 1
    return float(weighted_f1_of(confusion(true, predicted, num_classes)))


def selection_score(weighted_f1s: Sequence[float]) -> float:
    """The selection score on dev: the mean over the heads that are trained and have labels in dev.

    0 where there is none; training refuses such a dev (`check_choosable`).
    """
    return float(np.mean(weighted_f1s)) if weighted_f1s else 0.0


def score(labels: tuple[str, ...], true: Labels, predicted: Labels) -> Scores:
    """Over the labelled rows. Every class of `labels` has its place, also one that never occurs."""
    counts = confusion(true, predicted, len(labels))  # [true, predicted]
    right, support, claimed = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    precision, recall = right / np.maximum(claimed, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + claimed, 1)
    occurs = support + claimed > 0
    return Scores(
        accuracy=value_of(accuracy_of, counts),
        weighted_f1=value_of(weighted_f1_of, counts),
        macro_f1=value_of(macro_f1_of, counts),
        macro_classes=int(macro_classes_of(counts)),
        classes=tuple(
            ClassScores(
                label=label,
                precision=float(precision[k]) if occurs[k] else None,
                recall=float(recall[k]) if support[k] else None,
                f1=float(f1[k]) if occurs[k] else None,
                support=int(support[k]),
            )
            for k, label in enumerate(labels)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in counts),
    )
