"""`train-fusion --ensemble N`: one run, whose probabilities are the mean of N trainings'."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fusion.data.load import load_split
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predict import predict_rows
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.history import read_history
from fusion.training.train import TrainResult, train_fusion
from pipeline.errors import UsageError

FIT = FitConfig(epochs=3)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


@pytest.fixture
def train(
    write_split: Callable[..., object], features: Path, tmp_path: Path
) -> Callable[..., TrainResult]:
    write_split("train", 120)
    write_split("dev", 40)
    write_split("test", 40)

    def run(name: str, **settings: object) -> TrainResult:
        config = {"features": features, "out": tmp_path / name, "fit": FIT} | settings
        return train_fusion(TrainConfig(**config))  # type: ignore[arg-type]

    return run


@pytest.mark.heavy
def test_the_run_says_the_mean_of_what_its_seeds_say_alone(
    train: Callable[..., TrainResult], features: Path
) -> None:
    whole = train("whole", ensemble=3, seed=4)
    singles = [train(f"seed{seed}", seed=seed) for seed in (4, 5, 6)]
    dev = load_split(features, "dev", modalities=None, input="raw")

    def probabilities(result: TrainResult) -> np.ndarray:
        return softmax(predict_rows(read_checkpoint(result.run), dev, run="").emotion_logits)

    mean = np.mean([probabilities(each) for each in singles], axis=0)
    assert np.allclose(probabilities(whole), mean, atol=1e-5)
    assert [each.seed for each in whole.members] == [4, 5, 6]
    assert [each.best.epoch for each in whole.members] == [each.best_epoch for each in singles]


def test_its_temperature_is_that_of_the_average(
    train: Callable[..., TrainResult], features: Path
) -> None:
    """Fitted on dev: another temperature gives dev a lower likelihood."""
    checkpoint = read_checkpoint(train("whole", ensemble=2).run)
    dev = load_split(features, "dev", modalities=None, input="raw")
    logits = predict_rows(checkpoint, dev, run="").emotion_logits
    assert np.allclose(np.exp(logits).sum(axis=1), 1, atol=1e-6)  # of the averaged probabilities
    assert checkpoint.decoding is not None
    fitted = checkpoint.decoding.emotion

    def likelihood(factor: float) -> float:
        scaled = type(fitted)(value=fitted.value * factor, rows=fitted.rows)
        of_all = scaled.log_probabilities(logits)
        return float(of_all[np.arange(len(of_all)), dev.emotion.numpy()].mean())

    assert likelihood(1.0) > max(likelihood(0.8), likelihood(1.25))


def test_the_folder_has_one_file_of_weights_and_the_epochs_of_each_member(
    train: Callable[..., TrainResult],
) -> None:
    result = train("whole", ensemble=3)
    assert len(list(result.run.glob("*.safetensors"))) == 1
    lines = [json.loads(line) for line in (result.run / "members.jsonl").read_text().splitlines()]
    assert sorted({line["seed"] for line in lines}) == [0, 1, 2]
    history = read_history(result.run / "history.jsonl")
    first = [line["score"] for line in lines if line["epoch"] == 1]
    assert [each.epoch for each in history] == [1, 2, 3]
    assert history[0].score == pytest.approx(sum(first) / 3)
    metrics = json.loads((result.run / "metrics.json").read_text())
    assert [each["seed"] for each in metrics["members"]] == [0, 1, 2]


def test_it_is_measured_as_one_model(train: Callable[..., TrainResult]) -> None:
    run = train("whole", ensemble=2).run
    before = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    report = evaluate(EvaluateConfig(run=run, split="test"), draw=False)
    assert report.rows == 40
    assert report.subsets
    assert hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() == before


@pytest.mark.heavy
def test_the_same_command_makes_the_same_run(train: Callable[..., TrainResult]) -> None:
    one, other = train("one", ensemble=2), train("other", ensemble=2)
    assert (one.run / "model.safetensors").read_bytes() == (
        other.run / "model.safetensors"
    ).read_bytes()


def test_nothing_is_trained_on_from_an_ensemble(train: Callable[..., TrainResult]) -> None:
    whole = train("whole", ensemble=2)
    with pytest.raises(UsageError, match="ensemble of 2 models"):
        train("more", start=whole.run)


@pytest.mark.heavy
def test_all_members_are_trained_again_on_all_of_train(
    write_split: Callable[..., object], features: Path, tmp_path: Path
) -> None:
    write_split("train", 120)
    result = train_fusion(
        TrainConfig(features=features, out=tmp_path / "run", fit=FIT, ensemble=2, refit=True)
    )
    assert result.rows_refitted == 120
    assert read_checkpoint(result.run).dims.members == 2


@pytest.mark.parametrize("members", [0, 101])
def test_a_number_of_members_that_cannot_be_is_refused(members: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 100 models, not {members}"):
        TrainConfig(ensemble=members)
