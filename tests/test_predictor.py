"""A run with its encoders says of clips what it says of their cached features."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fusion.data.load import load_split
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predict import predict_rows
from fusion.inference.predictor import Predictor
from fusion.training.fit import FitConfig
from fusion.training.train import TrainConfig, train_fusion
from pipeline.corpus.annotations import read_corpus, with_context
from pipeline.corpus.clips import locate_clips
from pipeline.decode.clip import decode_clip
from pipeline.errors import MismatchError
from pipeline.schema import DecodedClip

pytestmark = pytest.mark.heavy


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


def test_clips_get_the_probabilities_that_their_cached_features_get(
    run: Path, features: Path, clips: list[DecodedClip]
) -> None:
    checkpoint = read_checkpoint(run)
    data = load_split(features, "dev", modalities=None, input="raw")
    cached = predict_rows(checkpoint, data, run="")
    decoding = checkpoint.decoding
    assert decoding is not None
    found = Predictor.load(run).predict(clips)
    # In bfloat16 two ways of batching give features that differ in the third digit.
    exact = all(spec.precision == "float32" for spec in checkpoint.recipe.encoders)
    tolerance = 1e-4 if exact else 0.03
    for head, logits in (
        ("emotion", cached.emotion_logits),
        ("sentiment", cached.sentiment_logits),
    ):
        wanted = np.exp(getattr(decoding, head).log_probabilities(logits))
        np.testing.assert_allclose(getattr(found, head), wanted, atol=tolerance)
        np.testing.assert_allclose(getattr(found, head).sum(axis=1), 1, atol=1e-9)
    assert np.array_equal(found.present, cached.present)
    assert found.failures == ()


def test_a_clip_without_a_picture_is_predicted_from_the_rest(
    run: Path, clips: list[DecodedClip]
) -> None:
    predictor = Predictor.load(run)
    blind = dataclasses.replace(clips[0], frames=None)
    found = predictor.predict([blind, *clips[1:3]])
    assert found.present[:, 1].tolist() == [False, True, True]
    assert np.isfinite(found.emotion).all()
    whole = predictor.predict(clips[:3])
    assert not np.allclose(found.emotion[0], whole.emotion[0], atol=1e-6)


def test_a_run_on_embeddings_says_why_it_cannot(features: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        features=features, input="embedding", out=tmp_path / "run", fit=FitConfig(epochs=1)
    )
    with pytest.raises(MismatchError, match="train a run on raw features"):
        Predictor.load(train_fusion(config).run)
