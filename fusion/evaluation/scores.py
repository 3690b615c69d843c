"""Scores of predicted labels. All of them are functions of one confusion array."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.labels import UNLABELLED, Labels

Scoring = Callable[[NDArray[np.generic]], NDArray[np.float64]]  # [..., C, C] -> [...]


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


def confusion(true: Labels, predicted: Labels, num_classes: int) -> NDArray[np.int64]:
    """[rows] twice -> [true, predicted]: rows counted. UNLABELLED rows count nowhere."""
    labelled = true != UNLABELLED
    cell = true[labelled] * num_classes + predicted[labelled]
    return np.bincount(cell, minlength=num_classes**2).reshape(num_classes, num_classes)


def weighted_f1_of(confusions: NDArray[np.generic]) -> NDArray[np.float64]:
    """[..., true, predicted] -> [...]: F1 of each class, weighted by its rows.

    As sklearn's `f1_score(average="weighted", zero_division=0)`; 0 where nothing is counted.
    """
    counts = np.asarray(confusions, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    support, claimed = counts.sum(axis=-1), counts.sum(axis=-2)
    f1 = 2 * right / np.maximum(support + claimed, 1)
    return (support * f1).sum(axis=-1) / np.maximum(support.sum(axis=-1), 1)


def accuracy_of(confusions: NDArray[np.generic]) -> NDArray[np.float64]:
    """[..., true, predicted] -> [...]; 0 where nothing is counted."""
    counts = np.asarray(confusions, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1).sum(axis=-1)
    return right / np.maximum(counts.sum(axis=(-2, -1)), 1)


def macro_f1_of(confusions: NDArray[np.generic]) -> NDArray[np.float64]:
    """[..., true, predicted] -> [...]: plain mean over all classes; one that never occurs has 0."""
    counts = np.asarray(confusions, dtype=np.float64)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = 2 * right / np.maximum(counts.sum(axis=-1) + counts.sum(axis=-2), 1)
    return f1.mean(axis=-1)


def weighted_f1(true: Labels, predicted: Labels) -> float | None:
    """Over the labelled rows; None where there is none."""
    labelled = true != UNLABELLED
    if not labelled.any():
        return None
    num_classes = int(max(true.max(), predicted[labelled].max())) + 1
    return float(weighted_f1_of(confusion(true, predicted, num_classes)))


def selection_score(weighted_f1s: Sequence[float]) -> float:
    """What dev chooses by: the mean over the heads that have labels."""
    return float(np.mean(weighted_f1s)) if weighted_f1s else 0.0


def score(labels: tuple[str, ...], true: Labels, predicted: Labels) -> Scores:
    """Over the labelled rows. Every class of `labels` counts, also one that occurs in neither (its
    scores are 0); macro F1 is the plain mean over `labels`."""
    counts = confusion(true, predicted, len(labels))  # [true, predicted]
    right, support, claimed = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    precision, recall = right / np.maximum(claimed, 1), right / np.maximum(support, 1)
    f1 = 2 * right / np.maximum(support + claimed, 1)
    return Scores(
        accuracy=float(accuracy_of(counts)),
        weighted_f1=float(weighted_f1_of(counts)),
        macro_f1=float(macro_f1_of(counts)),
        classes=tuple(
            ClassScores(
                label=label,
                precision=float(precision[k]),
                recall=float(recall[k]),
                f1=float(f1[k]),
                support=int(support[k]),
            )
            for k, label in enumerate(labels)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in counts),
    )
