"""From features to the folder that is packaged: dev chooses, test reports, nothing private."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.bundled import make
from fusion.bundled.make import FILES, UNNAMED, train_bundled, write_card
from fusion.inference.checkpoint import read_checkpoint
from fusion.training.fit import FitConfig
from pipeline.cache.format import FeatureCache

pytestmark = pytest.mark.heavy


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "SEEDS", 2)
    monkeypatch.setattr(make, "FIT", FitConfig(epochs=3, learning_rate=3e-3))


@pytest.fixture
def planted(write_split: Callable[..., FeatureCache], features: Path) -> Path:
    """Texts that say their emotion, in dialogues of five, all said by Joey."""
    for split, rows in (("train", 160), ("dev", 60), ("test", 60)):
        write_split(split, rows, modalities=["text"], carriers=["text"])
    return features


def test_the_folder_is_made_from_the_seed_that_dev_prefers_and_is_the_same_again(
    planted: Path, tmp_path: Path
) -> None:
    made = train_bundled(planted, tmp_path / "runs", tmp_path / "out")
    runs = (tmp_path / "runs" / f"seed{seed}" for seed in range(2))
    on_dev = [json.loads((run / "metrics.json").read_text())["best"]["score"] for run in runs]
    assert made.dev.score == pytest.approx(max(on_dev))
    assert made.test.emotion.model.weighted_f1 > 0.5  # planted, so it can be learned
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == set(FILES)
    assert not any(str(tmp_path).encode() in content for content in files.values())
    assert not any(b"line 1" in content for content in files.values())  # what the corpus says
    train_bundled(planted, tmp_path / "again", tmp_path / "out-again")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out-again").iterdir()}


def test_the_card_says_what_was_measured(planted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = train_bundled(planted, tmp_path / "runs", out)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card == write_card(out)
    measured = made.test.emotion
    assert measured.weighted_f1_interval is not None
    low, high = measured.weighted_f1_interval.low, measured.weighted_f1_interval.high
    assert f"{measured.model.weighted_f1:.3f} [{low:.3f}, {high:.3f}]" in card
    for each in measured.model.classes:
        assert f"| {each.label} | {each.f1:.3f} |" in card
    hard = [each.label for each in measured.model.classes if each.f1 < 0.3]
    assert (f"It cannot tell {' and '.join(hard)}" in card) == bool(hard)
    assert str(json.loads((out / UNNAMED).read_text())["rows"]) in card
    assert f"Trained on the {sum(read_checkpoint(out).emotion_counts)} utterances" in card
