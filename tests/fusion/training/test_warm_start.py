"""Training from a trained run: the same function before step 1, never left for a worse one."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fusion.inference.checkpoint import read_checkpoint
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.history import read_history
from fusion.training.train import train_fusion
from fusion.training.warm_start import LEARNING_RATE
from pipeline.cache.format import write_cache
from pipeline.errors import RecipeMismatch, UsageError

pytestmark = pytest.mark.heavy

QUICK = FitConfig(epochs=2, batch_size=150, learning_rate=5e-3)
GATED = ModelConfig(fusion="gated", hidden=32)


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory, plant_cache) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    for split, rows in (("train", 300), ("dev", 80)):
        write_cache(folder / f"{split}.h5", plant_cache(split, rows, modalities=["text", "video"]))
    return folder


@pytest.fixture(scope="module")
def start(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "start"
    return train_fusion(TrainConfig(features=features, out=out, model=GATED, fit=QUICK)).run


@pytest.fixture
def config(features: Path, start: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(features=features, start=start, out=tmp_path / "on", model=GATED, fit=QUICK)


def best_of(run: Path) -> dict[str, object]:
    best = json.loads((run / "metrics.json").read_text())["best"]
    return {name: value for name, value in best.items() if name.startswith("dev_")}


@pytest.mark.parametrize("context", ["none", "dialogue"])
def test_before_its_first_step_it_is_the_run_it_starts_from(
    config: TrainConfig, start: Path, context: str
) -> None:
    """A dialogue context that the start did not have begins as a no-op."""
    model = dataclasses.replace(GATED, context=context)
    run = train_fusion(dataclasses.replace(config, model=model)).run
    first = read_history(run / "history.jsonl")[0]
    assert (first.epoch, first.train_loss) == (0, None)
    measured = {name: getattr(first, name) for name in best_of(start)}
    assert measured == pytest.approx(best_of(start), rel=1e-5)


def test_it_goes_on_and_keeps_what_is_better(config: TrainConfig, start: Path) -> None:
    fit = dataclasses.replace(QUICK, epochs=8)
    result = train_fusion(dataclasses.replace(config, fit=fit))
    assert result.best_epoch > 0
    assert result.dev.score > read_history(start / "history.jsonl")[-1].score


def test_where_nothing_is_better_the_start_is_kept(config: TrainConfig, start: Path) -> None:
    ruinous = dataclasses.replace(QUICK, learning_rate=3.0)
    result = train_fusion(dataclasses.replace(config, fit=ruinous))
    assert (result.best_epoch, result.epochs) == (0, 2)
    kept, begun = (load_file(run / "model.safetensors") for run in (result.run, start))
    assert kept.keys() == begun.keys()
    assert all(torch.equal(kept[name], begun[name]) for name in begun)


def test_missing_settings_are_those_of_the_start(features: Path, start: Path) -> None:
    values = {"features": str(features), "start": str(start), "model": {"dropout": 0.1}}
    config = TrainConfig.from_mapping(values)
    assert config.model == dataclasses.replace(GATED, dropout=0.1)
    assert config.modalities == ("text", "video")
    assert config.fit.learning_rate == LEARNING_RATE
    said = TrainConfig.from_mapping({**values, "fit": {"learning_rate": 0.5}})
    assert said.fit.learning_rate == 0.5


def test_a_start_of_another_shape_is_refused_by_name(config: TrainConfig) -> None:
    late = ModelConfig(fusion="late", hidden=64)
    with pytest.raises(UsageError, match="fusion: gated != late; hidden: 32 != 64; modalities"):
        train_fusion(dataclasses.replace(config, model=late, modalities=("text",)))
    assert config.out is not None
    assert not config.out.exists()


def test_another_input_is_another_shape_and_no_matter_of_the_recipe(
    config: TrainConfig, tmp_path: Path, plant_cache
) -> None:
    for split, rows in (("train", 60), ("dev", 20)):
        cache = plant_cache(split, rows, modalities=["text", "video"], embedded=True)
        write_cache(tmp_path / "embedded" / f"{split}.h5", cache)
    embedded = dataclasses.replace(config, features=tmp_path / "embedded", input="embedding")
    with pytest.raises(UsageError, match="input: raw != embedding"):
        train_fusion(embedded)


def test_a_future_is_taken_over_with_the_context_that_it_belongs_to(
    config: TrainConfig, features: Path
) -> None:
    seeing = dataclasses.replace(GATED, context="dialogue", future=True)
    start = train_fusion(dataclasses.replace(config, model=seeing)).run
    values = {"features": str(features), "start": str(start)}
    assert TrainConfig.from_mapping({**values, "model": {"future": True}}).model == seeing
    with pytest.raises(UsageError, match="ask for context dialogue"):
        TrainConfig.from_mapping({**values, "model": {"context": "none"}})


def test_a_context_is_not_taken_away(config: TrainConfig, tmp_path: Path) -> None:
    seeing = dataclasses.replace(GATED, context="dialogue")
    start = train_fusion(dataclasses.replace(config, model=seeing)).run
    again = dataclasses.replace(config, start=start, out=tmp_path / "again")
    with pytest.raises(UsageError, match="context: dialogue != none"):
        train_fusion(again)
    assert read_checkpoint(train_fusion(dataclasses.replace(again, model=seeing)).run)


def test_features_made_in_another_way_are_refused(
    config: TrainConfig, tmp_path: Path, plant_cache, planted_recipe
) -> None:
    recipe = planted_recipe(["text", "video"], num_frames=8)
    for split, rows in (("train", 60), ("dev", 20)):
        cache = plant_cache(split, rows, modalities=["text", "video"], recipe=recipe)
        write_cache(tmp_path / "other" / f"{split}.h5", cache)
    with pytest.raises(RecipeMismatch, match="num_frames"):
        train_fusion(dataclasses.replace(config, features=tmp_path / "other"))


def test_a_start_inside_the_folder_to_be_replaced_is_kept(config: TrainConfig, start: Path) -> None:
    with pytest.raises(UsageError, match="is needed and lies in"):
        train_fusion(dataclasses.replace(config, out=start, overwrite=True))
    assert (start / "config.json").exists()
