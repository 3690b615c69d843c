"""A run's description, damaged by hand: every damage is named, none is believed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fusion.inference.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.fusion import FusionModel
from pipeline.errors import CacheCorrupt, InputError, MismatchError
from pipeline.recipe import FeatureRecipe


@pytest.fixture
def run(tmp_path: Path, planted_recipe: Callable[..., FeatureRecipe]) -> Path:
    """A small model that nobody trained; its folder is as good as any."""
    dims = FusionDims(
        modalities=(ModalityDims(modality="text", layers=1, dim=4),),
        model=ModelConfig(projection=8, hidden=8),
    )
    checkpoint = Checkpoint(
        dims=FusionModel(dims).dims,
        model=FusionModel(dims),
        recipe=planted_recipe(["text"]),
        projection_hash=None,
        emotion_counts=(1,) * 7,
        sentiment_counts=(1,) * 3,
        settings={},
        features=tmp_path,
    )
    write_checkpoint(tmp_path, checkpoint)
    assert read_checkpoint(tmp_path).emotion_counts == (1,) * 7
    return tmp_path


@pytest.mark.parametrize(
    "counts",
    [
        {"emotion": [1] * 6, "sentiment": [1] * 3},
        {"emotion": [1] * 7, "sentiment": [1] * 7},
        {"emotion": [1, 1, 1, 1, 1, 1, -1], "sentiment": [1] * 3},
        {"emotion": [1, 1, 1, 1, 1, 1, True], "sentiment": [1] * 3},
        {"emotion": [1, 1, 1, 1, 1, 1, 0.5], "sentiment": [1] * 3},
        {"emotion": "1111111", "sentiment": [1] * 3},
        {"emotion": [1] * 7},
        [[1] * 7, [1] * 3],
        None,
    ],
)
def test_label_counts_that_are_no_counts_are_refused(run: Path, counts: object) -> None:
    """The majority baseline is taken from them: wrong ones would be a wrong result."""
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label_counts": counts}))
    with pytest.raises(CacheCorrupt, match=r"config\.json: not a run's description"):
        read_checkpoint(run)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"dims": ' * 200_000])
def test_a_description_nested_without_end_is_refused(run: Path, text: str) -> None:
    (run / "config.json").write_text(text)
    with pytest.raises(CacheCorrupt, match=r"config\.json: not JSON"):
        read_checkpoint(run)


@pytest.mark.parametrize("hidden", [1 << 62, 1 << 70])
def test_dims_beyond_any_memory_are_refused(run: Path, hidden: int) -> None:
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["dims"]["model"]["hidden"] = hidden
    path.write_text(json.dumps(config))
    with pytest.raises(CacheCorrupt, match=r"config\.json"):
        read_checkpoint(run)


def test_a_file_in_the_place_of_a_run_is_called_a_file(run: Path) -> None:
    with pytest.raises(InputError, match="a file, not a folder"):
        read_checkpoint(run / "model.safetensors")


def test_a_run_that_is_passed_on_names_no_folder_of_the_machine_that_trained_it(
    run: Path, tmp_path: Path
) -> None:
    settings = {"seed": 3, "model": {"hidden": 8}, "out": str(tmp_path), "start": str(tmp_path)}
    trained = replace(read_checkpoint(run), settings=settings, data=tmp_path)
    out = tmp_path / "passed-on"
    out.mkdir()
    write_checkpoint(out, trained.to_pass_on())
    assert str(tmp_path) not in (out / "config.json").read_text()
    read = read_checkpoint(out)
    assert (read.features, read.data) == (None, None)
    assert read.settings == {"seed": 3, "model": {"hidden": 8}}
    assert read.recipe == trained.recipe
    with pytest.raises(InputError, match=r"passed on without the features .* --features"):
        read.require_features()


PAIRS = [[True] * 3] * 7
GOOD = {
    "emotion": {"value": 0.8, "rows": 100},
    "sentiment": {"value": 1.0, "rows": 0},
    "sentiment_weight": 1.0,
    "allowed": PAIRS,
}


def write_decoding(run: Path, decoding: object) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoding": decoding}))


def test_a_decoding_is_kept_with_the_run(run: Path) -> None:
    assert read_checkpoint(run).decoding is None
    write_decoding(run, GOOD)
    decoding = read_checkpoint(run).decoding
    assert decoding is not None
    assert (decoding.emotion.value, decoding.emotion.fitted) == (0.8, True)
    assert (decoding.sentiment.value, decoding.sentiment.fitted) == (1.0, False)


@pytest.mark.parametrize(
    "damage",
    [
        {"emotion": {"value": 0.0, "rows": 100}},
        {"emotion": {"value": -1.0, "rows": 100}},
        {"emotion": {"value": float("nan"), "rows": 100}},
        {"sentiment": {"value": float("inf"), "rows": 100}},
        {"sentiment": {"value": 10**400, "rows": 100}},
        {"sentiment": {"value": 1.0, "rows": -1}},
        {"sentiment": {"value": 1.0, "rows": True}},
        {"sentiment": {"rows": 10}},
        {"sentiment": 1.0},
        {"sentiment_weight": 0.0},
        {"sentiment_weight": float("nan")},
        {"sentiment_weight": "1"},
        {"allowed": PAIRS[:6]},
        {"allowed": [[True] * 7] * 3},
        {"allowed": [[1] * 3] * 7},
        {"allowed": [[False] * 3, *PAIRS[:6]]},
        {"allowed": [[True, True, False]] * 7},
        {"allowed": None},
    ],
)
def test_a_damaged_decoding_is_refused(run: Path, damage: dict[str, object]) -> None:
    """Its probabilities and labels would be wrong without a word."""
    write_decoding(run, GOOD | damage)
    with pytest.raises(CacheCorrupt, match=r"config\.json: not a run's description") as refused:
        read_checkpoint(run)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("decoding", [[], {}, "none", 3])
def test_a_decoding_that_is_none_is_refused(run: Path, decoding: object) -> None:
    write_decoding(run, decoding)
    with pytest.raises(CacheCorrupt, match=r"config\.json"):
        read_checkpoint(run)


def test_a_run_of_an_earlier_format_is_told_to_be_trained_again(run: Path) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    with pytest.raises(MismatchError, match="format version 1, this program reads 2; train again"):
        read_checkpoint(run)
