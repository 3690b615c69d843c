"""Many clips that kill whoever decodes them, through the whole command: each is given up, named and
told of, the run ends with status 3, and the cost grows with their number and no faster."""

import os
import signal
import wave
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.format import read_cache
from pipeline.decode.clip import decode_clip
from pipeline.parallel import engine as parallel
from pipeline.schema import DecodedClip, LocatedClip
from tests.conftest import Meld

ROWS_PER_SHARD = 16


def write_corpus(folder: Path, num_clips: int) -> None:
    """One file of two seconds of sound under many names."""
    clips = folder / "train_splits"
    clips.mkdir(parents=True)
    samples = 8000 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(samples.astype("<i2").tobytes())
    rows = ["Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID"]
    for number in range(num_clips):
        os.link(folder / "sound.wav", clips / f"dia{number // 10}_utt{number % 10}.wav")
        rows.append(f"sentence {number},Joey,joy,positive,{number // 10},{number % 10}")
    (folder / "train_sent_emo.csv").write_text("\n".join(rows))


@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    ("num_clips", "killers"),
    [
        pytest.param(100, range(40, 50), id="ten-in-a-row", marks=pytest.mark.slow),
        pytest.param(1000, range(7, 1000, 10), id="every-tenth", marks=pytest.mark.slow),
    ],
)
def test_each_killer_costs_two_deaths_of_its_own_and_each_shard_a_worker(
    num_clips: int, killers: range, tmp_path: Path, meld: Meld, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, deaths = tmp_path / "data", tmp_path / "deaths"
    write_corpus(data, num_clips)
    names = [f"train dia{number // 10}_utt{number % 10}" for number in range(num_clips)]
    deadly_names = {names[number] for number in killers}

    def deadly(clip: LocatedClip, **rest: Any) -> DecodedClip:
        name = str(clip.utterance.key)
        if name in deadly_names:
            with deaths.open("a") as file:
                file.write(f"{name}\n")
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_clip(clip, **rest)

    monkeypatch.setattr(parallel, "decode_clip", deadly)
    settings = tmp_path / "settings.toml"
    settings.write_text(f"rows_per_shard = {ROWS_PER_SHARD}\n")
    finished = meld(
        *("extract", "--split", "train", "--data", data, "--features", tmp_path / "features"),
        *("--modalities", "audio", "--config", settings, "--json"),
    )
    assert finished.status == 3, finished.err
    [split] = finished.json["splits"]
    found = [(failure["clip"], failure["code"]) for failure in split["failures"]]
    assert sorted(found) == sorted((name, "killed_worker") for name in deadly_names)
    present = read_cache(tmp_path / "features" / "train.h5").present["audio"]
    assert present.tolist() == [name not in deadly_names for name in names]

    died = Counter(deaths.read_text().splitlines())
    assert died.keys() == deadly_names
    num_shards = len({number // ROWS_PER_SHARD for number in killers})
    assert died.total() == 2 * len(killers) + num_shards
