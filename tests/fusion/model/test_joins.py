"""Every way of fusing: what is absent stays out, and what carries the label is found."""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch

from fusion.data.batches import Rows
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predict import predict
from fusion.model import dims
from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.fusion import FusionModel
from fusion.model.joins import (
    JOINS,
    AttentionJoin,
    EarlyJoin,
    FusionType,
    GatedJoin,
    Join,
    draw_small,
    layer,
)
from fusion.training.build import build_model
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig, fit
from fusion.training.train import train_fusion
from pipeline.schema import MODALITIES

pytestmark = pytest.mark.heavy

ALL: tuple[FusionType, ...] = tuple(JOINS)
DIMS = (
    ModalityDims(modality="text", layers=3, dim=10),
    ModalityDims(modality="video", layers=1, dim=6),
    ModalityDims(modality="audio", layers=1, dim=8),
)


def make_model(fusion: FusionType, **config: object) -> FusionModel:
    torch.manual_seed(0)
    model = ModelConfig(fusion=fusion, projection=16, hidden=12, **config)  # type: ignore[arg-type]
    return FusionModel(FusionDims(modalities=DIMS, model=model)).eval()


def make_features(rows: int = 5) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {d.modality: torch.randn(rows, d.layers, d.dim, generator=generator) for d in DIMS}


@pytest.mark.parametrize("fusion", ALL)
def test_values_of_an_absent_row_change_nothing(fusion: FusionType) -> None:
    model, features = make_model(fusion), make_features()
    present = torch.ones(5, 3, dtype=torch.bool)
    present[:, 1] = False
    changed = features | {"video": features["video"] * 1e6}
    before, after = model(features, present), model(changed, present)
    assert torch.equal(before.emotion_logits, after.emotion_logits)
    absent = {name: values for name, values in features.items() if name != "video"}
    assert torch.equal(before.emotion_logits, model(absent, present).emotion_logits)


@pytest.mark.parametrize("fusion", ALL)
def test_every_subset_of_modalities_gives_numbers_even_none(fusion: FusionType) -> None:
    model, features = make_model(fusion), make_features()
    for size in range(4):
        for columns in combinations(range(3), size):
            present = torch.zeros(5, 3, dtype=torch.bool)
            present[:, list(columns)] = True
            output = model(features, present)
            assert output.emotion_logits.isfinite().all()
            assert output.sentiment_logits.isfinite().all()


@pytest.mark.parametrize("fusion", ALL)
def test_one_modality_alone_works(fusion: FusionType) -> None:
    model = FusionModel(FusionDims(modalities=DIMS[:1], model=ModelConfig(fusion=fusion))).eval()
    output = model({"text": make_features()["text"]}, torch.ones(5, 1, dtype=torch.bool))
    assert output.emotion_logits.shape == (5, 7)


@pytest.mark.parametrize("fusion", ALL)
def test_gradients_stay_finite_where_a_row_has_nothing(fusion: FusionType) -> None:
    model = make_model(fusion).train()
    present = torch.zeros(5, 3, dtype=torch.bool)
    present[0] = True
    model(make_features(), present).emotion_logits.sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    "fusion",
    [name if name == "attention" else pytest.param(name, marks=pytest.mark.slow) for name in ALL],
)
def test_each_fusion_finds_a_label_that_two_modalities_share(
    fusion: FusionType, load_planted: Callable
) -> None:
    planted = {"modalities": MODALITIES, "carriers": ("text", "audio"), "strength": 3.0}
    train, dev = load_planted("train", 400, **planted), load_planted("dev", 150, **planted)
    config = ModelConfig(fusion=fusion, projection=32, hidden=64, dropout=0.2)
    model = build_model(train, config, seed=0)
    fitting = FitConfig(epochs=8, learning_rate=1e-2, batch_size=100)
    result = fit(model, train, dev, fitting, seed=0)
    both = result.best.dev_emotion_f1
    assert both > 0.8
    blind = dataclasses.replace(dev, present=dev.present & torch.tensor([False, True, False]))
    output = predict(model, Rows.prepare(model, blind, torch.device("cpu")))
    assert (output.emotion_logits.argmax(1) == dev.emotion).float().mean() < 0.4


def test_early_fusion_sees_features_that_nothing_projected() -> None:
    model = make_model("early")
    assert not EarlyJoin.projects
    assert model.join.trunk[0].in_features == 10 + 6 + 8


def test_gates_weigh_only_what_is_there() -> None:
    join = GatedJoin([4, 4, 4], hidden=5, dropout=0.0)
    vectors = [torch.randn(2, 4) for _ in range(3)]
    present = torch.tensor([[True, False, True], [False, True, False]])
    weights = join.weigh(vectors, present)
    assert weights[0, 1] == 0
    assert weights[1].tolist() == [0, 1, 0]
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_attention_refuses_a_width_that_its_heads_cannot_share() -> None:
    with pytest.raises(ValueError, match="divisible by 4"):
        AttentionJoin([6, 6], hidden=5, dropout=0.0)
    with pytest.raises(ValueError, match="divisible by 4"):
        ModelConfig(fusion="attention", projection=6)


def test_an_unknown_fusion_is_refused_with_the_known_ones_named() -> None:
    with pytest.raises(ValueError, match="late, early, hybrid, gated, attention"):
        ModelConfig(fusion="magic")  # type: ignore[arg-type]


class MeanJoin(Join):
    """A fusion that only this test knows."""

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.trunk = layer(widths[0], hidden, dropout)

    def forward(self, vectors: Sequence[torch.Tensor], present: torch.Tensor) -> torch.Tensor:
        return self.trunk(torch.stack(list(vectors)).mean(0))


def test_a_name_and_an_entry_are_enough_for_another_fusion_to_train_and_be_measured(
    write_split: Callable, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dims, "FUSION_TYPES", (*dims.FUSION_TYPES, "mean"))
    monkeypatch.setitem(JOINS, "mean", MeanJoin)  # type: ignore[misc]
    for split, rows in (("train", 300), ("dev", 100), ("test", 100)):
        write_split(split, rows)
    model = ModelConfig(fusion="mean", projection=32, hidden=64)  # type: ignore[arg-type]
    fitting = FitConfig(epochs=8, learning_rate=1e-2, batch_size=100)
    run = train_fusion(
        TrainConfig(features=features, out=tmp_path / "run", model=model, fit=fitting)
    ).run
    assert isinstance(read_checkpoint(run).model.join, MeanJoin)
    report = evaluate(EvaluateConfig(run=run, split="dev", features=features))
    assert report.emotion.model.weighted_f1 > 0.8


def test_what_is_drawn_small_is_drawn_nowhere_where_there_is_no_storage() -> None:
    torch.manual_seed(3)
    drawn = draw_small(4, 8)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.randn(4, 8) * 0.02)
    with torch.device("meta"):
        assert draw_small(4, 8).is_meta
