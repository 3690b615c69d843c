"""Temperatures and calibration errors, on labels drawn from probabilities that are known."""

import math

import numpy as np
import pytest
from scipy.special import softmax

from fusion.evaluation.calibration import (
    MIN_ROWS,
    NUM_BINS,
    calibrate,
    fit_temperature,
    reliability,
)
from fusion.inference.temperature import Temperature
from fusion.labels import UNLABELLED

ROWS = 20_000


@pytest.fixture(scope="module")
def calibrated() -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from exactly the probabilities that they mean."""
    random = np.random.default_rng(3)
    logits = random.normal(size=(ROWS, 7)) * 1.5
    bounds = softmax(logits, axis=1).cumsum(axis=1)
    labels = (random.random((ROWS, 1)) > bounds[:, :-1]).sum(axis=1)
    return logits, labels


def test_logits_that_are_twice_too_sure_get_temperature_two(calibrated):
    logits, labels = calibrated
    found = fit_temperature(2 * logits, labels)
    assert found.value == pytest.approx(2, rel=0.03)
    assert found.rows == ROWS
    assert found.fitted


def test_logits_that_are_right_already_keep_temperature_one(calibrated):
    assert fit_temperature(*calibrated).value == pytest.approx(1, rel=0.03)


def test_the_temperature_takes_the_calibration_error_away(calibrated):
    logits, labels = calibrated
    head = calibrate(2 * logits, labels, fit_temperature(2 * logits, labels))
    assert head.before.ece > 0.1
    assert head.after.ece < 0.015
    assert head.after.nll < head.before.nll - 0.1
    assert head.rows == ROWS


def test_the_temperature_changes_no_first_choice(calibrated):
    logits, _ = calibrated
    after = Temperature(value=3.7).log_probabilities(logits)
    assert np.array_equal(after.argmax(axis=1), logits.argmax(axis=1))
    assert np.exp(after).sum(axis=1) == pytest.approx(1)


def test_the_calibration_error_by_hand():
    """Two rows at 0.95, one of them right; two at 0.65, both right."""
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [0.35, 0.65]])
    measured = reliability(np.log(probabilities), np.array([0, 1, 1, 1]))
    low, high = measured.bins
    assert (low.rows, low.accuracy, low.confidence) == (2, 1.0, pytest.approx(0.65))
    assert (high.rows, high.accuracy, high.confidence) == (2, 0.5, pytest.approx(0.95))
    assert low.lower < 0.65 <= low.upper
    assert measured.ece == pytest.approx((2 * 0.35 + 2 * 0.45) / 4)
    wanted = -(math.log(0.95) + math.log(0.05) + 2 * math.log(0.65)) / 4
    assert measured.nll == pytest.approx(wanted)


def test_full_confidence_falls_into_the_last_bin():
    measured = reliability(np.array([[0.0, -np.inf]]), np.array([0]))
    assert [each.upper for each in measured.bins] == [1.0]
    assert (measured.ece, measured.nll) == (0.0, 0.0)


def test_every_row_is_in_one_bin(calibrated):
    head = calibrate(*calibrated, Temperature())
    assert sum(each.rows for each in head.after.bins) == ROWS
    assert len(head.after.bins) <= NUM_BINS
    assert head.before == head.after


def test_unlabelled_rows_count_nowhere(calibrated):
    logits, labels = calibrated
    some = np.where(np.arange(ROWS) < 500, labels, UNLABELLED)
    assert fit_temperature(logits, some) == fit_temperature(logits[:500], labels[:500])
    assert calibrate(logits, some, Temperature()).rows == 500


@pytest.mark.parametrize("rows", [0, MIN_ROWS - 1])
def test_too_few_labelled_rows_leave_the_temperature_at_one_and_say_so(calibrated, rows):
    logits, labels = calibrated
    some = np.where(np.arange(ROWS) < rows, labels, UNLABELLED)
    found = fit_temperature(2 * logits, some)
    assert (found.value, found.fitted) == (1.0, False)


def test_rows_that_are_all_right_leave_the_temperature_at_one(calibrated):
    """No finite temperature is the likeliest then; the lowest allowed would be made up."""
    logits, _ = calibrated
    assert not fit_temperature(logits, logits.argmax(axis=1)).fitted


def test_a_head_without_labels_has_no_calibration(calibrated):
    logits, _ = calibrated
    assert calibrate(logits, np.full(ROWS, UNLABELLED), Temperature()) is None


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, "1", True, 1])
def test_a_temperature_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="finite float above 0"):
        Temperature(value=value)
