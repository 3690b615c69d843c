"""`meld search`: draws settings, lets the best go on with more seeds, and says what mattered."""

import json
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fusion.experiments.search as module
from fusion.experiments.search import SearchConfig, search
from fusion.experiments.search_report import (
    SearchReport,
    Trial,
    reached_by_chance,
    what_mattered,
)
from fusion.experiments.search_space import SPACE, draw_settings, open_settings
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.history import EpochResult
from pipeline.errors import CacheBusy, CacheCorrupt, LossNotFinite, UsageError
from pipeline.system import locks

Meld = Callable[..., Any]
Fit = Callable[[object, ModelConfig, FitConfig, range], list[EpochResult]]

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


@pytest.fixture
def planted(run: object, scored: object, features: Path, tmp_path: Path) -> tuple[object, ...]:
    """The words of a command on planted rows, whose trainings have planted scores."""
    return ("search", "--features", features, "--out", tmp_path / "search")


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
    share = {each.setting: each.share or 0 for each in report.mattered}
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

    exact = [trial(k, "xy"[k % 2], 0.5 + 0.1 * (k % 2)) for k in range(24)]
    [found] = what_mattered(exact, ["a"])
    assert found.share == pytest.approx(1)
    assert found.names == ("x", "y")
    nothing = [trial(k, "xy"[k // 2 % 2], 0.5 + 0.1 * (k % 2)) for k in range(24)]
    [found] = what_mattered(nothing, ["a"])
    # Groups of equal means: 1 - (within / 22) / (total / 23), and within is the total.
    assert found.share == pytest.approx(1 - 23 / 22)
    [found] = what_mattered(exact[:19], ["a"])
    assert found.share is None
    assert len(found.points) == 19


# ------------------------------------------------------ what train-fusion would refuse of the best


@pytest.mark.parametrize(
    ("settings", "options", "why"),
    [
        ("[model]\nprojection = 64\nfusion = 'early'", "", "early fusion projects nothing"),
        ("[model]\nlayers = 'beside'", "--modalities audio", "has several layers"),
        ("[fit]\nmodality_dropout = 0.5", "--modalities text", "text is the only modality"),
        ("[fit.loss]\nteacher_weight = 0.9", "", "there is no teacher"),
    ],
)
def test_what_train_fusion_refuses_is_refused_in_its_words_before_a_training(
    meld: Meld,
    run: Callable[..., SearchReport],
    scored: list[tuple[float, int]],
    features: Path,
    tmp_path: Path,
    settings: str,
    options: str,
    why: str,
) -> None:
    (tmp_path / "my.toml").write_text(settings)
    told = ("--features", features, "--config", tmp_path / "my.toml", *options.split())
    finished = meld("search", *told, "--trials", 2, "--out", tmp_path / "search")
    assert finished.status == 2
    assert why in finished.err
    assert finished.err == meld("train-fusion", *told, "--out", tmp_path / "run").err
    assert scored == []
    assert not (tmp_path / "search").exists()


def plant(monkeypatch: pytest.MonkeyPatch, score: Callable[[ModelConfig, FitConfig], float]) -> Any:
    """Trainings of these scores; what was trained, as (model, fit, seeds)."""
    trained: list[tuple[ModelConfig, FitConfig, list[int]]] = []

    def fit(work: object, model: ModelConfig, fit: FitConfig, seeds: range) -> list[EpochResult]:
        trained.append((model, fit, list(seeds)))
        return [result(score(model, fit))] * len(seeds)

    monkeypatch.setattr(module._Work, "_fit", fit)
    return trained


ONLY_FUSION = tuple(name for name in SPACE if name != "model.fusion")


def test_a_projection_of_the_file_is_left_out_of_draws_that_project_nothing(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = plant(monkeypatch, lambda model, fit: 0.5 + 0.1 * (model.fusion == "early"))
    report = run(trials=12, fixed=ONLY_FUSION, model=ModelConfig(projection=64))
    assert report.best.settings["model.fusion"] == "early"
    best = tomllib.loads((report.out / "best.toml").read_text())
    assert TrainConfig.from_mapping(best).model.fusion == "early"
    assert "projection" not in best["model"]
    widths = {(model.fusion == "early", model.projection) for model, _, _ in trained}
    assert widths == {(True, 128), (False, 64)}


def test_a_drawn_projection_is_left_out_where_the_best_projects_nothing(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda model, fit: 0.5 + 0.1 * (model.fusion == "early"))
    fixed = tuple(name for name in SPACE if name not in ("model.fusion", "model.projection"))
    best = tomllib.loads((run(trials=12, fixed=fixed).out / "best.toml").read_text())
    assert best["model"] == {"fusion": "early"}


# ------------------------------------------------------------------------ draws that cannot be


def test_a_draw_that_cannot_be_is_drawn_again(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention has four heads, which share the projection."""
    trained = plant(monkeypatch, lambda model, fit: 0.5)
    report = run(trials=12, fixed=ONLY_FUSION, model=ModelConfig(projection=30))
    assert len(report.trials) == 12
    assert {model.fusion for model, _, _ in trained} == {"late", "early", "hybrid", "gated"}


def test_draws_that_can_be_stay_what_they_are() -> None:
    space = open_settings(("text", "audio"), (), ModelConfig())
    told = ("model.fusion", "fit.learning_rate", "model.projection", "model.future")
    assert [tuple(draw[name] for name in told) for draw in draw_settings(space, 4, 0)] == [
        ("late", 0.001, 128, False),
        ("hybrid", 0.00155, 256, True),
        ("attention", 0.000202, 64, False),
        ("attention", 0.000298, 256, False),
    ]

    def check(draw: Any) -> None:
        if draw["model.fusion"] == "attention":
            raise UsageError("no attention")

    possible = [d for d in draw_settings(space, 60, 0) if d["model.fusion"] != "attention"]
    assert draw_settings(space, 20, 0, check) == possible[:20]


def test_draws_of_which_none_can_be_end_with_the_reason() -> None:
    defaults_only = iter([True])

    def check(draw: Any) -> None:
        if not next(defaults_only, False):
            raise UsageError("no such epochs")

    with pytest.raises(UsageError, match="no such epochs"):
        draw_settings(["fit.epochs"], 3, 0, check)


# ----------------------------------------------------------------- draws whose loss is no number


def diverge_above(rate: float) -> Callable[[ModelConfig, FitConfig], float]:
    def score(model: ModelConfig, fit: FitConfig) -> float:
        if fit.learning_rate > rate:
            raise LossNotFinite(f"the loss became inf at {fit.learning_rate}")
        return 0.5

    return score


def test_a_draw_whose_loss_is_no_number_is_told_and_not_trained_again(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = plant(monkeypatch, diverge_above(1e-3))
    report = run(trials=9)
    drawn = {fit.learning_rate for _, fit, _ in trained}
    assert 0 < len(report.failed) < 9
    assert len(report.trials) == 9 - len(report.failed)
    assert {each.settings["fit.learning_rate"] for each in report.failed} == {
        rate for rate in drawn if rate > 1e-3
    }
    told = json.loads((report.out / "search.json").read_text())
    assert [each["reason"] for each in told["failed"]] == [each.reason for each in report.failed]
    assert report.failed[0].reason in (report.out / "search.html").read_text()
    before = len(trained)
    again = run(trials=9)
    assert len(trained) == before
    assert again.failed == report.failed


def test_failed_draws_are_told_on_the_command_line(
    meld: Meld,
    run: Callable[..., SearchReport],
    monkeypatch: pytest.MonkeyPatch,
    features: Path,
    tmp_path: Path,
) -> None:
    plant(monkeypatch, diverge_above(1e-3))
    fixed = ",".join(FIXED)
    told = ("--features", features, "--out", tmp_path / "search", "--trials", 9, "--fixed", fixed)
    finished = meld("search", *told)
    assert finished.status == 0, finished.err
    assert re.search(r"^\d of 9 draws failed; .*the loss became inf", finished.out, re.M)


def test_the_next_best_goes_on_where_one_fails_with_more_seeds(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: dict[float, float] = {}

    def fit(work: object, model: ModelConfig, fit: FitConfig, seeds: range) -> list[EpochResult]:
        rate = fit.learning_rate
        scores.setdefault(rate, 0.3 if rate == 1e-3 else 0.5 + len(scores) / 100)
        if 8 in seeds and scores[rate] == max(scores.values()):
            raise LossNotFinite("the loss became nan")
        return [result(scores[rate])] * len(seeds)

    monkeypatch.setattr(module._Work, "_fit", fit)
    report = run(trials=9)
    [failed] = report.failed
    second = sorted(scores.values())[-2]
    assert scores[float(failed.settings["fit.learning_rate"])] == max(scores.values())  # type: ignore[arg-type]
    assert (report.best.score, len(report.best.best)) == (pytest.approx(second), 9)


def test_defaults_whose_loss_is_no_number_end_the_search(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, diverge_above(0))
    with pytest.raises(LossNotFinite, match="the loss became inf"):
        run(trials=4)


def test_of_equal_draws_the_defaults_are_the_best(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda model, fit: 0.5)
    assert run(trials=2).best.number == 0


def test_a_stored_failure_of_what_are_now_the_defaults_ends_the_search_too(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(model: ModelConfig, fit: FitConfig) -> float:
        if fit.epochs == 30:
            raise LossNotFinite("the loss became nan")
        return 0.5

    plant(monkeypatch, score)
    assert run(trials=9, fixed=tuple(set(SPACE) - {"fit.epochs"})).failed
    with pytest.raises(LossNotFinite, match="became nan"):
        run(trials=3, fit=FitConfig(epochs=30))


def test_another_error_of_a_training_is_no_failed_draw(
    run: Callable[..., SearchReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(model: ModelConfig, fit: FitConfig) -> float:
        if fit.learning_rate != 1e-3:
            raise UsageError("a model of hidden = 512 cannot be built")
        return 0.5

    plant(monkeypatch, score)
    with pytest.raises(UsageError, match="cannot be built"):
        run(trials=4)


# ----------------------------------------------------------------------- what comes next


@pytest.mark.heavy
def test_the_command_that_is_printed_trains_on_what_was_searched(
    meld: Meld, run: Callable[..., SearchReport], features: Path, tmp_path: Path
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
    run: Callable[..., SearchReport], scored: list[tuple[float, int]], tmp_path: Path
) -> None:
    report = run(trials=1, dev_share=0.25, device="cpu", out=tmp_path / "b c")
    best = tomllib.loads((report.out / "best.toml").read_text())
    told = {name: value for name, value in best.items() if name not in ("fit", "model")}
    assert told == {"features": str(tmp_path / "features"), "dev_share": 0.25, "device": "cpu"}
    page = (report.out / "search.html").read_text()
    command = f"meld train-fusion --config {shlex.quote(str(report.out / 'best.toml'))}"
    assert command.replace("'", "&#39;") in page


# ------------------------------------------------------------------------------ its folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_something_else_is_left_as_it_is(
    run: Callable[..., SearchReport], scored: list[tuple[float, int]], features: Path
) -> None:
    before = contents(features)
    with pytest.raises(UsageError, match="holds no search of meld"):
        run(trials=1, out=features)
    assert contents(features) == before
    assert scored == []


def test_two_searches_do_not_write_one_folder(
    run: Callable[..., SearchReport], scored: list[tuple[float, int]], tmp_path: Path
) -> None:
    out = tmp_path / "search"
    with locks.hold(out / ".meld-search", "the search"), pytest.raises(CacheBusy, match="search"):
        run(trials=1)
    assert run(trials=1).out == out


# ------------------------------------------------------------------------------ few draws


def test_of_few_draws_nothing_is_said_of_what_mattered(
    meld: Meld, planted: tuple[object, ...], tmp_path: Path
) -> None:
    finished = meld(*planted, "--trials", 4)
    assert "4 draws are too few to tell what mattered" in finished.out
    assert " %" not in finished.out
    page = (tmp_path / "search" / "search.html").read_text()
    assert "4 draws are too few to tell what mattered" in page
    assert " %" not in page.split("</style>")[1]
    found = meld(*planted, "--trials", 4, "--json").json["mattered"]
    assert {each["share"] for each in found} == {None}


def test_of_many_draws_it_is_said_with_what_chance_alone_would_reach(
    meld: Meld, planted: tuple[object, ...]
) -> None:
    finished = meld(*planted, "--trials", 30, "--fixed", ",".join(FIXED))
    assert re.search(r"of 30 draws; below \d+ % it may be chance", finished.out)
    assert re.search(r"fit\.learning_rate: \+\d+ %", finished.out)


def test_of_one_trial_nothing_is_compared(
    meld: Meld, planted: tuple[object, ...], tmp_path: Path
) -> None:
    finished = meld(*planted, "--trials", 1)
    assert "nothing was compared" in finished.out
    assert "gains" not in finished.out
    assert "optimistic" not in finished.out
    page = (tmp_path / "search" / "search.html").read_text()
    assert "nothing was compared" in page
    assert "optimistic" not in page


def test_what_chance_alone_reaches_is_what_shuffled_scores_reach() -> None:
    """Of settings in three equal groups."""
    random = np.random.default_rng(0)
    settings, draws = 8, 24
    largest = []
    for _ in range(400):
        values = [random.permutation(draws) % 3 for _ in range(settings)]
        trials = [
            Trial(
                number=number,
                settings={str(name): f"{each[number]}" for name, each in enumerate(values)},
                best=(result(float(random.uniform(0.4, 0.6))),),
                rung=0,
            )
            for number in range(draws)
        ]
        found = what_mattered(trials, list(map(str, range(settings))))
        largest.append(max(each.share or 0 for each in found))
    assert np.quantile(largest, 0.95) == pytest.approx(reached_by_chance(draws, settings), abs=0.05)


# ------------------------------------------------------------------------------ small things


@pytest.mark.parametrize("fixed", ["", "fit.epochs,,model.hidden"])
def test_a_name_that_is_empty_is_shown_as_such(
    meld: Meld, run: Callable[..., SearchReport], features: Path, tmp_path: Path, fixed: str
) -> None:
    told = ("--features", features, "--out", tmp_path / "search", "--fixed", fixed)
    finished = meld("search", *told)
    assert finished.status == 2
    assert "fixed: '' is no setting" in finished.err


@pytest.mark.parametrize(
    "wrong",
    [
        {"score": 7.5},
        {"score": float("nan")},
        {"score": True},
        {"dev_emotion_f1": "x"},
        {"dev_sentiment_f1": -0.1},
        {"epoch": 2.5},
        {"epoch": 0},
        {"seconds": None},
        {"learning_rate": 10**400},
        {"train_loss": -1.0},
    ],
    ids=lambda wrong: str(wrong)[:30],
)
def test_a_trial_of_values_that_cannot_be_is_damage(
    run: Callable[..., SearchReport], scored: list[tuple[float, int]], wrong: dict[str, object]
) -> None:
    report = run(trials=1)
    [path] = (report.out / "trials").iterdir()
    values = json.loads(path.read_text())
    values["best"][0] |= wrong
    path.write_text(json.dumps(values))
    with pytest.raises(CacheCorrupt, match=path.name):
        run(trials=1)


@pytest.mark.parametrize("wrong", [{"failed": ""}, {"failed": 3}, {"failed": None}, {}, [], 3])
def test_a_failure_without_a_reason_is_damage(
    run: Callable[..., SearchReport], scored: list[tuple[float, int]], wrong: object
) -> None:
    report = run(trials=2)
    [path, _] = (report.out / "trials").iterdir()
    path.write_text(json.dumps(wrong))
    with pytest.raises(CacheCorrupt, match=path.name):
        run(trials=2)
