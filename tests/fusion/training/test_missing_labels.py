"""Corpora without one of the two labels, or without some of its classes: what there is no row of
is not measured, and nobody takes what an untrained head says for a prediction."""

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from console.show.ablation import render_ablation
from console.show.comparison import render_comparison
from console.show.crossval import render_crossval
from console.show.evaluation import render_report
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.evaluation.report import EvalReport
from fusion.experiments.ablation import AblateConfig, ablate
from fusion.experiments.compare import CompareConfig, compare
from fusion.experiments.crossval import CrossvalConfig, crossval
from fusion.inference.checkpoint import read_checkpoint
from fusion.labels import HEADS, Head
from fusion.reporting.html import HtmlReportConfig, write_html_report
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.history import read_history
from fusion.training.losses import LossConfig
from fusion.training.train import train_fusion
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.errors import InputError
from pipeline.schema import Split

pytestmark = pytest.mark.heavy

QUICK = FitConfig(epochs=3, batch_size=70, learning_rate=1e-2)
ROWS: dict[Split, int] = {"train": 140, "dev": 50, "test": 50}
Plant = Callable[..., None]


@pytest.fixture
def plant(features: Path, plant_cache: Callable[..., FeatureCache]) -> Plant:
    """plant(without={"train": ["sentiment"]}, emotions=("joy",)): caches less those labels, and
    only the rows of some emotions."""

    def write(
        without: Mapping[Split, Sequence[Head]] | None = None,
        emotions: tuple[str, ...] | None = None,
    ) -> None:
        for split, rows in ROWS.items():
            cache = plant_cache(split, rows, strength=6.0)
            labels = {head: [""] * rows for head in (without or {}).get(split, ())}
            cache = dataclasses.replace(cache, **labels)
            if emotions is not None:
                kept = np.flatnonzero(np.isin(cache.emotion, emotions))
                cache = take(cache, kept)
            write_cache(features / f"{split}.h5", cache)

    return write


def take(cache: FeatureCache, rows: np.ndarray) -> FeatureCache:
    return dataclasses.replace(
        cache,
        dialogue_id=np.arange(len(rows)) // 5,
        utterance_id=np.arange(len(rows)) % 5,
        text=[cache.text[row] for row in rows],
        speaker=[cache.speaker[row] for row in rows],
        emotion=[cache.emotion[row] for row in rows],
        sentiment=[cache.sentiment[row] for row in rows],
        raw={name: values[rows] for name, values in cache.raw.items()},
        present={name: values[rows] for name, values in cache.present.items()},
    )


@pytest.fixture
def config(features: Path) -> TrainConfig:
    return TrainConfig(features=features, out=features.parent / "run", fit=QUICK, device="cpu")


def shown(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def numbers(values: Any) -> Iterator[float]:
    """Every number in JSON values."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from numbers(value)
    elif isinstance(values, int | float):
        yield values


def check_that_nothing_is_said_of(head: Head, report: EvalReport) -> None:
    values = report.to_dict()[head]
    assert values["rows"] == 0
    assert values["not_measured"]
    for who in ("model", "majority"):
        scores = values[who]
        assert [scores[name] for name in ("accuracy", "weighted_f1", "macro_f1")] == [None] * 3
        assert {each[name] for each in scores["classes"] for name in ("f1", "recall")} == {None}
    assert (values["weighted_f1_interval"], values["accuracy_interval"]) == (None, None)
    for each in report.subsets:
        assert getattr(each, f"{head}_f1") is getattr(each, f"{head}_ece") is None
    line = next(line for line in shown(render_report(report)).splitlines() if head in line[2:])
    assert f"{head}: not measured: " in shown(render_report(report))
    assert "0.000" not in line
    assert all(map(math.isfinite, numbers(report.to_dict())))


@pytest.mark.parametrize("head", HEADS)
def test_a_corpus_without_a_label_trains_the_other_head_and_says_so(
    plant: Plant, config: TrainConfig, head: Head, request: pytest.FixtureRequest
) -> None:
    if head == "sentiment":  # the one is drawn as the other
        request.getfixturevalue("plots")
    plant(without=dict.fromkeys(ROWS, (head,)))
    result = train_fusion(config)
    [other] = [each for each in HEADS if each != head]
    check_that_nothing_is_said_of(head, result.dev)
    assert getattr(result.dev, head).majority_label is None
    assert f"no row of train had a label of {head}" in getattr(result.dev, head).not_measured
    assert getattr(result.dev, other).model.weighted_f1 > 0.5
    assert read_checkpoint(result.run).untrained == (head,)
    assert result.dev.joint is None
    history = read_history(result.run / "history.jsonl")
    assert {getattr(each, f"dev_{head}_f1") for each in history} == {None}
    # What is left chooses the epoch.
    assert [each.score for each in history] == [
        getattr(each, f"dev_{other}_f1") for each in history
    ]
    assert result.best_epoch == max(history, key=lambda each: each.score).epoch
    report = evaluate(EvaluateConfig(run=result.run))
    check_that_nothing_is_said_of(head, report)
    assert json.loads((result.run / "evaluation-test.json").read_text()) == report.to_dict()


def test_labels_of_test_do_not_make_an_untrained_head_one_that_is_measured(
    plant: Plant, config: TrainConfig
) -> None:
    plant(without={"train": ["sentiment"]})
    run = train_fusion(config).run
    report = evaluate(EvaluateConfig(run=run))
    check_that_nothing_is_said_of("sentiment", report)
    assert "untrained" in report.sentiment.not_measured
    assert report.emotion.rows == 50
    assert report.calibration is not None
    assert report.calibration.sentiment is None


def test_a_head_whose_loss_counts_nothing_is_untrained_too(
    plant: Plant, config: TrainConfig
) -> None:
    plant()
    fit = dataclasses.replace(QUICK, loss=LossConfig(sentiment_weight=0))
    result = train_fusion(dataclasses.replace(config, fit=fit))
    check_that_nothing_is_said_of("sentiment", result.dev)
    assert "loss.sentiment_weight" in result.dev.sentiment.not_measured
    decoding = read_checkpoint(result.run).decoding
    assert decoding is not None
    assert np.all(decoding.allowed)  # its word binds the other head's in nothing


def test_a_head_that_the_start_had_learned_is_measured(
    plant: Plant, config: TrainConfig, tmp_path: Path
) -> None:
    plant()
    start = train_fusion(config).run
    plant(without={"train": ["sentiment"]})
    on = train_fusion(dataclasses.replace(config, start=start, out=tmp_path / "on"))
    assert on.dev.sentiment.rows == 50
    assert on.dev.sentiment.majority_label is not None
    assert read_checkpoint(on.run).untrained == ()


def test_labels_that_only_dev_lacks_are_learned_and_measured_on_test(
    plant: Plant, config: TrainConfig
) -> None:
    plant(without={"dev": ["sentiment"]})
    result = train_fusion(config)
    assert result.dev.sentiment.not_measured == "no row of dev has a label of sentiment"
    assert evaluate(EvaluateConfig(run=result.run)).sentiment.rows == 50


def test_a_dev_that_can_choose_nothing_is_reported_in_one_line(
    plant: Plant, config: TrainConfig
) -> None:
    plant(without={"train": ["sentiment"], "dev": ["emotion"]})
    with pytest.raises(InputError, match=r"learned from train \(emotion\).*--dev-share"):
        train_fusion(config)


def test_a_corpus_without_any_label_is_reported_in_one_line(
    plant: Plant, config: TrainConfig
) -> None:
    plant(without=dict.fromkeys(ROWS, HEADS))
    with pytest.raises(InputError, match="none of 140 rows has an emotion or sentiment label"):
        train_fusion(config)


def test_heads_that_one_of_two_runs_never_learned_are_not_compared(
    plant: Plant, config: TrainConfig, tmp_path: Path
) -> None:
    plant()
    whole = train_fusion(config).run
    fit = dataclasses.replace(QUICK, loss=LossConfig(sentiment_weight=0))
    half = train_fusion(dataclasses.replace(config, fit=fit, out=tmp_path / "half")).run
    for runs, side in (((whole, half), "B"), ((half, whole), "A")):
        found = compare(CompareConfig(run_a=runs[0], run_b=runs[1], samples=100))
        assert found.emotion.rows == 50
        assert (found.sentiment.rows, found.sentiment.a, found.sentiment.b) == (0, None, None)
        assert found.sentiment.verdict == f"not compared: the head of {side} is untrained"
        table = shown(render_comparison(found))
        assert all(
            line.rstrip(" │|").endswith("-") for line in table.splitlines() if "right" in line[:22]
        )


def test_tables_of_experiments_and_the_page_show_no_score_of_nothing(
    plant: Plant, config: TrainConfig, tmp_path: Path
) -> None:
    plant(without={"train": ["sentiment"], "dev": ["sentiment"]})
    ablation = ablate(
        AblateConfig(
            features=config.features,
            modalities=("text",),
            fusions=("late",),
            split="test",
            seeds=1,
            fit=QUICK,
            out=tmp_path / "ablation",
        )
    )
    assert {cell.sentiment_f1 for cell in ablation.cells} == {()}
    assert "sentiment: not measured" in shown(render_ablation(ablation))
    crossed = crossval(CrossvalConfig(features=config.features, folds=2, seeds=1, fit=QUICK))
    assert crossed.sentiment == ()
    assert "sentiment: not measured" in shown(render_crossval(crossed))
    run = train_fusion(config).run
    page = HtmlReportConfig(
        runs=(run, run),
        out=tmp_path / "report.html",
        ablation=tmp_path / "ablation" / "ablation.json",
    )
    write_html_report(page)
    words = page.out.read_text()
    assert "sentiment: not measured: the head is untrained" in words
    assert "<caption>Sentiment</caption>" not in words


def test_an_ablation_of_sentiment_alone_is_led_and_drawn_by_it(
    plant: Plant, config: TrainConfig, tmp_path: Path
) -> None:
    plant(without=dict.fromkeys(ROWS, ("emotion",)))
    report = ablate(
        AblateConfig(
            features=config.features,
            fusions=("late",),
            seeds=1,
            fit=QUICK,
            out=tmp_path / "ablation",
        )
    )
    best = report.best
    assert best is not None
    assert best.sentiment_mean == max(cell.sentiment_mean or 0 for cell in report.cells)
    assert best.emotion_mean is None


@pytest.mark.parametrize("emotions", [("neutral", "joy", "sadness", "anger"), ("neutral",)])
def test_macro_f1_is_over_the_classes_that_occur_and_says_so(
    plant: Plant,
    config: TrainConfig,
    emotions: tuple[str, ...],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    if len(emotions) == 1:  # a picture of fewer classes yet
        request.getfixturevalue("plots")
    plant(emotions=emotions)
    fit = dataclasses.replace(QUICK, epochs=10)
    result = train_fusion(dataclasses.replace(config, fit=fit))
    report = evaluate(EvaluateConfig(run=result.run))
    scores = report.emotion.model
    assert scores.accuracy == pytest.approx(scores.macro_f1, abs=0.1)
    assert scores.accuracy is not None
    assert scores.accuracy > 0.8
    assert scores.macro_classes == len(emotions)
    note = f"emotion: macro F1 over {len(emotions)} of 7 classes, those that occur in truth or"
    assert note in " ".join(shown(render_report(report)).split())
    assert [each.label for each in scores.classes if each.f1 is None] == [
        each.label for each in scores.classes if each.label not in emotions
    ]
    crossed = crossval(CrossvalConfig(features=config.features, folds=2, seeds=1, fit=fit))
    assert note in " ".join(shown(render_crossval(crossed)).split())
    assert all(map(math.isfinite, numbers([report.to_dict(), crossed.to_dict()])))
    page = HtmlReportConfig(runs=(result.run,), out=tmp_path / "report.html")
    write_html_report(page)
    assert note in page.out.read_text()
