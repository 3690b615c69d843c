"""Confidence intervals over dialogues: the 95 % percentile bootstrap.

A sample draws as many whole dialogues as there are, with replacement: the utterances of a dialogue
come from one situation and the same people and are not independent, so sampling rows would give
intervals that are too narrow. The score of a sample needs only the sum of its dialogues'
confusions, so all samples are one matrix product.

For few dialogues the plain percentiles are too narrow as well: with 10, two equally good models
differ "significantly" in 10 % of trials instead of 5. So the percentiles are widened as Hesterberg
proposes (2015, "What Teachers Should Know about the Bootstrap", expanded percentile
interval), which changes almost nothing for MELD's 280 test dialogues.

An interval covers the choice of the split's dialogues only, not other training seeds or other
corpora.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from fusion.evaluation.scores import Scoring, weighted_f1_of
from fusion.labels import UNLABELLED, Labels

SAMPLES = 2000
_BLOCK = 2**22  # numbers of a block
_TAIL = 0.025  # on each side


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value measured on all rows, with its 95 % bootstrap bounds."""

    value: float
    low: float
    high: float

    @classmethod
    def around(cls, value: float, samples: NDArray[np.float64], num_dialogues: int) -> "Interval":
        """samples: [samples], the same score of each drawn set of `num_dialogues` (2 or more)."""
        tail = _expanded_tail(num_dialogues)
        low, high = np.quantile(samples, (tail, 1 - tail))
        return cls(value=float(value), low=float(low), high=float(high))

    @property
    def holds_zero(self) -> bool:
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _expanded_tail(num_dialogues: int) -> float:
    """Share of the samples left out on each side; tends to 2.5 % for many dialogues."""
    freedom = num_dialogues - 1
    return float(ndtr((num_dialogues / freedom) ** 0.5 * stdtrit(freedom, _TAIL)))


def confusions_by_dialogue(
    true: Labels, predicted: Labels, dialogue: Labels, num_classes: int
) -> NDArray[np.int64]:
    """[rows] three times -> [dialogues, true, predicted]: rows of each dialogue, counted.

    `dialogue` numbers the dialogues from 0. UNLABELLED rows count nowhere, so a dialogue without
    labels is all zeros.
    """
    num_dialogues = int(dialogue.max()) + 1 if len(dialogue) else 0
    labelled = true != UNLABELLED
    cell = (dialogue[labelled] * num_classes + true[labelled]) * num_classes + predicted[labelled]
    counts = np.bincount(cell, minlength=num_dialogues * num_classes**2)
    return counts.reshape(num_dialogues, num_classes, num_classes)


def draw_weights(num_dialogues: int, *, samples: int = SAMPLES, seed: int = 0) -> Labels:
    """int64 [samples, dialogues]: how often each dialogue is in each sample; rows sum to
    `num_dialogues`. The same arguments give the same draws."""
    random = np.random.default_rng(seed)
    weights = np.empty((samples, num_dialogues), dtype=np.int64)
    for block in _blocks(weights):
        drawn = random.integers(0, num_dialogues, block.shape)
        drawn += np.arange(len(block))[:, None] * num_dialogues
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return weights


def _blocks(weights: Labels) -> Iterator[Labels]:
    """Views of some samples each: with many dialogues all samples at once take gigabytes."""
    size = max(1, _BLOCK // max(1, weights.shape[1]))
    for start in range(0, len(weights), size):
        yield weights[start : start + size]


def resample(
    confusions: NDArray[np.int64], weights: Labels, scoring: Scoring = weighted_f1_of
) -> NDArray[np.float64]:
    """[dialogues, C, C] and [samples, dialogues] -> [samples]: the score of each drawn set."""
    dialogues, classes, _ = confusions.shape
    flat = confusions.reshape(dialogues, classes * classes).astype(np.float64)
    # Whole numbers far below 2^53: exact.
    sums = np.concatenate([block.astype(np.float64) @ flat for block in _blocks(weights)])
    return scoring(sums.reshape(len(weights), classes, classes))


def interval(
    true: Labels,
    predicted: Labels,
    dialogue: Labels,
    num_classes: int,
    *,
    scoring: Scoring = weighted_f1_of,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of a score of one set of predictions. true, predicted, dialogue: [rows].

    None where fewer than two dialogues have labels.
    """
    return mean_interval(
        true,
        predicted[None],
        dialogue,
        num_classes,
        scoring=scoring,
        samples=samples,
        seed=seed,
    )


def mean_interval(
    true: Labels,
    predicted: Labels,
    dialogue: Labels,
    num_classes: int,
    *,
    scoring: Scoring = weighted_f1_of,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of the mean score of several trainings. predicted: [trainings, rows].

    A sample holds the same dialogues for every training. None as in `interval`.
    """
    confusions = _confusions_of(true, predicted, dialogue, num_classes)
    weights = _weights_of(confusions[0], samples, seed)
    if weights is None:
        return None
    return Interval.around(*_means_of(confusions, weights, scoring), weights.shape[1])


def difference_interval(
    true: Labels,
    a: Labels,
    b: Labels,
    dialogue: Labels,
    num_classes: int,
    *,
    scoring: Scoring = weighted_f1_of,
    samples: int = SAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of score(b) - score(a), paired: both are measured on the same samples.

    a, b: [rows], or [trainings, rows] for the difference of means. None as in `interval`.
    """
    of_a = _confusions_of(true, np.atleast_2d(a), dialogue, num_classes)
    of_b = _confusions_of(true, np.atleast_2d(b), dialogue, num_classes)
    weights = _weights_of(of_a[0], samples, seed)
    if weights is None:
        return None
    value_a, drawn_a = _means_of(of_a, weights, scoring)
    value_b, drawn_b = _means_of(of_b, weights, scoring)
    # Rounded, so that the same trainings named in another order differ by 0 and not by 1e-17.
    differences = np.round(drawn_b - drawn_a, 12)
    return Interval.around(round(value_b - value_a, 12), differences, weights.shape[1])


def _confusions_of(
    true: Labels, predicted: Labels, dialogue: Labels, num_classes: int
) -> list[NDArray[np.int64]]:
    """Of each training; only of dialogues that have labels: a sample of others has no score."""
    confusions = [confusions_by_dialogue(true, each, dialogue, num_classes) for each in predicted]
    labelled = confusions[0].sum(axis=(1, 2)) > 0
    return [each[labelled] for each in confusions]


def _weights_of(confusions: NDArray[np.int64], samples: int, seed: int) -> Labels | None:
    few = len(confusions) < 2
    return None if few else draw_weights(len(confusions), samples=samples, seed=seed)


def _means_of(
    confusions: list[NDArray[np.int64]], weights: Labels, scoring: Scoring
) -> tuple[float, NDArray[np.float64]]:
    """The mean score over trainings: of all dialogues, and [samples] of each drawn set."""
    value = np.mean([scoring(each.sum(axis=0)) for each in confusions])
    drawn = np.mean([resample(each, weights, scoring) for each in confusions], axis=0)
    return float(value), drawn
