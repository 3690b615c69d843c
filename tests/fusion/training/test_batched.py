"""Trainings side by side give what each would give alone."""

import dataclasses
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from fusion.data.batches import Rows
from fusion.data.split import FusionData
from fusion.inference.predict import predict
from fusion.model.dims import FusionType, ModelConfig
from fusion.model.dropout import Dropout, MaskSource, random_bytes
from fusion.model.joins import JOINS
from fusion.training.build import build_model
from fusion.training.fit import FitConfig, Training, fit_together
from fusion.training.history import EpochResult
from pipeline.errors import UsageError

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
CONFIG = FitConfig(epochs=2, learning_rate=2e-3, batch_size=40)


def make_training(train: FusionData, dev: FusionData, model: ModelConfig, *, seed: int) -> Training:
    built = build_model(train, model, seed=seed)
    return Training(
        model=built,
        train=Rows.prepare(built, train, CPU),
        dev=Rows.prepare(built, dev, CPU),
        seed=seed,
    )


def logits(training: Training) -> torch.Tensor:
    return predict(training.model, training.dev).emotion_logits


def test_folds_of_one_copy_of_the_rows_train_as_those_with_their_own(
    load_planted: Callable,
) -> None:
    whole = load_planted("train", 210)
    # What stands in an absent row means nothing.
    whole.present[::7, 1] = False
    whole.features["audio"][::7] = float("nan")
    folds = [(np.arange(70, 210), np.arange(70)), (np.arange(150), np.arange(150, 210))]
    model = ModelConfig(projection=16, hidden=24)
    own, shared = [], []
    for number, (train, dev) in enumerate(folds):
        own.append(make_training(whole.take(train), whole.take(dev), model, seed=number))
        built = build_model(whole.take(train), model, seed=number)
        of_train, of_dev = (
            Rows.of_shared(built, whole.features, whole.take(rows), torch.as_tensor(rows))
            for rows in (train, dev)
        )
        shared.append(Training(model=built, train=of_train, dev=of_dev, seed=number))
    for ours, theirs in zip(own, shared, strict=True):
        assert torch.equal(logits(ours), logits(theirs))
    fit_together(own, CONFIG)
    fit_together(shared, CONFIG)
    for ours, theirs in zip(own, shared, strict=True):
        assert torch.equal(logits(ours), logits(theirs))
        assert theirs.train.features["text"].data_ptr() == whole.features["text"].data_ptr()


CASES = [
    ("late", "none", 1),
    ("late", "dialogue", 1),
    ("attention", "none", 2),
    *(
        pytest.param(fusion, "none", cores, marks=pytest.mark.slow)
        for fusion in JOINS
        for cores in (1, 2)
    ),
]


@pytest.mark.parametrize(("fusion", "context", "cores"), CASES)
def test_folds_and_seeds_side_by_side_equal_each_alone(
    fusion: FusionType, context: str, cores: int, load_planted: Callable
) -> None:
    train, dev = load_planted("train", 210), load_planted("dev", 60)
    model = ModelConfig(fusion=fusion, context=context, projection=16, hidden=24)  # type: ignore[arg-type]
    # As folds are: five rows of the second are filled up, and the third takes fewer steps.
    parts = [train.take(torch.arange(start, 200).numpy()) for start in (0, 5, 45)]
    assert [CONFIG.steps(len(part)) for part in parts] == [5, 5, 4]

    def make() -> list[Training]:
        dealt = [(parts[0], 0), (parts[0], 1), (parts[1], 0), (parts[2], 1)]
        return [make_training(part, dev, model, seed=seed) for part, seed in dealt]

    together = make()
    results = fit_together(together, CONFIG, cores=cores)
    for training, result, alone in zip(together, results, make(), strict=True):
        expected = fit_together([alone], CONFIG)[0]
        torch.testing.assert_close(logits(training), logits(alone), atol=1e-4, rtol=1e-4)
        for mine, theirs in zip(result.history, expected.history, strict=True):
            assert mine.train_loss == pytest.approx(theirs.train_loss, abs=1e-5)
            assert mine.dev_loss == pytest.approx(theirs.dev_loss, abs=1e-4)
            assert mine.learning_rate == theirs.learning_rate
    assert not torch.allclose(logits(together[0]), logits(together[1]))  # seeds differ
    assert not torch.allclose(logits(together[0]), logits(together[2]))  # and so do folds


def test_a_training_that_stops_early_keeps_its_best_weights(load_planted: Callable) -> None:
    train, dev = load_planted("train", 200), load_planted("dev", 60)
    config = dataclasses.replace(CONFIG, epochs=30, patience=1, learning_rate=4e-3)
    trainings = [make_training(train, dev, ModelConfig(), seed=seed) for seed in range(3)]
    results = fit_together(trainings, config)
    assert len({len(result.history) for result in results}) > 1  # they stop apart
    for training, result in zip(trainings, results, strict=True):
        found = (logits(training).argmax(1) == training.dev.emotion).float().mean()
        assert result.best.score > 0.3
        assert found > 0.2


def test_a_loss_that_is_no_number_ends_all_with_one_line(load_planted: Callable) -> None:
    train, dev = load_planted("train", 200), load_planted("dev", 60)
    config = dataclasses.replace(CONFIG, learning_rate=1e38)
    trainings = [make_training(train, dev, ModelConfig(), seed=seed) for seed in range(2)]
    with pytest.raises(UsageError, match="lower learning_rate"):
        fit_together(trainings, config, cores=2)


def test_masks_drop_the_asked_share_and_keep_the_mean() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 1000), Dropout(0.4))
    source = MaskSource.of(model, lambda: model(torch.zeros(1, 4)))
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    masks = source.draw([50, 30], 50, generators)
    mask = masks["1.mask"]
    assert mask.shape == (2, 50, 1000)
    assert (mask[0] == 0).float().mean() == pytest.approx(0.4, abs=0.01)
    assert mask[0].mean() == pytest.approx(1, abs=0.02)
    assert not mask[1, 30:].any()
    assert not torch.equal(mask[0, :30], mask[1, :30])


def test_the_masks_are_found_without_touching_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model = torch.nn.Sequential(torch.nn.Linear(4, 10), Dropout(0.4))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert len(MaskSource.of(model, lambda: model(torch.zeros(1, 4))).sites) == 1
    assert torch.equal(torch.rand(1), expected)


def test_a_chance_next_to_one_is_still_a_chance() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 1000), Dropout(0.999))
    source = MaskSource.of(model, lambda: model(torch.zeros(1, 4)))
    mask = source.draw([50], 50, [torch.Generator().manual_seed(0)])["1.mask"]
    assert (mask == 0).float().mean() == pytest.approx(255 / 256, abs=0.01)
    assert mask.mean() == pytest.approx(1, abs=0.1)


def test_random_bytes_take_all_values_alike() -> None:
    counts = torch.bincount(random_bytes(256_000, torch.Generator().manual_seed(0)).int())
    assert len(counts) == 256
    assert counts.min() > 850
    assert counts.max() < 1150


def test_a_mask_that_nobody_hands_in_is_drawn() -> None:
    dropout = Dropout(0.5)
    assert 0.3 < (dropout(torch.ones(1000)) == 0).float().mean() < 0.7
    assert torch.equal(dropout.eval()(torch.ones(10)), torch.ones(10))


@pytest.mark.parametrize("cores", [1, 2])
def test_an_interruption_ends_all_within_a_step(cores: int, load_planted: Callable) -> None:
    """As Ctrl-C does: it reaches the waiting thread, never those that train."""
    train, dev = load_planted("train", 200), load_planted("dev", 60)
    trainings = [make_training(train, dev, ModelConfig(), seed=seed) for seed in range(2)]
    config = dataclasses.replace(CONFIG, epochs=100_000, patience=100_000)
    main, seen = threading.get_ident(), []

    def interrupt(number: int, result: EpochResult) -> None:
        seen.append(number)
        if len(seen) == 3:
            signal.pthread_kill(main, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit_together(trainings, config, interrupt, cores=cores)
    assert len(seen) < 100
