"""`meld search`: draws settings, lets the best go on with more seeds, and says what mattered."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fusion.experiments.search as module
from fusion.experiments.search import SearchConfig, search
from fusion.experiments.search_report import SearchReport, Trial, what_mattered
from fusion.experiments.search_space import SPACE, draw_settings, open_settings
from fusion.model.dims import ModelConfig
from fusion.training.history import EpochResult
from fusion.training.train import TrainConfig
from pipeline.errors import CacheCorrupt, UsageError

FIXED = tuple(name for name in SPACE if name not in ("fit.learning_rate", "model.hidden"))


def result(score: float) -> EpochResult:
    return EpochResult(
        epoch=1,
        train_loss=1.0,
        dev_loss=1.0,
        dev_emotion_f1=score,
        dev_sentiment_f1=score,
        score=score,
        learning_rate=0.1,
        seconds=0.0,
    )


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Trainings whose score is planted: the nearer the learning rate is to 1e-3 the better; with
    noise of the seed. What was trained, as (learning rate, seed)."""
    trained: list[tuple[float, int]] = []

    def fit(work: object, model: ModelConfig, fit: object, seeds: range) -> list[EpochResult]:
        rate = fit.learning_rate  # type: ignore[attr-defined]
        trained.extend((rate, seed) for seed in seeds)
        noise = [np.random.default_rng([seed, round(1e7 * rate)]).normal() / 100 for seed in seeds]
        return [result(0.6 - abs(np.log(rate / 1e-3)) / 10 + each) for each in noise]

    monkeypatch.setattr(module._Work, "_fit", fit)
    return trained


@pytest.fixture
def run(
    write_split: Callable[..., object], features: Path, tmp_path: Path
) -> Callable[..., SearchReport]:
    write_split("train", 60)
    write_split("dev", 20)

    def start(**settings: object) -> SearchReport:
        values = {"features": features, "out": tmp_path / "search", "fixed": FIXED} | settings
        return search(SearchConfig(**values))  # type: ignore[arg-type]

    return start


def test_the_best_third_goes_on_with_three_times_the_seeds(
    run: Callable[..., SearchReport], scored: list[tuple[float, int]]
) -> None:
    report = run(trials=9)
    rates = {rate for rate, _ in scored}
    seeds = {rate: [seed for other, seed in scored if other == rate] for rate in rates}
    assert len(rates) == 9
    assert sorted(map(len, seeds.values()))[-3:] == [3, 3, 9]  # the best has 9, two others 3
    assert all(sorted(each) == list(range(len(each))) for each in seeds.values())  # none twice
    assert len(report.best.best) == 9
    assert report.defaults.settings["fit.learning_rate"] == 1e-3


def test_defaults_that_are_worst_go_on_too_to_be_compared_with(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(work: object, model: object, config: object, seeds: range) -> list[EpochResult]:
        off = abs(np.log(config.learning_rate / 1e-3))  # type: ignore[attr-defined]
        return [result(0.3 + off / 10)] * len(seeds)

    monkeypatch.setattr(module._Work, "_fit", fit)
    report = run(trials=9)
    assert report.best.number != 0
    assert len(report.best.best) == len(report.defaults.best) == 9


def test_what_was_planted_to_matter_is_found_and_what_was_not_is_not(
    run: Callable[..., SearchReport], scored: list[tuple[float, int]]
) -> None:
    report = run(trials=60)
    share = {each.setting: each.share for each in report.mattered}
    assert report.mattered[0].setting == "fit.learning_rate"
    assert share["fit.learning_rate"] > 0.3
    assert abs(share["model.hidden"]) < 0.15
    assert 5e-4 < float(report.best.settings["fit.learning_rate"]) < 2e-3  # type: ignore[arg-type]


def test_the_same_command_goes_on_where_it_stopped(
    run: Callable[..., SearchReport],
    scored: list[tuple[float, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit = module._Work._fit

    def stop(work: object, model: object, config: object, seeds: range) -> list[EpochResult]:
        if len(scored) == 4:
            raise KeyboardInterrupt
        return fit(work, model, config, seeds)  # type: ignore[arg-type]

    monkeypatch.setattr(module._Work, "_fit", stop)
    with pytest.raises(KeyboardInterrupt):
        run(trials=6)
    monkeypatch.setattr(module._Work, "_fit", fit)
    report = run(trials=6)
    assert report.reused == 4
    assert len(set(scored)) == len(scored)  # no training was made twice
    assert run(trials=6).reused == len(scored)


def test_it_ends_in_settings_that_train_fusion_takes_and_in_a_page(
    run: Callable[..., SearchReport], scored: list[tuple[float, int]]
) -> None:
    report = run(trials=5, modalities=("text", "audio"))
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
def test_trainings_are_those_of_train_fusion(run: Callable[..., SearchReport]) -> None:
    """Without planted scores: the defaults' seed 0 is what `train-fusion` finds."""
    from fusion.training.train import train_fusion

    report = run(trials=1)
    trained = train_fusion(
        TrainConfig(features=report.out.parent / "features", out=report.out.parent / "run")
    )
    [best] = report.defaults.best
    assert best.epoch == trained.best_epoch


def test_a_damaged_trial_is_named(
    run: Callable[..., SearchReport], scored: list[tuple[float, int]]
) -> None:
    report = run(trials=2)
    path = next((report.out / "trials").iterdir())
    path.write_text("[{}]")
    with pytest.raises(CacheCorrupt, match=path.name):
        run(trials=2)


def test_draws_are_the_same_for_a_seed_and_begin_with_the_defaults() -> None:
    space = open_settings(("text",), (), ModelConfig())
    one, again, other = (draw_settings(space, 20, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert one[0] == other[0]
    assert all(not draw["model.future"] for draw in one if draw["model.context"] == "none")
    assert "model.fusion" not in space  # one modality


def test_settings_of_the_file_stay_and_unknown_ones_are_refused() -> None:
    config = SearchConfig(model=ModelConfig(hidden=64), fixed=("fit.epochs",))
    assert config.kept == ("fit.epochs", "model.hidden")
    with pytest.raises(UsageError, match="no setting"):
        open_settings(("text",), ("fit.speed",), ModelConfig())


def test_the_share_is_of_what_chance_does_not_explain() -> None:
    def trial(number: int, value: str, score: float) -> Trial:
        return Trial(number=number, settings={"a": value}, best=(result(score),), rung=0)

    exact = [trial(k, "xy"[k % 2], 0.5 + 0.1 * (k % 2)) for k in range(8)]
    [found] = what_mattered(exact, ["a"])
    assert found.share == pytest.approx(1)
    assert found.names == ("x", "y")
    nothing = [trial(k, "xy"[k // 2 % 2], 0.5 + 0.1 * (k % 2)) for k in range(8)]
    [found] = what_mattered(nothing, ["a"])
    # Groups of equal means: 1 - (within / 6) / (total / 7), and within is the total.
    assert found.share == pytest.approx(1 - 7 / 6)
