"""A search on planted rows, and trainings whose scores are planted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import fusion.experiments.search as module
from fusion.experiments.search import SearchConfig, search
from fusion.experiments.search_report import SearchReport
from fusion.model.dims import ModelConfig
from fusion.training.history import EpochResult
from tests.fusion.experiments.planted_scores import FIXED, RunSearch, Trained, result


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Trainings whose score is planted: the nearer the learning rate is to 1e-3 the better; with
    noise of the seed. What was trained, as (learning rate, seed)."""
    trained: Trained = []

    def fit(work: object, model: ModelConfig, fit: object, seeds: range) -> list[EpochResult]:
        rate = fit.learning_rate  # type: ignore[attr-defined]
        trained.extend((rate, seed) for seed in seeds)
        noise = [np.random.default_rng([seed, round(1e7 * rate)]).normal() / 100 for seed in seeds]
        return [result(0.6 - abs(np.log(rate / 1e-3)) / 10 + each) for each in noise]

    monkeypatch.setattr(module._Work, "_fit", fit)
    return trained


@pytest.fixture
def run_search(write_split: Callable[..., object], features: Path, tmp_path: Path) -> RunSearch:
    write_split("train", 60)
    write_split("dev", 20)

    def start(**settings: object) -> SearchReport:
        values = {"features": features, "out": tmp_path / "search", "fixed": FIXED} | settings
        return search(SearchConfig(**values))  # type: ignore[arg-type]

    return start


@pytest.fixture
def search_command(
    run_search: object, scored: object, features: Path, tmp_path: Path
) -> tuple[object, ...]:
    """The words of a command on planted rows, whose trainings have planted scores."""
    return ("search", "--features", features, "--out", tmp_path / "search")
