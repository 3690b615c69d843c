"""A run on imported features is trained, measured and reported as one, and predicts nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.format import FeatureCache, read_cache
from pipeline.schema import EMOTIONS

Meld = Callable[..., Any]


@pytest.fixture
def run(
    meld: Meld, write_split: Callable[..., FeatureCache], features: Path, tmp_path: Path
) -> Path:
    """A run on text and on features that were imported as openSMILE writes them."""
    for split, rows in (("train", 120), ("dev", 40), ("test", 40)):
        cache = write_split(split, rows, modalities=["text"], carriers=[])
        lines = ["name;frameTime;first;second"]
        random = np.random.default_rng(rows)
        for key, emotion in zip(cache.keys, cache.emotion, strict=True):
            numbers = random.normal(size=2) + 3 * (EMOTIONS.index(emotion) < 3)
            name = f"dia{key.dialogue_id}_utt{key.utterance_id}"
            lines.append(f"'{name}';0;{numbers[0]!r};{numbers[1]!r}".replace("np.float64", ""))
        path = tmp_path / f"smile/{split}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(lines).replace("(", "").replace(")", ""))
    done = meld("import", "--modality", "audio", "--name", "egemaps", "--from", tmp_path / "smile",
                "--features", features)  # fmt: skip
    assert done.status == 0, done.err + done.out
    trained = meld("train-fusion", "--features", features, "--out", tmp_path / "run", "--epochs", 3)
    assert trained.status == 0, trained.err
    assert "audio: FOREIGN, egemaps" in trained.out
    return tmp_path / "run"


@pytest.mark.heavy  # predict starts a process that decodes
def test_it_is_measured_and_reported_as_foreign_and_predicts_nothing(
    meld: Meld, run: Path, features: Path, tmp_path: Path
) -> None:
    assert read_cache(features / "train.h5").recipe.foreign == {"audio": "egemaps"}
    measured = meld("evaluate", run)
    assert measured.status == 0, measured.err
    assert "audio: FOREIGN, egemaps" in " ".join(measured.out.split())
    presence = meld("evaluate", run, "--split", "dev", "--json").json["presence"]
    assert [each["foreign"] for each in presence] == ["", "egemaps"]

    page = tmp_path / "report.html"
    assert meld("report", run, run, "--split", "dev", "--out", page).status == 0
    assert "<strong>FOREIGN: audio.</strong>" in page.read_text()
    assert "FOREIGN: audio, egemaps</span>" in page.read_text()

    tables = meld("crossval", "--features", features, "--seeds", 1, "--epochs", 1, "--folds", 2)
    assert "audio: FOREIGN features, made by egemaps" in tables.out, tables.err
    ablated = meld("ablate", "--features", features, "--out", tmp_path / "ablation", "--fusion",
                   "late", "--seeds", 1, "--epochs", 1)  # fmt: skip
    assert "audio: FOREIGN features, made by egemaps" in ablated.out, ablated.err

    told = meld("info", run).out
    assert "audio: FOREIGN features, imported, made by egemaps" in told
    assert f"meld import --modality audio --name egemaps --features {features}" in told

    clip = tmp_path / "talk.mp4"
    clip.write_bytes(b"")
    refused = meld("predict", clip, "--text", "Hello.", "--model", run)
    assert refused.status == 6
    [line] = refused.err.splitlines()
    assert line.startswith("meld: error: the audio features were imported (egemaps): no encoder")
