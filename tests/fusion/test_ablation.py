"""The ablation: each cell once, and what was planted stands in the table."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusion.ablation import AblateConfig, ablate, render_ablation
from fusion.fit import FitConfig
from fusion.html_report import read_ablation
from fusion.looks import count_looks
from fusion.model import ModelConfig
from pipeline.cache import FeatureCache
from pipeline.errors import CacheCorrupt, UsageError


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
        fit=FitConfig(epochs=10, learning_rate=3e-3, batch_size=32),
    )


def test_every_subset_with_every_fusion_and_the_planted_order(config: AblateConfig) -> None:
    report = ablate(config)
    scores = {(cell.name, cell.fusion): np.mean(cell.emotion_f1) for cell in report.cells}
    assert len(scores) == 7 * 2
    for fusion in ("late", "gated"):
        assert scores["video", fusion] < 0.3
        assert scores["text+audio", fusion] > scores["text", fusion] > 0.4
        assert scores["text+audio", fusion] > scores["audio", fusion]
    assert (config.out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert all(cell.emotion_interval is not None for cell in report.cells)
    assert report.random_modalities == ("video",)
    render_ablation(report)


def test_a_stopped_ablation_goes_on_and_says_the_same(config: AblateConfig) -> None:
    few = replace(config, modalities=("text", "audio"), fusions=("late",))
    whole = ablate(few)
    written = (few.out / "ablation.json").read_bytes()
    sorted((few.out / "cells").iterdir())[0].unlink()
    (few.out / "ablation.json").unlink()
    again = ablate(few)
    assert again.reused == 2
    assert again.cells == whole.cells
    assert (few.out / "ablation.json").read_bytes() == written


def test_other_settings_or_features_use_no_old_cell(
    config: AblateConfig, write_split: Callable[..., FeatureCache]
) -> None:
    few = replace(config, modalities=("text",), fusions=("late",))
    ablate(few)
    assert ablate(few).reused == 1
    assert ablate(replace(few, seeds=1)).reused == 0
    assert ablate(replace(few, modalities=("text", "audio"))).reused == 1
    write_split("train", 245, modalities=("text", "video", "audio"), strength=4.0)
    assert ablate(few).reused == 0


def test_looking_at_test_is_written_down(config: AblateConfig) -> None:
    few = replace(config, modalities=("text",), fusions=("late",))
    assert ablate(few).test_looks == 0
    assert count_looks(config.out) == 0
    assert ablate(replace(few, split="test")).test_looks == 1
    assert count_looks(config.out) == 1


def test_the_report_page_reads_what_is_written(config: AblateConfig) -> None:
    report = ablate(replace(config, modalities=("text", "audio"), fusions=("late",)))
    rows = read_ablation(config.out / "ablation.json")
    assert [row.modalities for row in rows] == ["text", "audio", "text + audio"]
    assert rows[-1].emotion_f1 == report.cells[-1].emotion_f1


def test_a_damaged_cell_is_named(config: AblateConfig) -> None:
    few = replace(config, modalities=("text",), fusions=("late",))
    ablate(few)
    cell = next((config.out / "cells").iterdir())
    cell.write_text(json.dumps({"modalities": ["text"]}))
    with pytest.raises(CacheCorrupt, match=cell.name):
        ablate(few)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fusions": ("magic",)},
        {"fusions": ()},
        {"fusions": ("late", "late")},
        {"seeds": 0},
        {"split": "train"},
    ],
)
def test_settings_without_meaning_are_refused(wrong: dict) -> None:
    with pytest.raises(UsageError):
        AblateConfig.from_mapping(wrong)
