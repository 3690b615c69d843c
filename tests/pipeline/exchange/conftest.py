"""Caches that hold whatever a cache can hold."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.cache.format import FeatureCache, write_cache
from pipeline.corpus.annotations import hash_rows
from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe
from pipeline.schema import ClipFailure, ClipKey, ClipSource, Modality, Split, Utterance

RECIPE = FeatureRecipe(
    encoders=tuple(
        EncoderSpec(
            modality=name,
            name=f"planted-{name}",
            weights="random" if name == "video" else "pretrained",
            weights_hash="0" * 64,
            pooling="mean",
            precision="float32",
            layers=(-2, -1) if name == "text" else (-1,),
        )
        for name in ("text", "video", "audio")
    ),
    decode=DecodeConfig(max_duration_s=12.5),
)
SHAPES: dict[Modality, tuple[int, int]] = {"text": (2, 5), "video": (1, 4), "audio": (1, 3)}
# What a text may be: empty, of other scripts, with everything that separates in other formats.
TEXTS = ["", "Why?", 'a "quoted", line;\twith\nbreaks', "ça va", "こんにちは", "😀" * 3, " null "]


def plant(split: Split, rows: int = 7, *, seed: int = 0) -> FeatureCache:
    """Rows of random numbers, among them -0.0, denormal and the largest ones; the second row has no
    audio, the third no labels."""
    random = np.random.default_rng([seed, rows, len(split)])
    raw = {name: random.normal(size=(rows, *shape)) for name, shape in SHAPES.items()}
    features = {name: values.astype(np.float32) for name, values in raw.items()}
    odd = np.array([-0.0, 1e-45, np.finfo(np.float32).max, np.finfo(np.float32).min], np.float32)
    features["video"][0, 0] = odd
    present = {name: np.ones(rows, np.bool_) for name in SHAPES}
    present["audio"][1] = False
    features["audio"][1] = 0
    emotion = ["joy", "anger", "", "neutral", "fear", "sadness", "disgust"]
    sentiment = ["positive", "negative", "", "neutral", "negative", "negative", "negative"]
    key = ClipKey(split, 0, 1)
    cache = FeatureCache(
        split=split,
        recipe=RECIPE,
        rows_hash="",
        dialogue_id=np.arange(rows, dtype=np.int64) // 4,
        utterance_id=np.arange(rows, dtype=np.int64) % 4,
        text=[TEXTS[row % 7] for row in range(rows)],
        speaker=[("Ross", "Zoë", "")[row % 3] for row in range(rows)],
        emotion=[emotion[row % 7] for row in range(rows)],
        sentiment=[sentiment[row % 7] for row in range(rows)],
        raw=features,
        present=present,
        embedding={
            name: random.normal(size=(rows, 128)).astype(np.float32) for name in ("text", "audio")
        },
        failures=tuple(
            ClipFailure(
                key=key, modality=name, stage="decode", code="c", message='a ";,\n" ü', lost=lost
            )
            for name, lost in (("audio", True), ("video", False))
        ),
        projection_hash="2" * 64,
        encoders_run="runs/tuned",
        sources=tuple(
            ClipSource(file=f"train/ü {row}.mp4", size_bytes=row, mtime_ns=2**62 + row, sha256="ab")
            for row in range(rows)
        ),
    )
    return tied(cache)


def tied(cache: FeatureCache) -> FeatureCache:
    """With the hash that an extraction of these rows writes."""
    rows = zip(cache.keys, cache.text, cache.speaker, strict=True)
    utterances = [Utterance(key=key, text=text, speaker=speaker) for key, text, speaker in rows]
    return replace(cache, rows_hash=hash_rows(utterances))


@pytest.fixture
def plant_cache() -> Callable[..., FeatureCache]:
    return plant


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """A folder with all three splits."""
    for split, rows in (("train", 7), ("dev", 3), ("test", 5)):
        write_cache(tmp_path / f"features/{split}.h5", plant(split, rows))  # type: ignore[arg-type]
    return tmp_path / "features"
