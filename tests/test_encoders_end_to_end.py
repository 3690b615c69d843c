"""Every encoder on the whole way: extract, train-fusion, evaluate, predict.

The first clip of dev is predicted as somebody's own file, too: its probabilities are those that
`meld evaluate` writes of its row, so both ways encode alike.
"""

import csv
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.format import read_cache
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.schema import SPLITS, Modality
from tests.conftest import Finished, Meld
from tests.pipeline.encoders.test_speech import LAYERS, WIDTH, make

pytestmark = pytest.mark.heavy

# Encoders by modality, shapes of their features, further options of `meld extract`, and a folder
# that what made the features is searched in.
Shapes = dict[Modality, tuple[int, int]]
Ask = tuple[dict[Modality, str], Shapes, tuple[str, ...], Path]


@pytest.fixture(scope="module")
def asks(tmp_path_factory: pytest.TempPathFactory, tiny_text_folder: Path) -> Callable[[str], Ask]:
    folder = tmp_path_factory.mktemp("encoders")
    words = "the a i you it is n't 's ! . ? , to and my we".split()
    lines = [f"{word} {row} {row % 3} 1.5\n" for row, word in enumerate(words)]
    (folder / "tiny.txt").write_text("".join(lines))

    def ask(name: str) -> Ask:
        words = f"glove:{folder / 'tiny.txt'}"
        encoders: dict[Modality, str]
        dims: Shapes
        if name == "word vectors, faces and whisper":
            audio, _ = make("whisper", folder / "whisper")
            encoders = {"text": words, "video": "faces", "audio": str(audio)}
            dims = {"text": (1, 3), "video": (1, 271), "audio": (LAYERS + 1, WIDTH)}
            return encoders, dims, (), folder
        audio, _ = make("wav2vec2", folder / "wav2vec2")
        deeper, _ = make("whisper", folder / "deeper", encoder_layers=LAYERS + 2)
        reader = shutil.copytree(tiny_text_folder, folder / "reader")
        encoders = {
            "text": f"{reader},{words}",
            "video": "resnet18,faces",
            "audio": f"{audio},{deeper},prosody",
        }
        dims = {
            "text": (3, 48 + 3),
            "video": (1, 1024 + 271),
            "audio": (LAYERS + 3, 2 * WIDTH + 65),
        }
        return encoders, dims, ("--weights", "video=random"), folder

    return ask


@pytest.mark.parametrize(
    "name",
    [
        "word vectors, faces and whisper",
        pytest.param("several of each", marks=pytest.mark.slow),
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
    check_answer(predicted, row)
    if name == "several of each":
        shipped = tmp_path / "shipped"
        exported = meld("export", run, "--out", shipped, "--weights-dir", weights_dir)
        assert exported.status == 0, exported.err
        predicted = meld(
            *("predict", clip.path, "--model", shipped, "--text", clip.utterance.text, "--json"),
            *("--out", tmp_path / "out of the bundle"),
        )
        check_answer(predicted, row)


def check_answer(predicted: Finished, row: Mapping[str, str]) -> None:
    """The probabilities of the row that was evaluated."""
    assert predicted.status == 0, predicted.err
    [utterance] = predicted.json["files"][0]["timeline"]["utterances"]
    for emotion, probability in utterance["emotion"]["probabilities"].items():
        assert probability == pytest.approx(float(row[f"emotion_{emotion}"]), abs=2e-3)
