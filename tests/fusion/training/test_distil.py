"""`--distil RUN`: a model learns from a teacher's calibrated probabilities beside the labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.data.batches import Rows
from fusion.data.load import load_split
from fusion.data.split import FusionData
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predict import predict, predict_rows
from fusion.labels import UNLABELLED
from fusion.model.dims import ModelConfig
from fusion.model.fusion import FusionOutput
from fusion.training.build import build_model
from fusion.training.config import TrainConfig
from fusion.training.distil import check_teacher_of, soft_targets
from fusion.training.fit import FitConfig, Training, fit_together
from fusion.training.losses import LossConfig, MultiTaskLoss, soft_loss
from fusion.training.train import TrainResult, train_fusion
from pipeline.errors import InputError, MismatchError, UsageError
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipKey


@pytest.fixture
def train(
    write_split: Callable[..., object], features: Path, tmp_path: Path
) -> Callable[..., TrainResult]:
    write_split("train", 160)
    write_split("dev", 40)

    def run(name: str, loss: LossConfig | None = None, **settings: object) -> TrainResult:
        fit = FitConfig(epochs=4, loss=loss or LossConfig())
        config = {"features": features, "out": tmp_path / name, "fit": fit} | settings
        return train_fusion(TrainConfig(**config))  # type: ignore[arg-type]

    return run


def test_the_loss_against_a_teacher_is_the_cross_entropy_computed_by_hand() -> None:
    logits = torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    soft = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 0.0]])  # the second row has no teacher
    halves = torch.tensor([1.0, 0.0, -1.0])  # at temperature 2
    logs = halves - halves.exp().sum().log()
    by_hand = -4 * float((soft[0] * logs).sum())
    assert float(soft_loss(logits, soft, 2.0)) == pytest.approx(by_hand, rel=1e-5)
    assert float(soft_loss(logits, soft, 2.0, num_rows=4)) == pytest.approx(by_hand / 4, rel=1e-5)


def test_labels_and_teacher_share_the_loss_as_configured() -> None:
    output = FusionOutput(torch.randn(5, 7), torch.randn(5, 3))
    emotion, sentiment = torch.arange(5), torch.tensor([0, 1, 2, UNLABELLED, 0])
    soft = {"emotion": torch.full((5, 7), 1 / 7), "sentiment": torch.full((5, 3), 1 / 3)}

    def loss(weight: float, **more: object) -> float:
        config = LossConfig(teacher_weight=weight)
        both = MultiTaskLoss.from_labels(config, emotion, sentiment)
        return float(both(output, emotion, sentiment, **more))  # type: ignore[arg-type]

    alone, teacher = loss(0.5), loss(1.0, soft=soft)
    assert loss(0.25, soft=soft) == pytest.approx(0.75 * alone + 0.25 * teacher, rel=1e-5)


@pytest.mark.heavy
def test_soft_targets_are_the_calibrated_probabilities_of_each_row(
    train: Callable[..., TrainResult], features: Path
) -> None:
    run = train("teacher").run
    checkpoint = read_checkpoint(run)
    data = load_split(features, "train", modalities=None, input="raw")
    logits = predict_rows(checkpoint, data, run="").emotion_logits
    assert checkpoint.decoding is not None
    probabilities = np.exp(checkpoint.decoding.emotion.log_probabilities(logits))
    last = data.take(np.arange(len(data))[::-1][:20].copy())
    plain = soft_targets(run, last, 1.0)["emotion"].numpy()
    np.testing.assert_allclose(plain, probabilities[::-1][:20], atol=1e-6)
    softened = np.sqrt(probabilities[::-1][:20])
    softened /= softened.sum(axis=1, keepdims=True)
    soft = soft_targets(run, last, 2.0)["emotion"].numpy()
    np.testing.assert_allclose(soft, softened, atol=1e-6)


def test_a_student_of_the_teacher_alone_says_what_it_says(
    load_planted: Callable[..., FusionData],
) -> None:
    """Fear and positive, whatever the labels say."""
    train, dev = load_planted("train", 120), load_planted("dev", 40)
    model = build_model(train, ModelConfig(), seed=0)
    soft = {
        "emotion": torch.eye(7)[torch.full((120,), EMOTIONS.index("fear"))],
        "sentiment": torch.eye(3)[torch.full((120,), SENTIMENTS.index("positive"))],
    }
    cpu = torch.device("cpu")
    training = Training(
        model=model,
        train=Rows.prepare(model, train, cpu, soft),  # type: ignore[arg-type]
        dev=Rows.prepare(model, dev, cpu),
        seed=0,
        chooses_epoch=False,
    )
    fit_together([training], FitConfig(epochs=3, loss=LossConfig(teacher_weight=1.0)))
    output = predict(model, Rows.prepare(model, dev, cpu))
    assert set(output.emotion_logits.argmax(1).tolist()) == {EMOTIONS.index("fear")}
    assert set(output.sentiment_logits.argmax(1).tolist()) == {SENTIMENTS.index("positive")}


@pytest.mark.heavy
def test_an_ensemble_is_distilled_as_each_member_would_be_alone(
    train: Callable[..., TrainResult],
) -> None:
    teacher = train("teacher").run
    both = train("both", ensemble=2, distil=teacher)
    single = train("single", seed=1, distil=teacher)
    assert both.members[1].best.epoch == single.best_epoch
    heads = (single.dev.emotion.model.weighted_f1, single.dev.sentiment.model.weighted_f1)
    assert both.members[1].best.score == pytest.approx(sum(heads) / 2, abs=1e-6)  # type: ignore[arg-type]


def test_a_teacher_that_has_not_these_rows_is_refused(
    train: Callable[..., TrainResult], features: Path
) -> None:
    run = train("teacher").run
    data = load_split(features, "train", modalities=None, input="raw")
    moved = replace(data, keys=(ClipKey("train", 900, 0), *data.keys[1:]))
    with pytest.raises(InputError, match=r"train dia900_utt0 \(1 such rows\)"):
        soft_targets(run, moved, 1.0)


def test_a_teacher_of_another_corpus_with_the_same_numbers_is_refused(
    train: Callable[..., TrainResult], features: Path
) -> None:
    run = train("teacher").run
    data = load_split(features, "train", modalities=None, input="raw")
    texts = ["We were on a break!", *data.text[1:]]
    said = {
        key: (speaker, text)
        for key, speaker, text in zip(data.keys, data.speaker, texts, strict=True)
    }
    first = data.keys[0]
    wrong = rf"its {first} is .* and here it is .*We were on a break!' \(1 such rows\)"
    with pytest.raises(MismatchError, match=wrong):
        check_teacher_of(run, said)
    with pytest.raises(MismatchError, match=wrong):
        soft_targets(run, replace(data, text=tuple(texts)), 1.0)


def test_settings_of_a_teacher_without_one_are_refused() -> None:
    fit = FitConfig(loss=LossConfig(teacher_weight=0.9))
    with pytest.raises(UsageError, match=r"fit\.loss\.teacher_weight = 0\.9.*--distil"):
        TrainConfig(fit=fit)
