"""The numbers of a report, counted by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fusion.evaluation.evaluate import report_emotion, report_sentiment
from fusion.evaluation.report import EvalReport, ModalityPresence
from fusion.evaluation.scores import describe_macro, macro_f1_of, score, weighted_f1
from fusion.labels import UNLABELLED
from pipeline.schema import EMOTIONS
from pipeline.system.json_values import json_bytes

LABELS = ("neutral", "positive", "negative")


def test_scores_by_hand():
    true = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 0, 2])
    scores = score(LABELS, true, predicted)
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.confusion == ((2, 1, 0), (1, 1, 0), (0, 0, 1))
    assert [each.f1 for each in scores.classes] == pytest.approx([2 / 3, 1 / 2, 1])
    assert [each.support for each in scores.classes] == [3, 2, 1]
    assert scores.weighted_f1 == pytest.approx((3 * 2 / 3 + 2 / 2 + 1) / 6)
    assert scores.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_the_baseline_says_what_is_commonest_in_train_not_here():
    true = np.array([0, 1, 1, 1])
    head = report_sentiment(true, true, train_counts=[10, 3, 2])
    assert head.majority_label == "neutral"
    assert head.majority.accuracy == pytest.approx(1 / 4)
    # F1 of neutral: precision 1/4, recall 1
    assert head.majority.weighted_f1 == pytest.approx(0.4 / 4)
    assert head.majority.macro_f1 == pytest.approx(0.4 / 2)  # of neutral and positive
    assert head.model.accuracy == 1


def test_the_majority_on_melds_test_split_is_as_published():
    counts = [1256, 281, 50, 208, 402, 68, 345]  # per emotion, in the order of EMOTIONS
    true = np.repeat(np.arange(7), counts)
    head = report_emotion(true, true, train_counts=[4710, 1205, 268, 683, 1743, 271, 1109])
    assert head.majority.accuracy == pytest.approx(0.4812, abs=5e-5)
    assert head.majority.weighted_f1 == pytest.approx(0.3127, abs=5e-5)
    assert head.majority.macro_f1 == pytest.approx(0.0928, abs=5e-5)


def test_unlabelled_rows_are_not_measured():
    true = np.array([0, 1, UNLABELLED, UNLABELLED])
    predicted = np.array([0, 1, 2, 0])
    head = report_sentiment(true, predicted, train_counts=[1, 1, 1])
    assert (head.rows, head.model.accuracy) == (2, 1.0)
    assert weighted_f1(true, predicted) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_the_f1_that_dev_chooses_by_is_scikit_learns(seed):
    random = np.random.default_rng(seed)
    true = random.choice(7, 200, p=[0.46, 0.16, 0.04, 0.08, 0.14, 0.02, 0.1])
    predicted = np.where(random.random(200) < 0.5, true, random.integers(0, 7, 200))
    expected = f1_score(true, predicted, average="weighted", zero_division=0)
    assert weighted_f1(true, predicted) == pytest.approx(expected)
    hidden = np.append(true, [UNLABELLED] * 20)
    assert weighted_f1(hidden, np.append(predicted, [3] * 20)) == pytest.approx(expected)


def test_a_head_without_labels_has_no_score_and_no_commonest_class():
    true = np.full(3, UNLABELLED)
    head = report_sentiment(true, np.zeros(3, np.int64), train_counts=[0, 0, 0])
    assert (head.rows, head.majority_label) == (0, None)
    for scores in (head.model, head.majority):
        assert (scores.accuracy, scores.weighted_f1, scores.macro_f1) == (None, None, None)
    assert head.not_measured == "no row has such a label"
    assert weighted_f1(true, true) is None


def test_a_class_that_never_occurs_keeps_its_place_without_a_score():
    true = np.array([0, 1])
    scores = score(LABELS, true, true)
    assert [each.label for each in scores.classes] == list(LABELS)
    never = scores.classes[2]
    assert (never.precision, never.recall, never.f1, never.support) == (None, None, None, 0)
    assert (scores.macro_f1, scores.macro_classes) == (1.0, 2)


def test_a_class_that_is_only_predicted_counts_and_has_no_recall():
    scores = score(LABELS, np.array([0, 0, 1]), np.array([0, 2, 1]))
    claimed = scores.classes[2]
    assert (claimed.precision, claimed.recall, claimed.f1) == (0, None, 0)
    assert (scores.macro_f1, scores.macro_classes) == (pytest.approx((2 / 3 + 1) / 3), 3)


def test_a_class_that_is_never_predicted_has_scikit_learns_precision_of_0():
    scores = score(LABELS, np.array([0, 2]), np.array([0, 0]))
    assert (scores.classes[2].precision, scores.classes[2].recall) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
def test_macro_f1_is_scikit_learns_over_the_classes_that_occur(seed):
    random = np.random.default_rng(seed)
    classes = random.choice(7, random.integers(1, 8), replace=False)
    true, predicted = (random.choice(classes, 30) for _ in range(2))
    found = score(EMOTIONS, true, predicted)
    assert found.macro_f1 == pytest.approx(
        f1_score(true, predicted, average="macro", zero_division=0)
    )
    assert found.macro_classes == len({*true, *predicted})


def test_where_every_class_occurs_macro_f1_is_the_plain_mean_to_the_bit():
    counts = np.random.default_rng(0).integers(1, 400, (500, 7, 7))
    right, everything = np.diagonal(counts, axis1=1, axis2=2), counts.sum(1) + counts.sum(2)
    assert np.array_equal(macro_f1_of(counts), (2.0 * right / everything).mean(axis=1))


@pytest.mark.parametrize(
    ("counted", "told"),
    [
        ([7], ""),
        ([0, 0], ""),
        ([4, 0], "emotion: macro F1 over 4 of 7 classes, those that occur in truth or prediction"),
        ([4, 7], "emotion: macro F1 over 4 to 7 of 7 classes, those that occur in truth or predi"),
    ],
)
def test_what_macro_f1_is_a_mean_over_is_said_where_it_is_not_all(counted, told):
    assert describe_macro("emotion", counted, 7).startswith(told)
    assert bool(describe_macro("emotion", counted, 7)) == bool(told)


def test_the_json_says_everything_and_marks_random_weights():
    true = np.array([0, 1, 2])
    report = EvalReport(
        run="first",
        split="test",
        fingerprint="f" * 64,
        rows=3,
        presence=(ModalityPresence(modality="video", rows=2, random_weights=True),),
        emotion=report_emotion(true, true, [1] * 7),
        sentiment=report_sentiment(true, true, [1] * 3),
    )
    values = report.to_dict()
    assert values["random_modalities"] == ["video"]
    presence = {"modality": "video", "random_weights": True, "rows": 2, "foreign": ""}
    assert values["presence"] == [presence]
    assert values["emotion"]["model"]["accuracy"] == 1.0
    assert values["sentiment"]["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert json.loads(json_bytes(values)) == values
