"""The plot of a training, under whatever name its folder has."""

import os
from pathlib import Path

import pytest

from fusion.training.curves import plot_history
from fusion.training.history import EpochResult


@pytest.mark.parametrize("name", [os.fsdecode(b"cost \xff"), "two\nlines", "$x_1$", "感情"])
def test_a_folders_name_is_the_title_whatever_is_in_it(tmp_path: Path, name: str) -> None:
    epoch = EpochResult(
        epoch=1,
        train_loss=2.0,
        dev_loss=2.1,
        dev_emotion_f1=0.5,
        dev_sentiment_f1=None,
        score=0.5,
        learning_rate=1e-3,
        seconds=1.0,
    )
    plot_history([epoch], tmp_path / "training.png", title=name)
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
