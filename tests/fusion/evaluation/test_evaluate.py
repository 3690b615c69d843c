"""What measuring a run needs, counts and leaves alone."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.evaluation.test_evaluations import count_evaluations
from fusion.export.export import reports_to_ship
from fusion.inference.checkpoint import read_checkpoint, write_checkpoint
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.errors import StorageError
from tests.conftest import Meld

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, plant_cache: Callable[..., FeatureCache]) -> Path:
    """Trained on planted features of all three splits."""
    folder = tmp_path_factory.mktemp("evaluate")
    for split, rows in (("train", 60), ("dev", 20), ("test", 20)):
        write_cache(folder / "features" / f"{split}.h5", plant_cache(split, rows))
    config = TrainConfig(
        features=folder / "features",
        out=folder / "run",
        fit=FitConfig(epochs=1),
        device="cpu",
    )
    return train_fusion(config).run


@pytest.fixture
def passed_on(run: Path, tmp_path: Path) -> Path:
    """A fine-tuned run, as an export leaves it: without the paths of its machine."""
    checkpoint = dataclasses.replace(
        read_checkpoint(run), finetuned=("text", "audio"), data=tmp_path / "clips"
    )
    write_checkpoint(tmp_path / "bundle", checkpoint.to_pass_on())
    return tmp_path / "bundle"


@pytest.mark.parametrize("command", ["evaluate", "report", "compare"])
def test_a_fine_tuned_run_without_its_clips_says_what_to_name(
    meld: Meld, run: Path, passed_on: Path, tmp_path: Path, command: str
) -> None:
    more = {"report": ["--out", tmp_path / "page.html"], "compare": [run]}.get(command, [])
    refused = meld(command, passed_on, *more, "--split", "dev")
    assert refused.status == 4, refused.err
    assert len(refused.err.splitlines()) == 1
    assert "name clips with --data, or features of its own encoders with --features" in refused.err
    assert f"meld extract --split dev --encoders {passed_on}" in refused.err


def test_commands_of_a_passed_on_run_name_what_is_missing_and_not_the_run_itself(
    meld: Meld, passed_on: Path
) -> None:
    shown = meld("info", passed_on)
    assert shown.status == 0, shown.err
    [command] = [line for line in shown.out.splitlines() if "meld finetune" in line]
    assert "--run RUN_TO_START_FROM" in command
    assert "--data FOLDER_WITH_CSVS" in command
    assert "--out NEW_RUN" in command
    assert str(passed_on) not in command
    assert "words in capitals stand for what is not known" in shown.out


@pytest.mark.parametrize("place", ["predictions", "evaluation-test.json", "test-confusion.png"])
def test_what_cannot_be_written_is_no_test_evaluation(
    run: Path, tmp_path: Path, place: str
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = EvaluateConfig(run=copy)
    if place == "predictions":  # where root has every permission, and nobody can write
        config = dataclasses.replace(config, predictions=Path("/proc/predictions.csv"))
    else:
        (copy / place).mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        evaluate(config)
    assert count_evaluations(copy) == 0
    assert not list(copy.glob("*.tmp"))


def test_a_report_counts_no_run_before_all_are_measured_and_each_once(
    meld: Meld, run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    page = tmp_path / "page.html"
    refused = meld("report", copy, tmp_path / "nothing", "--out", page)
    assert refused.status == 4, refused.err
    assert count_evaluations(copy) == 0
    twice = meld("report", copy, copy, "--out", page, "--json")
    assert twice.status == 0, twice.err
    assert count_evaluations(copy) == 1
    assert [each["test_evaluations"] for each in twice.json["runs"]] == [1, 1]


@pytest.mark.parametrize(
    "settings", [{"modalities": [1, 2]}, {"fit": [1]}, {"fit": {"learning_rate": math.nan}}]
)
def test_settings_that_no_training_wrote_are_a_damaged_run(
    meld: Meld, run: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    config = json.loads((copy / "config.json").read_text())
    config["settings"] |= settings
    (copy / "config.json").write_text(json.dumps(config))
    for command in (["info", copy, "--json"], ["report", copy, "--out", tmp_path / "page.html"]):
        refused = meld(*command)
        assert refused.status == 5, refused.err
        assert refused.out == ""
        assert len(refused.err.splitlines()) == 1
        assert "config.json" in refused.err


def test_dev_of_another_corpus_is_not_what_the_temperatures_were_fitted_on(
    meld: Meld, run: Path, tmp_path: Path, plant_cache: Callable[..., FeatureCache]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    other = tmp_path / "other"
    write_cache(other / "dev.h5", dataclasses.replace(plant_cache("dev", 30), rows_hash="3" * 64))
    shutil.copytree(run.parent / "features", tmp_path / "again")
    own = meld("evaluate", copy, "--split", "dev")
    assert "were fitted on" in " ".join(own.out.split())
    foreign = meld("evaluate", copy, "--split", "dev", "--features", other)
    assert foreign.status == 0, foreign.err
    assert "fitted on" not in " ".join(foreign.out.split())
    written = json.loads((copy / "evaluation-dev.json").read_text())
    assert (written["features"], written["data"]) == (str(other), None)
    assert written["fitted_here"] is False
    said = EvaluateConfig(run=copy, split="dev", features=run.parent / "features")
    assert evaluate(said, draw=False).features is None  # its own, though it was named
    again = evaluate(EvaluateConfig(run=copy, split="dev", features=tmp_path / "again"), draw=False)
    assert again.fitted_here is True
    write_checkpoint(tmp_path / "bundle", read_checkpoint(copy).to_pass_on())
    shown = meld("evaluate", tmp_path / "bundle", "--split", "dev", "--features", other)
    assert "; if these are the rows that" in " ".join(shown.out.split())


def test_an_export_ships_the_name_of_a_measured_folder_and_not_where_it_was(
    run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    other = Path(shutil.copytree(run.parent / "features", tmp_path / "other"))
    evaluate(EvaluateConfig(run=copy, split="dev", features=other), draw=False)
    shipped = reports_to_ship(copy)["dev"]
    assert (shipped["features"], shipped["data"]) == ("other", None)
    assert str(tmp_path) not in json.dumps(shipped)
