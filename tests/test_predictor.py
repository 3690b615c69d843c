"""A run with its encoders says of clips what it says of their cached features."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fusion.data.load import load_split
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.decoding import decode
from fusion.inference.predict import predict_rows
from fusion.inference.prediction import Prediction
from fusion.inference.predictor import Predictor
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.corpus.texts import with_context
from pipeline.decode.clip import decode_clip
from pipeline.errors import MismatchError
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipFeatures, ClipKey, DecodedClip

pytestmark = pytest.mark.heavy


def probabilities(found: Sequence[Prediction], head: str) -> np.ndarray:
    """float64 [rows, classes]"""
    return np.array([list(getattr(each, head).probabilities.values()) for each in found])


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "all"
    return train_fusion(TrainConfig(features=features, out=out, fit=FitConfig(epochs=2))).run


@pytest.fixture(scope="module")
def clips(corpus: Path, run: Path) -> list[DecodedClip]:
    recipe = read_checkpoint(run).recipe
    assert recipe.decode is not None
    rows = with_context(read_corpus(corpus, ("dev",))["dev"], 0)
    located = locate_clips(corpus, "dev", rows, "fixed")
    return [decode_clip(clip, recipe.decode, recipe.modalities) for clip in located]


@pytest.fixture(scope="module")
def encoded(run: Path, clips: list[DecodedClip]) -> list[ClipFeatures]:
    return Predictor.load(run).encode(clips)


def test_clips_get_the_probabilities_that_their_cached_features_get(
    run: Path, features: Path, clips: list[DecodedClip]
) -> None:
    checkpoint = read_checkpoint(run)
    data = load_split(features, "dev", modalities=None, input="raw")
    cached = predict_rows(checkpoint, data, run="")
    decoding = checkpoint.decoding
    assert decoding is not None
    predictor = Predictor.load(run)
    found = predictor.predict(predictor.encode(clips))
    # In bfloat16 two ways of batching give features that differ in the third digit.
    exact = all(spec.precision == "float32" for spec in checkpoint.recipe.encoders)
    tolerance = 1e-4 if exact else 0.03
    for head, logits in (
        ("emotion", cached.emotion_logits),
        ("sentiment", cached.sentiment_logits),
    ):
        wanted = np.exp(getattr(decoding, head).log_probabilities(logits))
        given = probabilities(found, head)
        np.testing.assert_allclose(given, wanted, atol=tolerance)
        np.testing.assert_allclose(given.sum(axis=1), 1, atol=1e-9)
    labels = decode(decoding, cached.emotion_logits, cached.sentiment_logits)
    assert [each.emotion.label for each in found] == [EMOTIONS[k] for k in labels.emotion]
    assert [each.sentiment.label for each in found] == [SENTIMENTS[k] for k in labels.sentiment]
    assert [[part.modality for part in each.parts] for each in found] == [
        [name for name, there in zip(cached.modalities, row, strict=True) if there]
        for row in cached.present
    ]


def test_what_modalities_gave_and_would_say_alone_is_what_hiding_the_others_gives(
    run: Path, clips: list[DecodedClip]
) -> None:
    predictor = Predictor.load(run)
    features = predictor.encode(clips)
    deaf = [
        dataclasses.replace(each, raw={"text": each.raw["text"]}, failures=()) for each in features
    ]
    for each, by_words in zip(predictor.predict(features), predictor.predict(deaf), strict=True):
        of_text = each.parts[0]
        assert of_text.modality == "text"
        assert of_text.alone.emotion == by_words.emotion.label
        assert of_text.alone.sentiment == by_words.sentiment.label
        assert sum(part.share for part in each.parts) == pytest.approx(1)
        assert [part.share for part in by_words.parts] == [1.0]


def test_a_clip_without_a_picture_is_predicted_from_the_rest(
    run: Path, clips: list[DecodedClip]
) -> None:
    predictor = Predictor.load(run)
    blind = dataclasses.replace(clips[0], frames=None)
    found = predictor.predict(predictor.encode([blind, *clips[1:3]]))
    seen = [[part.modality for part in each.parts] for each in found]
    assert seen == [["text", "audio"], ["text", "video", "audio"], ["text", "video", "audio"]]
    whole = predictor.predict(predictor.encode(clips[:3]))
    assert probabilities(found, "emotion")[0] != pytest.approx(
        probabilities(whole, "emotion")[0], abs=1e-6
    )


@pytest.mark.parametrize("future", [False, True])
def test_a_row_of_a_long_dialogue_sees_as_many_turns_as_it_would_in_a_short_one(
    features: Path, tmp_path: Path, encoded: list[ClipFeatures], future: bool
) -> None:
    config = TrainConfig(
        features=features,
        out=tmp_path / "run",
        model=ModelConfig(context="dialogue", future=future),
        fit=FitConfig(epochs=2),
    )
    predictor = Predictor.load(train_fusion(config).run)
    encoded = [
        dataclasses.replace(each, utterance=dataclasses.replace(each.utterance, key=key))
        for number, each in enumerate((encoded * 10)[:48])
        if (key := ClipKey("test", 0, number))
    ]
    in_turns = predictor.predict_turns(encoded, [0, 20, 47])
    for row, found in zip([0, 20, 47], in_turns, strict=True):
        first, end = max(row - 32, 0), row + 33 if future else row + 1
        alone = predictor.predict(encoded[first:end])[row - first]
        assert found.emotion.probabilities == pytest.approx(alone.emotion.probabilities, abs=1e-5)
    if not future:  # whoever speaks later changes nothing
        assert predictor.predict_turns(encoded[:21], [20])[0].emotion.probabilities == (
            pytest.approx(in_turns[1].emotion.probabilities, abs=1e-5)
        )


def test_a_run_on_embeddings_says_why_it_cannot(features: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        features=features, input="embedding", out=tmp_path / "run", fit=FitConfig(epochs=1)
    )
    with pytest.raises(MismatchError, match="train a run on raw features"):
        Predictor.load(train_fusion(config).run)


def test_a_run_on_features_of_another_revision_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers would be those of no features that it knows."""
    monkeypatch.setattr("fusion.inference.predictor.REVISION", 99)
    with pytest.raises(MismatchError, match="makes those of revision 99; extract and train again"):
        Predictor.load(run)
