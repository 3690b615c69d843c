"""Every encoder on the whole way: extract, train-fusion, evaluate, predict.

The first clip of dev is predicted as somebody's own file, too: its probabilities are those that
`meld evaluate` writes of its row, so both ways encode alike.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.format import read_cache
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.schema import SPLITS, Modality
from tests.conftest import Meld
from tests.pipeline.encoders.test_speech import LAYERS, WIDTH, make

pytestmark = pytest.mark.heavy

# Encoders by modality, shapes of their features, further options of `meld extract`, and a folder
# that what made the features is searched in.
Shapes = dict[Modality, tuple[int, int]]
Ask = tuple[dict[Modality, str], Shapes, tuple[str, ...], Path]


@pytest.fixture(scope="module")
def asks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Ask]:
    folder = tmp_path_factory.mktemp("encoders")
    words = "the a i you it is n't 's ! . ? , to and my we".split()
    lines = [f"{word} {row} {row % 3} 1.5\n" for row, word in enumerate(words)]
    (folder / "tiny.txt").write_text("".join(lines))

    def ask(name: str) -> Ask:
        speech = "whisper" if name == "word vectors, faces and whisper" else "wav2vec2"
        audio, _ = make(speech, folder / speech)
        encoders: dict[Modality, str] = {"audio": str(audio)}
        dims: Shapes = {"audio": (LAYERS + 1, WIDTH)}
        if speech == "whisper":
            encoders |= {"text": f"glove:{folder / 'tiny.txt'}", "video": "faces"}
            return encoders, {"text": (1, 3), "video": (1, 271), **dims}, (), folder
        encoders |= {"video": "resnet18"}
        return encoders, {"video": (1, 1024), **dims}, ("--weights", "video=random"), folder

    return ask


@pytest.mark.parametrize(
    "name",
    [
        "word vectors, faces and whisper",
        pytest.param("an image net and wav2vec2", marks=pytest.mark.slow),
    ],
)
def test_each_goes_from_clips_to_predictions(
    name: str,
    asks: Callable[[str], Ask],
    corpus: Path,
    tmp_path: Path,
    meld: Meld,
    ray_here: None,
) -> None:
    encoders, dims, options, weights_dir = asks(name)
    features, run = tmp_path / "features", tmp_path / "run"
    asked = [part for modality, each in encoders.items() for part in (f"--{modality}", each)]
    settings = tmp_path / "few.toml"
    frames = "num_frames = 4\n" if "video" in encoders else ""
    settings.write_text(f"rows_per_shard = 4\n{frames}")
    extracted = meld(
        *("extract", "--split", "all", "--data", corpus, "--features", features),
        *("--modalities", ",".join(encoders), "--config", settings, *asked, *options, "--json"),
    )
    assert extracted.status in (0, 3), extracted.err  # what is absent is recorded
    for split in SPLITS:
        cache = read_cache(features / f"{split}.h5")
        for modality, shape in dims.items():
            there = cache.present[modality]
            assert there.any()
            assert cache.raw[modality].shape[1:] == shape
            assert np.isfinite(cache.raw[modality][there]).all()
    trained = meld("train-fusion", "--features", features, "--out", run, "--epochs", 1)
    assert trained.status == 0, trained.err
    table = tmp_path / "dev.csv"
    evaluated = meld(
        *("evaluate", run, "--features", features, "--split", "dev", "--predictions", table)
    )
    assert evaluated.status == 0, evaluated.err

    [clip, *_] = locate_clips(corpus, "dev", read_corpus(corpus, ("dev",))["dev"], "fixed")
    assert clip.path is not None
    with table.open() as file:
        row = next(
            row for row in csv.DictReader(file) if int(row["utterance_id"]) == clip.utterance.key[2]
        )
    predicted = meld(
        *("predict", clip.path, "--model", run, "--text", clip.utterance.text, "--json"),
        *("--out", tmp_path / "out", "--weights-dir", weights_dir),
    )
    assert predicted.status == 0, predicted.err
    [utterance] = predicted.json["files"][0]["timeline"]["utterances"]
    for emotion, probability in utterance["emotion"]["probabilities"].items():
        assert probability == pytest.approx(float(row[f"emotion_{emotion}"]), abs=2e-3)
