"""From features to the folder that is packaged: dev chooses, test reports, nothing private."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusion.bundled import make
from fusion.bundled.make import FILES, UNNAMED, Evaluations, train_bundled, write_card
from fusion.inference.checkpoint import read_checkpoint
from fusion.training.fit import FitConfig
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.schema import Split

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "SEEDS", 2)
        patch.setattr(make, "FIT", FitConfig(epochs=3, learning_rate=3e-3))
        yield


@pytest.fixture(scope="module")
def place(
    plant_cache: Callable[..., FeatureCache], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """features/: texts that say their emotion, in dialogues of five, all said by Joey."""
    place = tmp_path_factory.mktemp("bundled")
    splits: tuple[tuple[Split, int], ...] = (("train", 160), ("dev", 60), ("test", 60))
    for split, rows in splits:
        cache = plant_cache(split, rows, modalities=["text"], carriers=["text"])
        write_cache(place / "features" / f"{split}.h5", cache)
    return place


@pytest.fixture(scope="module")
def made(place: Path) -> Evaluations:
    """runs/ and out/"""
    return train_bundled(place / "features", place / "runs", place / "out")


def test_the_folder_is_made_from_the_seed_that_dev_prefers_and_is_the_same_again(
    place: Path, made: Evaluations
) -> None:
    runs = (place / "runs" / f"seed{seed}" for seed in range(2))
    on_dev = [json.loads((run / "metrics.json").read_text())["best"]["score"] for run in runs]
    assert made.dev.score == pytest.approx(max(on_dev))
    assert made.test.emotion.model.weighted_f1 > 0.5  # planted, so it can be learned
    files = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    assert set(files) == set(FILES)
    assert not any(str(place).encode() in content for content in files.values())
    assert not any(b"line 1" in content for content in files.values())  # what the corpus says
    train_bundled(place / "features", place / "again", place / "out-again")
    assert files == {path.name: path.read_bytes() for path in (place / "out-again").iterdir()}


def test_the_card_says_what_was_measured(place: Path, made: Evaluations) -> None:
    out = place / "out"
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
