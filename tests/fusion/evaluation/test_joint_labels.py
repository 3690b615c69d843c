"""Both heads decoded together: where one is wrong and the other sure, the sure one wins."""

import dataclasses
import json

import numpy as np
import pytest

from fusion.evaluation.joint_labels import allowed_pairs, fit_decoding, score_joint
from fusion.inference.decoding import Decoding, JointLabels, contradicts, decode
from fusion.inference.predictions import Predictions
from fusion.inference.temperature import Temperature
from fusion.labels import UNLABELLED
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipKey

NEUTRAL, SURPRISE, FEAR, JOY = (
    EMOTIONS.index(name) for name in "neutral surprise fear joy".split()
)
POSITIVE, NEGATIVE = SENTIMENTS.index("positive"), SENTIMENTS.index("negative")
SENTIMENT_OF = np.array([0, 1, 2, 2, 1, 2, 2])  # of each emotion; surprise is often 2 as well


def predictions_of(
    emotion: np.ndarray,
    sentiment: np.ndarray,
    emotion_logits: np.ndarray,
    sentiment_logits: np.ndarray,
) -> Predictions:
    rows = len(emotion)
    return Predictions(
        run="planted",
        split="dev",
        keys=tuple(ClipKey("dev", row // 5, row % 5) for row in range(rows)),
        text=("words",) * rows,
        speaker=("Joey",) * rows,
        modalities=("text",),
        present=np.ones((rows, 1), np.bool_),
        emotion=emotion,
        sentiment=sentiment,
        emotion_logits=emotion_logits,
        sentiment_logits=sentiment_logits,
    )


def noisy(labels: np.ndarray, classes: int, strength: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(len(labels), classes)) + strength * np.eye(classes)[labels]


def joint(decoding: Decoding, predictions: Predictions) -> JointLabels:
    return decode(decoding, predictions.emotion_logits, predictions.sentiment_logits)


@pytest.fixture(scope="module")
def meld_like() -> tuple[np.ndarray, np.ndarray]:
    """Labels in which the sentiment follows from the emotion, except for surprise."""
    random = np.random.default_rng(5)
    emotion = random.integers(0, 7, 2000)
    sentiment = SENTIMENT_OF[emotion]
    other = (emotion == SURPRISE) & (random.random(2000) < 0.5)
    return emotion, np.where(other, NEGATIVE, sentiment)


@pytest.fixture(scope="module")
def sure_of_sentiment(meld_like) -> Predictions:
    """The sentiment head is nearly always right, the emotion head often wrong."""
    emotion, sentiment = meld_like
    return predictions_of(
        emotion, sentiment, noisy(emotion, 7, 1.5, 1), noisy(sentiment, 3, 5.0, 2)
    )


def test_the_pairs_are_those_that_occur_in_train(meld_like):
    allowed = np.array(allowed_pairs(*meld_like))
    assert allowed.sum() == 8
    assert allowed[SURPRISE].tolist() == [False, True, True]
    assert allowed[NEUTRAL].tolist() == [True, False, False]


def test_rows_with_one_label_say_nothing_of_pairs(meld_like):
    emotion, sentiment = meld_like
    half = np.where(np.arange(len(emotion)) % 2, sentiment, UNLABELLED)
    assert allowed_pairs(emotion, half) == allowed_pairs(*meld_like)


def test_a_corpus_that_labels_one_head_allows_every_pair(meld_like):
    emotion, _ = meld_like
    assert np.all(allowed_pairs(emotion, np.full(len(emotion), UNLABELLED)))


def test_an_emotion_that_train_never_pairs_may_have_any_sentiment(meld_like):
    emotion, sentiment = meld_like
    without = np.where(emotion == FEAR, UNLABELLED, sentiment)
    allowed = np.array(allowed_pairs(emotion, without))
    assert allowed[FEAR].all()
    assert allowed[JOY].tolist() == [False, True, False]


def test_a_sure_sentiment_corrects_an_unsure_emotion():
    emotion_logits = np.full((1, 7), -9.0)
    emotion_logits[0, [FEAR, JOY]] = [0.1, 0.0]
    predictions = predictions_of(
        np.array([JOY]), np.array([POSITIVE]), emotion_logits, np.array([[0.0, 4.0, 0.0]])
    )
    decoding = planted_decoding()
    labels = joint(decoding, predictions)
    assert (labels.emotion[0], labels.sentiment[0]) == (JOY, POSITIVE)


def test_the_joint_score_is_the_sum_over_temperatures_by_hand():
    """A sentiment that counts little, or is made unsure by its temperature, corrects nothing."""
    emotion_logits = np.full((1, 7), -9.0)
    emotion_logits[0, [FEAR, JOY]] = [1.0, 0.0]  # 1 apart
    predictions = predictions_of(
        np.array([JOY]), np.array([POSITIVE]), emotion_logits, np.array([[-9.0, 2.0, 0.0]])
    )  # 2 apart

    def emotion_with(**changes: object) -> int:
        decoding = dataclasses.replace(planted_decoding(), **changes)
        return int(joint(decoding, predictions).emotion[0])

    assert emotion_with(sentiment_weight=0.51) == JOY
    assert emotion_with(sentiment_weight=0.49) == FEAR
    assert emotion_with(sentiment=Temperature(value=1.9)) == JOY
    assert emotion_with(sentiment=Temperature(value=2.1)) == FEAR
    assert emotion_with(emotion=Temperature(value=0.51)) == JOY
    assert emotion_with(emotion=Temperature(value=0.49)) == FEAR


def test_no_contradiction_is_left(meld_like, sure_of_sentiment):
    decoding = fit_decoding(sure_of_sentiment, allowed_pairs(*meld_like))
    scores = score_joint(decoding, sure_of_sentiment)
    assert scores.contradictions > 0.1
    assert not contradicts(decoding, joint(decoding, sure_of_sentiment)).any()


def test_what_the_joint_labels_change_is_counted(meld_like, sure_of_sentiment):
    decoding = fit_decoding(sure_of_sentiment, allowed_pairs(*meld_like))
    scores = score_joint(decoding, sure_of_sentiment)
    labels = joint(decoding, sure_of_sentiment)
    changed = labels.emotion != sure_of_sentiment.predicted_emotion
    assert scores.emotion_rows_changed == changed.sum() > 0
    assert scores.rows_changed >= scores.contradictions * scores.rows
    assert scores.emotion_f1_joint > scores.emotion_f1 + 0.05


def test_where_every_pair_may_be_each_head_keeps_its_first_choice(sure_of_sentiment):
    decoding = fit_decoding(sure_of_sentiment, ((True,) * 3,) * 7)
    labels = joint(decoding, sure_of_sentiment)
    assert np.array_equal(labels.emotion, sure_of_sentiment.predicted_emotion)
    assert np.array_equal(labels.sentiment, sure_of_sentiment.predicted_sentiment)
    assert decoding.sentiment_weight == 1.0  # all weights score the same
    assert score_joint(decoding, sure_of_sentiment).rows_changed == 0


def test_the_weight_goes_to_the_head_that_knows(meld_like):
    """Probabilities of another split than dev's would mislead: a sentiment head that is too sure
    of nothing must not overrule."""
    emotion, sentiment = meld_like
    allowed = allowed_pairs(emotion, sentiment)
    wrong = 4 * noisy(np.roll(sentiment, 1), 3, 1.0, 3)  # unrelated to its row
    lost = predictions_of(
        emotion, np.full_like(sentiment, UNLABELLED), noisy(emotion, 7, 3, 4), wrong
    )
    assert fit_decoding(lost, allowed).sentiment_weight == 0.125


def test_a_head_without_labels_is_decoded_and_not_scored(meld_like, sure_of_sentiment):
    unlabelled = np.full(len(sure_of_sentiment), UNLABELLED)
    half = dataclasses.replace(sure_of_sentiment, sentiment=unlabelled)
    decoding = fit_decoding(half, allowed_pairs(*meld_like))
    scores = score_joint(decoding, half)
    assert not decoding.sentiment.fitted
    assert (scores.sentiment_f1, scores.sentiment_f1_joint) == (None, None)
    assert scores.emotion_f1_joint is not None


def planted_decoding() -> Decoding:
    allowed = tuple(tuple(SENTIMENT_OF[emotion] == k for k in range(3)) for emotion in range(7))
    return Decoding(
        emotion=Temperature(),
        sentiment=Temperature(),
        sentiment_weight=1.0,
        allowed=tuple(tuple(map(bool, row)) for row in allowed),
    )


def test_a_decoding_goes_through_json_and_back():
    decoding = dataclasses.replace(planted_decoding(), emotion=Temperature(value=1 / 3, rows=1109))
    assert Decoding.from_dict(json.loads(json.dumps(decoding.to_dict()))) == decoding
