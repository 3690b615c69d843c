"""The ablation: each cell once, and what was planted stands in the table."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from console.show.ablation import render_ablation
from fusion.evaluation.test_evaluations import count_evaluations
from fusion.experiments.ablation import ABLATION, AblateConfig, ablate
from fusion.model.dims import FusionType, ModelConfig
from fusion.reporting.html import read_ablation
from fusion.training.fit import FitConfig
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.errors import CacheBusy, CacheCorrupt, UsageError
from pipeline.schema import Split

pytestmark = pytest.mark.heavy

ROWS: dict[Split, int] = {"train": 240, "dev": 80, "test": 80}
SMALL = ModelConfig(projection=16, hidden=32, dropout=0.1)
ONE_STEP = FitConfig(epochs=1, batch_size=240)
BARS = "fusion.evaluation.plots.plot_bars"
PLANTED: dict[str, Any] = {"modalities": ("text", "video", "audio"), "strength": 4.0}


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory, plant_cache: Callable[..., FeatureCache]
) -> Path:
    """Text and audio carry the label, video is noise. Not to be written to."""
    folder = tmp_path_factory.mktemp("planted")
    for split, rows in ROWS.items():
        write_cache(folder / f"{split}.h5", plant_cache(split, rows, **PLANTED))
    return folder


@pytest.fixture
def config(planted: Path, features: Path, tmp_path: Path) -> AblateConfig:
    shutil.copytree(planted, features)
    return AblateConfig(
        features=features,
        fusions=("late", "gated"),
        seeds=2,
        out=tmp_path / "ablation",
        model=SMALL,
        fit=ONE_STEP,
    )


@pytest.fixture
def untrained(config: AblateConfig, monkeypatch: pytest.MonkeyPatch) -> AblateConfig:
    """For what is kept and what is written: one step of training, nothing is drawn."""
    monkeypatch.setattr(BARS, lambda *_, **__: None)
    return config


@pytest.fixture(scope="module")
def one_cell(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an ablation of text alone wrote. Not to be written to."""
    out = tmp_path_factory.mktemp("one") / "ablation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BARS, lambda *_, **__: None)
        ablate(of_text_alone(AblateConfig(features=planted, out=out, model=SMALL, fit=ONE_STEP)))
    return out


def of_text_alone(config: AblateConfig) -> AblateConfig:
    return replace(config, modalities=("text",), fusions=("late",), seeds=1)


@pytest.mark.parametrize(
    ("fusions", "fit"),
    [
        (("late",), FitConfig(epochs=4, learning_rate=1e-2, batch_size=60)),
        pytest.param(
            ("late", "gated"),
            FitConfig(epochs=6, learning_rate=3e-3, batch_size=32),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_subset_with_every_fusion_and_the_planted_order(
    config: AblateConfig, fusions: tuple[FusionType, ...], fit: FitConfig
) -> None:
    report = ablate(replace(config, fusions=fusions, seeds=1, fit=fit))
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


def test_nothing_is_written_beside_something_else(config: AblateConfig) -> None:
    there = sorted(config.features.iterdir())
    with pytest.raises(UsageError, match="is not empty and holds no ablation of meld"):
        ablate(replace(config, out=config.features))
    assert sorted(config.features.iterdir()) == there


def test_a_killed_one_goes_on_and_a_second_at_once_is_refused(
    untrained: AblateConfig, one_cell: Path
) -> None:
    shutil.copytree(one_cell, untrained.out)
    killed = untrained.out / "cells" / ".text-late-0123456789ab.json.77-0a0b0c0d.tmp"
    killed.touch()
    again = of_text_alone(untrained)
    assert ablate(again).reused == 1
    assert not killed.exists()
    with ABLATION.open(again.out), pytest.raises(CacheBusy, match=r"the ablation .* process"):
        ablate(again)


def test_other_settings_or_features_use_no_old_cell(
    untrained: AblateConfig, write_split: Callable[..., FeatureCache]
) -> None:
    few = replace(untrained, modalities=("text",), fusions=("late",))
    ablate(few)
    assert ablate(few).reused == 1
    assert ablate(replace(few, seeds=1)).reused == 0
    assert ablate(replace(few, modalities=("text", "audio"))).reused == 1
    write_split("train", 245, **PLANTED)
    assert ablate(few).reused == 0


@pytest.mark.parametrize("what", ["emotion", "sentiment", "speaker", "present", "raw"])
@pytest.mark.parametrize("split", ["dev", "train"])
def test_what_a_cell_was_measured_on_is_part_of_it(
    what: str,
    split: Split,
    untrained: AblateConfig,
    one_cell: Path,
    plant_cache: Callable[..., FeatureCache],
) -> None:
    few = of_text_alone(untrained)
    shutil.copytree(one_cell, few.out)
    assert ablate(few).reused == 1
    cache = plant_cache(split, ROWS[split], **PLANTED)
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


def test_features_that_were_moved_use_the_old_cells(
    untrained: AblateConfig, one_cell: Path
) -> None:
    few = of_text_alone(untrained)
    shutil.copytree(one_cell, few.out)
    moved = few.features.rename(few.features.with_name("moved"))
    assert ablate(replace(few, features=moved)).reused == 1


def test_looking_at_test_is_written_down(untrained: AblateConfig) -> None:
    few = of_text_alone(untrained)
    assert ablate(few).test_evaluations == 0
    assert count_evaluations(untrained.out) == 0
    assert ablate(replace(few, split="test")).test_evaluations == 1
    assert count_evaluations(untrained.out) == 1


def test_the_report_page_reads_what_is_written(untrained: AblateConfig) -> None:
    report = ablate(replace(untrained, modalities=("text", "audio"), fusions=("late",)))
    stored = read_ablation(untrained.out / "ablation.json")
    assert stored.cells == report.cells
    assert stored.split == "dev"


def test_a_damaged_cell_is_named(untrained: AblateConfig, one_cell: Path) -> None:
    few = of_text_alone(untrained)
    shutil.copytree(one_cell, few.out)
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
    few = replace(of_text_alone(untrained), split="test", out=out)
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
        {"fit": {"loss": {"teacher_weight": 0.9}}},
        {"fit": {"loss": {"teacher_temperature": 1.0}}},
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        AblateConfig.from_mapping(wrong)
