"""Unseen, long and endless texts are the same to extraction, fine-tuning and prediction."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion.data.load import load_split
from fusion.finetuning.finetune import finetune
from fusion.finetuning.job import FinetuneConfig, choose_hardware, resolve
from fusion.finetuning.loop import TuneConfig
from fusion.finetuning.setup import open_live
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predict import predict_rows
from fusion.inference.predictor import Predictor
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.cache.format import read_cache
from pipeline.cache.info import describe
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.texts import with_context
from pipeline.encoders.choice import EncoderRequest
from pipeline.errors import RecipeMismatch
from pipeline.extract.extract import ExtractConfig, extract
from pipeline.parallel import engine as parallel
from pipeline.schema import DecodedClip

pytestmark = pytest.mark.heavy

# What is planted -> whether there is anything to read.
TEXTS = {
    "We won!": True,
    "\u200b\ufe0f": False,
    "we went home again and then " * 70: True,
    "": False,
    "so on and on " * 2100: True,  # 8,400 tokens
    "\U0001fae8": False,
}


@pytest.fixture(scope="module", params=[0, 2], ids=["alone", "context"])
def run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_text_folder: Path,
    encode_here: Callable[..., Any],
    request: pytest.FixtureRequest,
) -> Path:
    """A run on text, beside corpus/ and features/."""
    place = tmp_path_factory.mktemp("texts")
    corpus, features = place / "corpus", place / "features"
    corpus.mkdir()
    lines = ["Dialogue_ID;Utterance_ID;Speaker;Utterance;Emotion;Sentiment"]
    lines += [
        f"20240101120000;{row}.0;Ann;{text};{'joy;positive' if row % 2 else 'anger;negative'}"
        for row, text in enumerate(TEXTS)
    ]
    for split in ("train", "dev"):
        (corpus / f"{split}_sent_emo.csv").write_text("\n".join(lines), encoding="utf-16")
    wish = EncoderRequest(
        text=tiny_text_folder.name, weights_dir=tiny_text_folder.parent, context=request.param
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "encode_shards", encode_here)
        extract(
            ExtractConfig(
                data=corpus,
                features=features,
                modalities=("text",),
                encoders=wish,
                precision="float32",  # on every machine: the values are compared
            )
        )
    config = TrainConfig(features=features, out=place / "run", fit=FitConfig(epochs=1))
    return train_fusion(config).run


def finetune_config(run: Path, weights: Path, **changes: Any) -> FinetuneConfig:
    return FinetuneConfig(
        run=run,
        data=run.parent / "corpus",
        weights_dir=weights,
        precision="float32",
        tune=TuneConfig(epochs=1, batch_size=4),
        out=run.parent / "tuned",
        **changes,
    )


def test_a_cache_tells_what_is_there_and_what_was_left_out(run: Path) -> None:
    path = run.parent / "features" / "dev.h5"
    cache = read_cache(path)
    assert cache.present["text"].tolist() == list(TEXTS.values())
    assert cache.dialogue_id.tolist() == [20240101120000] * len(TEXTS)
    told = {failure.key.utterance_id: (failure.code, failure.lost) for failure in cache.failures}
    assert told == {
        1: ("nothing_to_encode", True),
        4: ("text_cut", False),
        5: ("nothing_to_encode", True),
    }
    info = describe(path)
    assert info.failures == {"text encode nothing_to_encode": 2, "text encode text_cut": 1}
    assert info.first_failures["text encode text_cut"] == (
        "dev dia20240101120000_utt4: of 8,400 tokens only the first 8,192 are read"
    )
    assert "_utt1: its text holds nothing" in info.first_failures["text encode nothing_to_encode"]


def test_prediction_says_of_such_texts_what_the_cache_says(
    run: Path, tiny_text_folder: Path
) -> None:
    checkpoint = read_checkpoint(run)
    cached = predict_rows(
        checkpoint,
        load_split(run.parent / "features", "dev", modalities=None, input="raw"),
        run="",
    )
    rows = read_corpus(run.parent / "corpus", ("dev",))["dev"]
    rows = with_context(rows, checkpoint.recipe.encoders[0].context)
    predictor = Predictor.load(run, weights_dir=tiny_text_folder.parent)
    encoded = predictor.encode([DecodedClip(utterance=row) for row in rows])
    found = predictor.predict(encoded)
    assert [len(each.parts) for each in found] == cached.present.sum(axis=1).tolist()
    decoding = checkpoint.decoding
    assert decoding is not None
    wanted = np.exp(decoding.emotion.log_probabilities(cached.emotion_logits))
    probabilities = [[*each.emotion.probabilities.values()] for each in found]
    np.testing.assert_allclose(probabilities, wanted, atol=1e-5)
    codes = [failure.code for each in encoded for failure in each.failures]
    assert codes.count("text_cut") == 1


def test_fine_tuning_reads_the_same_windows_and_trains_on_them(
    run: Path, tiny_text_folder: Path
) -> None:
    tuned = finetune(finetune_config(run, tiny_text_folder.parent))
    assert tuned.parity < 1e-4


def test_a_text_that_is_lost_since_the_cache_was_made_stops_fine_tuning(
    run: Path, tiny_text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = finetune_config(run, tiny_text_folder.parent)
    job = resolve(config, run.parent / "tuned", choose_hardware(config))
    live = open_live(job)
    assert live.train.lost == {}
    assert len(live.train[0, 4].items["text"].more) > 30
    monkeypatch.setattr("pipeline.encoders.tokens.is_visible", lambda text: text != "We won!")
    with pytest.raises(RecipeMismatch, match=r"utt0: the cache has its text.*\(1 such rows\)"):
        open_live(job)
