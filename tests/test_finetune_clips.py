"""Fine-tuning and measuring on raw clips, all three modalities, through the command line."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Meld = Callable[..., Any]


@pytest.mark.usefixtures("ray_here")
def test_raw_clips_of_three_modalities_are_fine_tuned_and_measured(
    corpus: Path, features: Path, tmp_path: Path, meld: Meld
) -> None:
    # Decoded clips are kept beside the features.
    features = shutil.copytree(features, tmp_path / "features")
    trained = meld("train-fusion", "--features", features, "--out", tmp_path / "run", "--epochs", 2)
    assert trained.status == 0, trained.err
    tuned = meld(
        *("finetune", "--end-to-end", "--run", tmp_path / "run", "--data", corpus, "--epochs", 1),
        *("--out", tmp_path / "tuned", "--json"),
    )
    assert tuned.status == 0, tuned.err
    assert tuned.json["parity"] < 0.25
    assert "plan: " in tuned.err
    assert "GiB where none is there yet" in tuned.err
    measured = meld("evaluate", tmp_path / "tuned", "--split", "dev", "--json")
    assert measured.status == 0, measured.err
    presence = {each["modality"]: each["random_weights"] for each in measured.json["presence"]}
    assert presence == {"text": False, "video": True, "audio": False}
    refused = meld("evaluate", tmp_path / "tuned", "--features", features)
    assert refused.status == 6
    assert "--encoders" in refused.err
