"""Calibration of a head's probabilities, and the temperature that improves it.

Guo et al. 2017, "On Calibration of Modern Neural Networks": logits are divided by one temperature,
fitted on held-out rows; which class comes first never changes. A threshold per class would change
it, and with a few dozen dev rows in the rare classes it would be fitted to noise.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from fusion.inference.temperature import Temperature
from fusion.labels import UNLABELLED, Labels, Logits

NUM_BINS = 15
MIN_ROWS = 20  # below that a temperature follows single rows
_BOUNDS = (0.05, 20.0)


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The rows whose first choice has a probability above `lower` and up to `upper`.

    confidence: the mean of those probabilities; accuracy: how often that choice is right
    """

    lower: float
    upper: float
    confidence: float
    accuracy: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """nll: mean negative log-probability of the true class, nats

    ece:  expected calibration error: |accuracy - confidence| over the bins, weighted by rows
    bins: those of the NUM_BINS that hold a row, in order
    """

    nll: float
    ece: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, kw_only=True)
class HeadCalibration:
    """Calibration of one head on its labelled rows, before and after temperature scaling.

    `temperature.fitted` False: dev allowed no fit, so `before` and `after` are the same.
    """

    rows: int
    temperature: Temperature
    before: Reliability
    after: Reliability


def fit_temperature(logits: Logits, labels: Labels) -> Temperature:
    """The temperature that maximises the likelihood of dev's labels.

    It stays 1, with `rows=0`, for fewer than MIN_ROWS labelled rows, or if every first choice is
    right: the likelihood then grows without bound as the temperature approaches 0.
    """
    logits, labels = _labelled(logits, labels)
    if len(labels) < MIN_ROWS or (logits.argmax(axis=1) == labels).all():
        return Temperature()

    def likelihood_at(log_temperature: float) -> float:
        tried = Temperature(value=math.exp(log_temperature))
        return _negative_log_likelihood(tried.log_probabilities(logits), labels)

    # Convex in 1 / temperature, so it has one minimum in the logarithm as well.
    found = minimize_scalar(likelihood_at, bounds=np.log(_BOUNDS), method="bounded")
    return Temperature(value=math.exp(float(found.x)), rows=len(labels))


def calibrate(logits: Logits, labels: Labels, temperature: Temperature) -> HeadCalibration | None:
    """None where no row is labelled."""
    logits, labels = _labelled(logits, labels)
    if len(labels) == 0:
        return None
    return HeadCalibration(
        rows=len(labels),
        temperature=temperature,
        before=reliability(Temperature().log_probabilities(logits), labels),
        after=reliability(temperature.log_probabilities(logits), labels),
    )


def reliability(log_probabilities: Logits, labels: Labels) -> Reliability:
    """log_probabilities [rows, classes], labels [rows], all of them known and at least one."""
    confidence = np.exp(log_probabilities.max(axis=1))  # [rows]
    right = log_probabilities.argmax(axis=1) == labels
    # Bins are open below and closed above, as Guo et al. draw them; none starts at confidence 0.
    number = np.clip(np.ceil(confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    bins = []
    for index in range(NUM_BINS):
        inside = number == index
        if inside.any():
            bins.append(
                ReliabilityBin(
                    lower=index / NUM_BINS,
                    upper=(index + 1) / NUM_BINS,
                    confidence=float(confidence[inside].mean()),
                    accuracy=float(right[inside].mean()),
                    rows=int(inside.sum()),
                )
            )
    return Reliability(
        nll=_negative_log_likelihood(log_probabilities, labels),
        ece=sum(abs(each.accuracy - each.confidence) * each.rows for each in bins) / len(labels),
        bins=tuple(bins),
    )


def _negative_log_likelihood(log_probabilities: Logits, labels: Labels) -> float:
    return -float(log_probabilities[np.arange(len(labels)), labels].mean())


def _labelled(logits: Logits, labels: Labels) -> tuple[Logits, Labels]:
    known = labels != UNLABELLED
    return logits[known], labels[known]
