"""The draws of a search: which can be, and what becomes of those whose training fails."""

import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fusion.experiments.search as module
from fusion.experiments.search_space import SPACE, draw_settings, open_settings
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.history import EpochResult
from pipeline.errors import LossNotFinite, UsageError
from tests.conftest import Meld
from tests.fusion.experiments.planted_scores import FIXED, RunSearch, Trained, plant, result


def test_draws_are_the_same_for_a_seed_and_begin_with_the_defaults() -> None:
    space = open_settings(("text",), (), ModelConfig())
    one, again, other = (draw_settings(space, 20, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert one[0] == other[0]
    assert all(not draw["model.future"] for draw in one if draw["model.context"] == "none")
    assert "model.fusion" not in space  # one modality


# ------------------------------------------------------ what train-fusion would refuse of the best


ONLY_FUSION = tuple(name for name in SPACE if name != "model.fusion")


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
    run_search: RunSearch,
    scored: Trained,
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


def test_a_projection_of_the_file_is_left_out_of_draws_that_project_nothing(
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = plant(monkeypatch, lambda model, fit: 0.5 + 0.1 * (model.fusion == "early"))
    report = run_search(trials=12, fixed=ONLY_FUSION, model=ModelConfig(projection=64))
    assert report.best.settings["model.fusion"] == "early"
    best = tomllib.loads((report.out / "best.toml").read_text())
    assert TrainConfig.from_mapping(best).model.fusion == "early"
    assert "projection" not in best["model"]
    widths = {(model.fusion == "early", model.projection) for model, _, _ in trained}
    assert widths == {(True, 128), (False, 64)}


def test_a_drawn_projection_is_left_out_where_the_best_projects_nothing(
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda model, fit: 0.5 + 0.1 * (model.fusion == "early"))
    fixed = tuple(name for name in SPACE if name not in ("model.fusion", "model.projection"))
    best = tomllib.loads((run_search(trials=12, fixed=fixed).out / "best.toml").read_text())
    assert best["model"] == {"fusion": "early"}


# ------------------------------------------------------------------------ draws that cannot be


def test_a_draw_that_cannot_be_is_drawn_again(
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention has four heads, which share the projection."""
    trained = plant(monkeypatch, lambda model, fit: 0.5)
    report = run_search(trials=12, fixed=ONLY_FUSION, model=ModelConfig(projection=30))
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
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = plant(monkeypatch, diverge_above(1e-3))
    report = run_search(trials=9)
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
    again = run_search(trials=9)
    assert len(trained) == before
    assert again.failed == report.failed


def test_failed_draws_are_told_on_the_command_line(
    meld: Meld,
    run_search: RunSearch,
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
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: dict[float, float] = {}

    def fit(work: object, model: ModelConfig, fit: FitConfig, seeds: range) -> list[EpochResult]:
        rate = fit.learning_rate
        scores.setdefault(rate, 0.3 if rate == 1e-3 else 0.5 + len(scores) / 100)
        if 8 in seeds and scores[rate] == max(scores.values()):
            raise LossNotFinite("the loss became nan")
        return [result(scores[rate])] * len(seeds)

    monkeypatch.setattr(module._Work, "_fit", fit)
    report = run_search(trials=9)
    [failed] = report.failed
    second = sorted(scores.values())[-2]
    assert scores[float(failed.settings["fit.learning_rate"])] == max(scores.values())  # type: ignore[arg-type]
    assert (report.best.score, len(report.best.best)) == (pytest.approx(second), 9)


def test_defaults_whose_loss_is_no_number_end_the_search(
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, diverge_above(0))
    with pytest.raises(LossNotFinite, match="the loss became inf"):
        run_search(trials=4)


def test_a_stored_failure_of_what_are_now_the_defaults_ends_the_search_too(
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(model: ModelConfig, fit: FitConfig) -> float:
        if fit.epochs == 30:
            raise LossNotFinite("the loss became nan")
        return 0.5

    plant(monkeypatch, score)
    assert run_search(trials=9, fixed=tuple(set(SPACE) - {"fit.epochs"})).failed
    with pytest.raises(LossNotFinite, match="became nan"):
        run_search(trials=3, fit=FitConfig(epochs=30))


def test_another_error_of_a_training_is_no_failed_draw(
    run_search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(model: ModelConfig, fit: FitConfig) -> float:
        if fit.learning_rate != 1e-3:
            raise UsageError("a model of hidden = 512 cannot be built")
        return 0.5

    plant(monkeypatch, score)
    with pytest.raises(UsageError, match="cannot be built"):
        run_search(trials=4)
