"""Trainings of a search whose scores are planted: nothing is trained."""

from collections.abc import Callable
from typing import Any

import pytest

import fusion.experiments.search as module
from fusion.experiments.search_report import SearchReport
from fusion.experiments.search_space import SPACE
from fusion.model.dims import ModelConfig
from fusion.training.fit import FitConfig
from fusion.training.history import EpochResult

FIXED = tuple(name for name in SPACE if name not in ("fit.learning_rate", "model.hidden"))

RunSearch = Callable[..., SearchReport]
Trained = list[tuple[float, int]]  # learning rate and seed of each


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


def plant(monkeypatch: pytest.MonkeyPatch, score: Callable[[ModelConfig, FitConfig], float]) -> Any:
    """Trainings of these scores; what was trained, as (model, fit, seeds)."""
    trained: list[tuple[ModelConfig, FitConfig, list[int]]] = []

    def fit(work: object, model: ModelConfig, fit: FitConfig, seeds: range) -> list[EpochResult]:
        trained.append((model, fit, list(seeds)))
        return [result(score(model, fit))] * len(seeds)

    monkeypatch.setattr(module._Work, "_fit", fit)
    return trained
