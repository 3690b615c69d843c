"""`meld search`: the best go on with more seeds, and it ends in settings to train with."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest

import fusion.experiments.search as module
from fusion.experiments.search import SearchConfig
from fusion.experiments.search_space import open_settings
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.history import EpochResult
from pipeline.errors import UsageError
from tests.conftest import Meld
from tests.fusion.experiments.planted_scores import RunSearch, Trained, plant, result


def test_the_best_third_goes_on_with_three_times_the_seeds(
    run_search: RunSearch, scored: Trained
) -> None:
    report = run_search(trials=9)
    rates = {rate for rate, _ in scored}
    seeds = {rate: [seed for other, seed in scored if other == rate] for rate in rates}
    assert len(rates) == 9
    assert sorted(map(len, seeds.values()))[-3:] == [3, 3, 9]  # the best has 9, two others 3
    assert all(sorted(each) == list(range(len(each))) for each in seeds.values())  # none twice
    assert len(report.best.best) == 9
    assert report.defaults.settings["fit.learning_rate"] == 1e-3


def test_defaults_that_are_worst_go_on_too_to_be_compared_with(
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(work: object, model: object, config: object, seeds: range) -> list[EpochResult]:
        off = abs(np.log(config.learning_rate / 1e-3))  # type: ignore[attr-defined]
        return [result(0.3 + off / 10)] * len(seeds)

    monkeypatch.setattr(module._Work, "_fit", fit)
    report = run_search(trials=9)
    assert report.best.number != 0
    assert len(report.best.best) == len(report.defaults.best) == 9


def test_of_equal_draws_the_defaults_are_the_best(
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda model, fit: 0.5)
    assert run_search(trials=2).best.number == 0


def test_it_ends_in_settings_that_train_fusion_takes_and_in_a_page(
    run_search: RunSearch, scored: Trained
) -> None:
    report = run_search(trials=5, modalities=("text", "audio"))
    settings = tomllib.loads((report.out / "best.toml").read_text())
    config = TrainConfig.from_mapping(settings)
    assert config.fit.learning_rate == report.best.settings["fit.learning_rate"]
    assert config.model.hidden == report.best.settings["model.hidden"]
    assert config.modalities == ("text", "audio")
    page = (report.out / "search.html").read_text()
    assert f"{report.best.score:.4f}" in page
    assert page.count("<circle") == 2 * 5
    told = json.loads((report.out / "search.json").read_text())
    assert [each["number"] for each in told["trials"]] == [each.number for each in report.trials]


@pytest.mark.heavy
def test_trainings_are_those_of_train_fusion(run_search: RunSearch) -> None:
    """Without planted scores: the defaults' seed 0 is what `train-fusion` finds."""
    from fusion.training.train import train_fusion

    report = run_search(trials=1)
    trained = train_fusion(
        TrainConfig(features=report.out.parent / "features", out=report.out.parent / "run")
    )
    [best] = report.defaults.best
    assert best.epoch == trained.best_epoch


def test_settings_of_the_file_stay_and_unknown_ones_are_refused() -> None:
    config = SearchConfig(model=ModelConfig(hidden=64), fixed=("fit.epochs",))
    assert config.kept == ("fit.epochs", "model.hidden")
    with pytest.raises(UsageError, match="no setting"):
        open_settings(("text",), ("fit.speed",), ModelConfig())


@pytest.mark.parametrize("fixed", ["", "fit.epochs,,model.hidden"])
def test_a_name_that_is_empty_is_shown_as_such(
    meld: Meld, run_search: RunSearch, features: Path, tmp_path: Path, fixed: str
) -> None:
    told = ("--features", features, "--out", tmp_path / "search", "--fixed", fixed)
    finished = meld("search", *told)
    assert finished.status == 2
    assert "fixed: '' is no setting" in finished.err


# ------------------------------------------------------------------------------ what comes next


@pytest.mark.heavy
def test_the_command_that_is_printed_trains_on_what_was_searched(
    meld: Meld, run_search: RunSearch, features: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_text("[fit]\nepochs = 1\n")
    out = tmp_path / "a searc\u0125 for $HOME"
    told = ("--features", features, "--dev-share", 0.5, "--modalities", "audio", "--trials", 1)
    finished = meld("search", *told, "--config", tmp_path / "my.toml", "--out", out)
    assert finished.status == 0, finished.err
    [command] = re.findall(r"next: (.*)", finished.out)
    word, *words = shlex.split(command)
    assert word == "meld"
    trained = meld(*words, "--out", tmp_path / "run")
    assert trained.status == 0, trained.err
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert settings["features"] == str(features)
    assert settings["dev_share"] == 0.5
    assert settings["modalities"] == ["audio"]
    assert settings["fit"]["epochs"] == 1


def test_the_file_says_what_differs_from_the_defaults_and_the_page_the_command(
    run_search: RunSearch, scored: Trained, tmp_path: Path
) -> None:
    report = run_search(trials=1, dev_share=0.25, device="cpu", out=tmp_path / "b c")
    best = tomllib.loads((report.out / "best.toml").read_text())
    told = {name: value for name, value in best.items() if name not in ("fit", "model")}
    assert told == {"features": str(tmp_path / "features"), "dev_share": 0.25, "device": "cpu"}
    page = (report.out / "search.html").read_text()
    command = f"meld train-fusion --config {shlex.quote(str(report.out / 'best.toml'))}"
    assert command.replace("'", "&#39;") in page
