"""Finding the encoders of a recipe again: by name and hash, or in the fine-tuned run that owns
them, wherever its folder moved."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.find import find_encoders, name_of_owner
from pipeline.encoders.saved import read_encoders
from pipeline.encoders.weights import hash_weights
from pipeline.errors import InputError, RecipeMismatch, UsageError, WeightsMissing
from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe
from pipeline.schema import Modality

DECODE = DecodeConfig()


def plant_run(
    run: Path, content: bytes = b"weights", modality: Modality = "audio"
) -> FeatureRecipe:
    """A run's encoder as fine-tuning leaves it; no network ever reads these weights."""
    folder = run / "encoders" / modality
    folder.mkdir(parents=True)
    if modality == "text":
        (folder / "config.json").write_text('{"num_hidden_layers": 2}')
    (folder / f"{'model' if modality == 'text' else 'spectrogram'}.safetensors").write_bytes(
        content
    )
    spec = EncoderSpec(
        modality=modality,
        name="tiny" if modality == "text" else "spectrogram",
        weights="finetuned",
        weights_hash=hash_weights(folder),
        pooling="mean over tokens" if modality == "text" else "statistics over time",
        precision="float32",
        layers=(0, 1, 2) if modality == "text" else (-1,),
        context=2 if modality == "text" else 0,
        started_from="none",
    )
    recipe = FeatureRecipe(encoders=(spec,), decode=DECODE)
    index = {
        "format": "meld-encoders",
        "format_version": 1,
        "recipe": json.loads(recipe.to_json()),
        "files": {modality: spec.weights_hash},
    }
    (run / "encoders" / "encoders.json").write_text(json.dumps(index))
    assert read_encoders(run).recipe == recipe
    return recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, an empty one."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tuned(here: Path) -> FeatureRecipe:
    """runs/tuned, and the recipe of features made with its encoder."""
    return plant_run(here / "runs" / "tuned")


def test_encoders_that_nobody_tuned_are_found_by_their_names() -> None:
    chosen = choose_encoder("video", EncoderRequest(video_weights="random"), "float32")
    recipe = FeatureRecipe(encoders=(chosen.spec,), decode=DECODE)
    assert find_encoders(recipe, ["video"]) == (chosen,)


def test_an_encoder_with_another_hash_is_refused_with_both() -> None:
    chosen = choose_encoder("video", EncoderRequest(video_weights="random"), "float32")
    other = replace(chosen.spec, weights_hash="seed 1")
    with pytest.raises(RecipeMismatch, match=r"video\.weights_hash: seed 1 != seed 0.*restore"):
        find_encoders(FeatureRecipe(encoders=(other,), decode=DECODE), ["video"])


def test_the_run_that_is_named_owns_them(tuned: FeatureRecipe, here: Path) -> None:
    (choice,) = find_encoders(tuned, ["audio"], run=Path("runs/tuned"))
    assert choice.spec == tuned.encoders[0]
    assert choice.path == Path("runs/tuned/encoders/audio")


def test_the_recorded_run_is_found_from_the_current_folder(tuned: FeatureRecipe) -> None:
    assert find_encoders(tuned, ["audio"], recorded="runs/tuned")[0].spec == tuned.encoders[0]


@pytest.mark.parametrize("beside", ["archive/again", "archive/features-tuned"])
def test_it_is_found_beside_the_run_or_the_features_after_both_moved_together(
    tuned: FeatureRecipe, here: Path, beside: str
) -> None:
    (here / "archive").mkdir()
    (here / "runs" / "tuned").rename(here / "archive" / "tuned")
    (choice,) = find_encoders(tuned, ["audio"], recorded="runs/tuned", beside=[here / beside])
    assert choice.path == here / "archive/tuned/encoders/audio"


def test_another_run_of_its_name_is_passed_over(here: Path) -> None:
    plant_run(here / "tuned", b"other weights")
    recipe = plant_run(here / "archive" / "tuned")
    again = here / "archive" / "again"
    (choice,) = find_encoders(recipe, ["audio"], recorded="tuned", beside=[again])
    assert choice.path == here / "archive/tuned/encoders/audio"


def test_other_encoders_than_the_features_own_are_refused(tuned: FeatureRecipe, here: Path) -> None:
    plant_run(here / "runs" / "later", b"other weights")
    refused = r"runs/later is not the one .*audio\.weights_hash: .* != .*; name .* with --encoders"
    with pytest.raises(RecipeMismatch, match=refused):
        find_encoders(tuned, ["audio"], run=Path("runs/later"))
    with pytest.raises(RecipeMismatch, match=refused):
        find_encoders(tuned, ["audio"], recorded="runs/later")


def test_a_run_that_is_gone_is_named_with_the_option_to_give(tuned: FeatureRecipe) -> None:
    with pytest.raises(WeightsMissing, match=r"fine-tuned run runs/gone, which is .*--encoders"):
        find_encoders(tuned, ["audio"], recorded="runs/gone", beside=[Path("runs/again")])
    with pytest.raises(WeightsMissing, match="do not say which; name the run with --encoders"):
        find_encoders(tuned, ["audio"])


def test_a_setting_without_effect_is_refused(tuned: FeatureRecipe) -> None:
    with pytest.raises(UsageError, match=r"--weights-dir weights: .*holds all weights"):
        find_encoders(tuned, ["audio"], run=Path("runs/tuned"), weights_dir=Path("weights"))
    chosen = choose_encoder("audio", EncoderRequest(), "float32")
    plain = FeatureRecipe(encoders=(chosen.spec,), decode=DECODE)
    with pytest.raises(UsageError, match="--encoders runs/tuned: the features were not made by"):
        find_encoders(plain, ["audio"], run=Path("runs/tuned"))
    with pytest.raises(InputError, match="runs/none: holds no encoders of its own"):
        find_encoders(tuned, ["audio"], run=Path("runs/none"))


def test_the_recorded_name_is_a_path_that_travels_and_never_a_private_one(
    here: Path, tmp_path: Path
) -> None:
    assert name_of_owner(Path("runs/tuned"), Path("features")) == "runs/tuned"
    assert name_of_owner(here / "runs" / "tuned", Path("features")) == "runs/tuned"
    elsewhere = tmp_path / "disk"
    assert name_of_owner(elsewhere / "runs" / "tuned", elsewhere / "features") == "runs/tuned"
    assert name_of_owner(elsewhere / "runs" / "tuned", Path("features")) == "tuned"
    assert name_of_owner(here, Path("features")) == "project"


def test_a_weights_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r3d_18.pth").write_bytes(b"weights")
    with pytest.raises(UsageError, match=r"r3d_18\.pth: a file; name the folder that it lies in"):
        EncoderRequest(text="minilm", weights_dir=tmp_path / "r3d_18.pth")
