"""What each modality gave, where the test decided which one carries the label."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from fusion.data.split import FusionData
from fusion.inference.checkpoint import Checkpoint
from fusion.inference.decoding import Decoding
from fusion.inference.predict import predict_rows, predict_subsets
from fusion.inference.shapley import NOTHING, ModalityShares, explain_modalities, shapley_values
from fusion.inference.temperature import Temperature
from fusion.model.dims import ModelConfig
from fusion.training.build import build_model
from fusion.training.fit import FitConfig, fit
from pipeline.schema import EMOTIONS

pytestmark = pytest.mark.heavy

MODALITIES = ("text", "video", "audio")
TEXT, VIDEO, AUDIO = range(3)


@pytest.fixture
def dev(load_planted) -> FusionData:
    return load_planted("dev", 120, modalities=MODALITIES, carriers=["audio"])


@pytest.fixture(scope="module")
def checkpoint(load_shared) -> Checkpoint:
    """Trained where audio alone carries the emotion."""
    planted = {"modalities": MODALITIES, "carriers": ["audio"]}
    train, dev = load_shared("train", 400, **planted), load_shared("dev", 120, **planted)
    model = build_model(train, ModelConfig(), seed=0)
    config = FitConfig(epochs=6, batch_size=64, learning_rate=3e-3, modality_dropout=0.3)
    fit(model, train, dev, config, seed=0)
    return describe(model, train)


def describe(model: torch.nn.Module, train: FusionData, **changes: object) -> Checkpoint:
    return Checkpoint(
        dims=model.dims,
        model=model,
        recipe=train.recipe,
        projection_hash=None,
        emotion_counts=(40, 10, 10, 10, 10, 10, 10),
        sentiment_counts=(1,) * 3,
        settings={},
        features=None,
        **changes,
    )


@pytest.fixture
def untrained(load_planted, dev) -> Checkpoint:
    return describe(build_model(dev, ModelConfig(), seed=1), dev)


def explain(checkpoint: Checkpoint, data: FusionData) -> ModalityShares:
    return explain_modalities(checkpoint, predict_subsets(checkpoint, data, run=""))


def with_some_absent(data: FusionData) -> FusionData:
    """Every way a row can lack modalities, all of them included."""
    ways = torch.tensor(list(itertools.product([True, False], repeat=3)))
    return dataclasses.replace(data, present=ways[torch.arange(len(data)) % len(ways)])


def test_the_modality_that_carries_the_label_gets_the_credit(checkpoint, dev):
    shares = explain(checkpoint, dev)
    strength = np.abs(shares.values).mean(axis=0)
    assert strength[AUDIO] > 5 * max(strength[TEXT], strength[VIDEO])
    assert (shares.decisive == AUDIO).mean() > 0.95
    assert shares.decided_rows[AUDIO] == (shares.decisive == AUDIO).sum()


def test_values_add_up_to_what_all_say_over_what_nothing_says(untrained, dev):
    shares = explain(untrained, with_some_absent(dev))
    assert shares.values.sum(axis=1) == pytest.approx(shares.of_all - shares.of_nothing, abs=1e-12)


def test_nothing_says_the_share_in_train(untrained, dev):
    shares = explain(untrained, dev)
    wanted = [math.log(0.4 if emotion == 0 else 0.1) for emotion in shares.predicted]
    assert shares.of_nothing == pytest.approx(wanted)


def test_all_say_the_calibrated_probability_of_the_prediction(untrained, dev):
    decoding = Decoding(
        emotion=Temperature(value=0.25, rows=100),
        sentiment=Temperature(),
        sentiment_weight=1.0,
        allowed=((True,) * 3,) * 7,
    )
    shares = explain(dataclasses.replace(untrained, decoding=decoding), dev)
    logits = 4 * predict_rows(untrained, dev, run="").emotion_logits
    wanted = torch.from_numpy(logits).log_softmax(dim=1).max(dim=1).values
    assert shares.of_all == pytest.approx(wanted.numpy())


def test_an_absent_modality_gets_exactly_nothing(checkpoint, dev):
    shares = explain(checkpoint, with_some_absent(dev))
    assert np.all(shares.values[~shares.present] == 0.0)
    assert np.all(shares.values[shares.present] != 0.0)
    assert np.isfinite(shares.values).all()


def test_a_row_without_any_modality_is_decided_by_none(checkpoint, dev):
    shares = explain(checkpoint, with_some_absent(dev))
    empty = ~shares.present.any(axis=1)
    assert empty.any()
    assert np.all(shares.decisive[empty] == NOTHING)
    assert np.all(shares.decisive[~empty] != NOTHING)
    assert shares.of_all[empty] == pytest.approx(shares.of_nothing[empty])


def test_an_absent_modality_decides_nothing_even_where_the_others_speak_against():
    shares = ModalityShares(
        modalities=("text", "audio"),
        values=np.array([[-0.5, 0.0], [-0.5, -0.1]]),
        predicted=np.array([0, 0]),
        present=np.array([[True, False], [True, True]]),
        of_all=np.array([-1.5, -1.6]),
        of_nothing=np.array([-1.0, -1.0]),
    )
    assert shares.decisive.tolist() == [0, 1]
    assert shares.by_class[0].strength == pytest.approx((0.5, 0.05))
    assert [each.rows for each in shares.by_class] == [2, 0, 0, 0, 0, 0, 0]
    assert shares.by_class[1].strength == (0.0, 0.0)


def test_one_modality_gets_everything(load_planted):
    data = load_planted("dev", 40, modalities=["text"], carriers=["text"])
    shares = explain(describe(build_model(data, ModelConfig(), seed=0), data), data)
    assert shares.values[:, 0] == pytest.approx(shares.of_all - shares.of_nothing)


def test_classes_are_reported_in_order_and_hold_every_row(checkpoint, dev):
    shares = explain(checkpoint, dev)
    assert tuple(each.emotion for each in shares.by_class) == EMOTIONS
    assert sum(each.rows for each in shares.by_class) == len(dev)


def test_the_glove_game_by_hand():
    """Players 0 and 1 have a left glove each, player 2 the right one; a pair is worth 1."""
    worth = [float(bool(players & 0b100) and bool(players & 0b011)) for players in range(8)]
    assert shapley_values(np.array([worth])) == pytest.approx(np.array([[1 / 6, 1 / 6, 4 / 6]]))


def test_the_values_are_the_mean_gain_over_all_orders():
    game = np.random.default_rng(0).normal(size=(5, 8))
    wanted = np.zeros((5, 3))
    orders = list(itertools.permutations(range(3)))
    for order in orders:
        joined = 0
        for player in order:
            wanted[:, player] += (game[:, joined | 1 << player] - game[:, joined]) / len(orders)
            joined |= 1 << player
    assert shapley_values(game) == pytest.approx(wanted)
