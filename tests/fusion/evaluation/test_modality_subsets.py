"""The run with modalities hidden: what it says then, and that it says something at all."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from fusion.data.split import FusionData
from fusion.evaluation.evaluate import report_subsets
from fusion.evaluation.modality_subsets import score_subsets
from fusion.evaluation.report import EvalReport
from fusion.inference.checkpoint import Checkpoint
from fusion.inference.predict import hide_all_but, predict_rows, predict_subsets
from fusion.inference.subsets import choose_subsets
from fusion.labels import UNLABELLED
from fusion.model.dims import ModelConfig
from fusion.training.build import build_model
from fusion.training.fit import FitConfig, fit

PLANTED = {"modalities": ["text", "audio"], "carriers": ["audio"], "strength": 5.0}


@pytest.fixture
def dev(load_planted) -> FusionData:
    return load_planted("dev", 120, **PLANTED)


@pytest.fixture(scope="module")
def checkpoint(load_shared) -> Checkpoint:
    """Trained where audio alone carries the emotion."""
    train, dev = load_shared("train", 400, **PLANTED), load_shared("dev", 120, **PLANTED)
    model = build_model(train, ModelConfig(), seed=0)
    fit(model, train, dev, FitConfig(epochs=6, batch_size=64, learning_rate=3e-3), seed=0)
    return Checkpoint(
        dims=model.dims,
        model=model,
        recipe=train.recipe,
        projection_hash=None,
        emotion_counts=(1,) * 7,
        sentiment_counts=(1,) * 3,
        settings={},
        features=None,
    )


def measure(checkpoint: Checkpoint, data: FusionData) -> EvalReport:
    return report_subsets(checkpoint, predict_subsets(checkpoint, data, run="planted"))


def test_every_choice_of_modalities_is_there_once():
    subsets = choose_subsets(("text", "video", "audio"))
    assert len(subsets) == len(set(map(frozenset, subsets))) == 7
    assert subsets[0] == ("text",)
    assert subsets[-1] == ("text", "video", "audio")


def test_a_masked_modality_is_absent_and_an_absent_one_stays_absent(dev):
    dev.present[3] = torch.tensor([True, False])
    hidden = hide_all_but(("audio",), dev)
    assert not hidden.present[:, 0].any()
    assert hidden.present[:, 1].sum() == len(dev) - 1
    assert dev.present[:, 0].all()
    assert hidden.features is dev.features


@pytest.mark.heavy
def test_without_the_modality_that_carries_the_label_little_is_left(checkpoint, dev):
    text, audio, both = measure(checkpoint, dev).subsets
    assert (text.modalities, audio.modalities) == (("text",), ("audio",))
    assert audio.emotion_f1 > 0.9
    assert text.emotion_f1 < 0.4
    assert both.emotion_f1 > 0.9
    assert {each.rows for each in (text, audio, both)} == {len(dev)}


def test_all_modalities_score_as_the_report_does(checkpoint, dev):
    report = measure(checkpoint, dev)
    assert report.subsets[-1].emotion_f1 == pytest.approx(report.emotion.model.weighted_f1)
    assert report.subsets[-1].sentiment_f1 == pytest.approx(report.sentiment.model.weighted_f1)


def test_rows_that_then_have_nothing_still_get_finite_logits(checkpoint, dev):
    dev.present[:50, 1] = False
    predictions = predict_rows(checkpoint, hide_all_but(("audio",), dev), run="planted")
    assert np.isfinite(predictions.emotion_logits).all()
    assert np.isfinite(predictions.sentiment_logits).all()
    audio = measure(checkpoint, dev).subsets[1]
    assert (audio.rows, audio.rows_seen) == (120, 70)
    assert math.isfinite(audio.emotion_ece)


def test_whatever_stands_in_a_hidden_row_is_not_seen(checkpoint, dev):
    hidden = hide_all_but(("audio",), dev)
    noise = {**dev.features, "text": torch.full_like(dev.features["text"], math.nan)}
    other = dataclasses.replace(hidden, features=noise)
    one, two = (predict_rows(checkpoint, each, run="planted") for each in (hidden, other))
    assert np.array_equal(one.emotion_logits, two.emotion_logits)


def test_a_head_without_labels_has_no_scores(checkpoint, dev):
    unlabelled = dataclasses.replace(dev, emotion=torch.full_like(dev.emotion, UNLABELLED))
    scores = score_subsets(predict_subsets(checkpoint, unlabelled, run="planted"), None)
    assert {(each.emotion_f1, each.emotion_ece) for each in scores} == {(None, None)}
    assert all(each.sentiment_f1 is not None for each in scores)
