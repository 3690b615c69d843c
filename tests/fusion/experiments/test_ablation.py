"""The ablation: each cell once, and what was planted stands in the table."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from console.show.ablation import render_ablation
from fusion.evaluation.test_evaluations import count_evaluations
from fusion.experiments.ablation import AblateConfig, ablate
from fusion.model.dims import FusionType, ModelConfig
from fusion.reporting.html import read_ablation
from fusion.training.fit import FitConfig
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.errors import CacheCorrupt, UsageError
from pipeline.schema import Split

pytestmark = pytest.mark.heavy


@pytest.fixture
def config(
    features: Path, tmp_path: Path, write_split: Callable[..., FeatureCache]
) -> AblateConfig:
    """Text and audio carry the label, video is noise."""
    for split, rows in (("train", 240), ("dev", 80), ("test", 80)):
        write_split(split, rows, modalities=("text", "video", "audio"), strength=4.0)
    return AblateConfig(
        features=features,
        fusions=("late", "gated"),
        seeds=2,
        out=tmp_path / "ablation",
        model=ModelConfig(projection=16, hidden=32, dropout=0.1),
        fit=FitConfig(epochs=6, learning_rate=3e-3, batch_size=32),
    )


@pytest.fixture
def untrained(config: AblateConfig, monkeypatch: pytest.MonkeyPatch) -> AblateConfig:
    """For what is kept and what is written: one epoch, nothing is drawn."""
    monkeypatch.setattr("fusion.evaluation.plots.plot_bars", lambda *_, **__: None)
    return replace(config, fit=replace(config.fit, epochs=1))


@pytest.mark.parametrize(
    "fusions", [("gated",), pytest.param(("late", "gated"), marks=pytest.mark.slow)]
)
def test_every_subset_with_every_fusion_and_the_planted_order(
    config: AblateConfig, fusions: tuple[FusionType, ...]
) -> None:
    report = ablate(replace(config, fusions=fusions, seeds=1))
    scores = {(cell.name, cell.fusion): np.mean(cell.emotion_f1) for cell in report.cells}
    assert len(scores) == 7 * len(fusions)
    for fusion in fusions:
        assert scores["video", fusion] < 0.3
        assert scores["text+audio", fusion] > scores["text", fusion] > 0.4
        assert scores["text+audio", fusion] > scores["audio", fusion]
    assert (config.out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert all(cell.emotion_interval is not None for cell in report.cells)
    assert report.random_modalities == ("video",)
    render_ablation(report)


def test_a_stopped_ablation_goes_on_and_says_the_same(untrained: AblateConfig) -> None:
    few = replace(untrained, modalities=("text", "audio"), fusions=("late",))
    whole = ablate(few)
    written = (few.out / "ablation.json").read_bytes()
    sorted((few.out / "cells").iterdir())[0].unlink()
    (few.out / "ablation.json").unlink()
    again = ablate(few)
    assert again.reused == 2
    assert again.cells == whole.cells
    assert (few.out / "ablation.json").read_bytes() == written


def test_other_settings_or_features_use_no_old_cell(
    untrained: AblateConfig, write_split: Callable[..., FeatureCache]
) -> None:
    few = replace(untrained, modalities=("text",), fusions=("late",))
    ablate(few)
    assert ablate(few).reused == 1
    assert ablate(replace(few, seeds=1)).reused == 0
    assert ablate(replace(few, modalities=("text", "audio"))).reused == 1
    write_split("train", 245, modalities=("text", "video", "audio"), strength=4.0)
    assert ablate(few).reused == 0


@pytest.mark.parametrize("what", ["emotion", "sentiment", "speaker", "present", "raw"])
@pytest.mark.parametrize("split", ["dev", "train"])
def test_what_a_cell_was_measured_on_is_part_of_it(
    what: str, split: Split, untrained: AblateConfig, plant_cache: Callable[..., FeatureCache]
) -> None:
    few = replace(untrained, modalities=("text",), fusions=("late",), seeds=1)
    ablate(few)
    rows = {"train": 240, "dev": 80}[split]
    cache = plant_cache(split, rows, modalities=("text", "video", "audio"), strength=4.0)
    value = getattr(cache, what)
    if isinstance(value, dict):
        column = value["text"].copy()
        column[-1] = 0
        changed: object = {**value, "text": column}
    else:
        changed = [*value[:-1], "" if what != "speaker" else "Ross"]
    write_cache(few.features / f"{split}.h5", replace(cache, **{what: changed}))
    assert ablate(few).reused == 0
    assert ablate(few).reused == 1


def test_features_that_were_moved_use_the_old_cells(untrained: AblateConfig) -> None:
    few = replace(untrained, modalities=("text",), fusions=("late",), seeds=1)
    ablate(few)
    moved = few.features.rename(few.features.with_name("moved"))
    assert ablate(replace(few, features=moved)).reused == 1


def test_looking_at_test_is_written_down(untrained: AblateConfig) -> None:
    few = replace(untrained, modalities=("text",), fusions=("late",))
    assert ablate(few).test_evaluations == 0
    assert count_evaluations(untrained.out) == 0
    assert ablate(replace(few, split="test")).test_evaluations == 1
    assert count_evaluations(untrained.out) == 1


def test_the_report_page_reads_what_is_written(untrained: AblateConfig) -> None:
    report = ablate(replace(untrained, modalities=("text", "audio"), fusions=("late",)))
    stored = read_ablation(untrained.out / "ablation.json")
    assert stored.cells == report.cells
    assert stored.split == "dev"


def test_a_damaged_cell_is_named(untrained: AblateConfig) -> None:
    few = replace(untrained, modalities=("text",), fusions=("late",))
    ablate(few)
    cell = next((untrained.out / "cells").iterdir())
    whole = json.loads(cell.read_bytes())
    for damage in (
        {"modalities": ["text"]},
        [],
        {**whole, "modalities": ["audio"]},
        {**whole, "fusion": "gated"},
        {**whole, "emotion_interval": 5},
        {**whole, "emotion_interval": {"value": "x", "low": 0, "high": 1}},
        {**whole, "emotion_f1": [10**400]},
    ):
        cell.write_text(json.dumps(damage))
        with pytest.raises(CacheCorrupt, match=cell.name):
            ablate(few)


def test_a_folders_name_is_no_markup(untrained: AblateConfig) -> None:
    out = untrained.out.with_name("x[") / "red]y"
    few = replace(
        untrained, modalities=("text",), fusions=("late",), seeds=1, split="test", out=out
    )
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_ablation(ablate(few)))
    told = console.export_text()
    assert f"test was evaluated once with {out}" in told
    assert "±" not in told.splitlines()[4]  # one seed has no spread


@pytest.mark.parametrize(
    "wrong",
    [
        {"fusions": ("magic",)},
        {"fusions": ()},
        {"fusions": ("late", "late")},
        {"seeds": 0},
        {"seeds": 10**12},
        {"split": "train"},
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        AblateConfig.from_mapping(wrong)
