"""Planted features: which modality carries the label is decided here, so tests know the answer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from fusion.data.load import load_split
from fusion.data.split import FusionData
from fusion.inference.predictions import Predictions
from fusion.labels import UNLABELLED
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe
from pipeline.schema import EMBEDDING_DIM, EMOTIONS, SENTIMENTS, ClipKey, Modality, Split

SHAPES: dict[Modality, tuple[int, int]] = {"text": (3, 24), "video": (1, 16), "audio": (1, 20)}
SENTIMENT_OF = {
    "neutral": "neutral",
    "surprise": "positive",
    "fear": "negative",
    "sadness": "negative",
    "joy": "positive",
    "disgust": "negative",
    "anger": "negative",
}


def make_recipe(modalities: Sequence[Modality], **decode: int) -> FeatureRecipe:
    return FeatureRecipe(
        encoders=tuple(
            EncoderSpec(
                modality=modality,
                name=f"planted-{modality}",
                weights="random" if modality == "video" else "pretrained",
                weights_hash="0" * 64,
                pooling="mean",
                precision="float32",
                layers=tuple(range(SHAPES[modality][0])),
            )
            for modality in modalities
        ),
        decode=DecodeConfig(**decode),
    )


def make_cache(
    split: Split,
    rows: int,
    *,
    modalities: Sequence[Modality] = ("text", "audio"),
    carriers: Sequence[Modality] = ("text", "audio"),
    strength: float = 3.0,
    embedded: bool = False,
    recipe: FeatureRecipe | None = None,
) -> FeatureCache:
    """Each emotion is a direction in every carrier's features, the rest is noise.

    The directions are the same in every split; labels and noise are the split's own.
    """
    directions = np.random.default_rng(7)
    random = np.random.default_rng(["train", "dev", "test"].index(split))
    emotions = random.integers(0, len(EMOTIONS), rows)
    raw = {}
    for modality, shape in SHAPES.items():
        of_class = directions.normal(size=(len(EMOTIONS), *shape)) * strength / shape[1] ** 0.5
        values = random.normal(size=(rows, *shape)) + 5.0
        if modality in carriers:
            values += of_class[emotions]
        if modality in modalities:
            raw[modality] = values.astype(np.float32)
    names = [EMOTIONS[emotion] for emotion in emotions]
    embedding = {
        modality: np.pad(values.mean(1), [(0, 0), (0, EMBEDDING_DIM - values.shape[2])])
        for modality, values in raw.items()
    }
    return FeatureCache(
        split=split,
        recipe=recipe or make_recipe(modalities),
        rows_hash="1" * 64,
        dialogue_id=np.arange(rows, dtype=np.int64) // 5,
        utterance_id=np.arange(rows, dtype=np.int64) % 5,
        text=[f"line {row}" for row in range(rows)],
        speaker=["Joey"] * rows,
        emotion=names,
        sentiment=[SENTIMENT_OF[name] for name in names],
        raw=raw,
        present={modality: np.ones(rows, np.bool_) for modality in raw},
        embedding=embedding if embedded else {},
        projection_hash="2" * 64 if embedded else None,
    )


@pytest.fixture
def features(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture
def write_split(features: Path) -> Callable[..., FeatureCache]:
    """write_split("train", 300, carriers=["audio"]) -> features/train.h5"""

    def write(split: Split, rows: int, **options: object) -> FeatureCache:
        cache = make_cache(split, rows, **options)  # type: ignore[arg-type]
        write_cache(features / f"{split}.h5", cache)
        return cache

    return write


@pytest.fixture
def load_planted(
    write_split: Callable[..., FeatureCache], features: Path
) -> Callable[..., FusionData]:
    """load_planted("train", 300) writes the split and reads it as fusion does."""

    def load(split: Split, rows: int, **options: object) -> FusionData:
        write_split(split, rows, **options)
        return load_split(features, split, modalities=None, input="raw")

    return load


@pytest.fixture(scope="session")
def load_shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., FusionData]:
    """The same in a folder of its own, for what the tests of a file share and none changes."""

    def load(split: Split, rows: int, **options: object) -> FusionData:
        folder = tmp_path_factory.mktemp("planted")
        write_cache(folder / f"{split}.h5", make_cache(split, rows, **options))  # type: ignore[arg-type]
        return load_split(folder, split, modalities=None, input="raw")

    return load


@pytest.fixture
def planted_recipe() -> Callable[..., FeatureRecipe]:
    return make_recipe


@pytest.fixture(scope="session")
def plant_cache() -> Callable[..., FeatureCache]:
    return make_cache


def make_predictions(
    dialogues: Sequence[Sequence[str]],
    *,
    emotion: Sequence[int] | None = None,
    predicted: Sequence[int] | None = None,
    confidence: float = 5.0,
    split: Split = "test",
    **columns: object,
) -> Predictions:
    """Dialogues as lists of texts; all else is [rows], and what is not given is emotion 0, Joey
    and text alone. Sentiment is that of the emotion, true and predicted."""
    keys = [
        ClipKey(split, number, position)
        for number, texts in enumerate(dialogues)
        for position in range(len(texts))
    ]
    true = np.array(emotion if emotion is not None else [0] * len(keys), dtype=np.int64)
    claimed = np.array(predicted if predicted is not None else true, dtype=np.int64)
    of_emotion = np.array([SENTIMENTS.index(SENTIMENT_OF[name]) for name in EMOTIONS])
    values = {
        "run": "planted",
        "split": split,
        "keys": tuple(keys),
        "text": tuple(text for texts in dialogues for text in texts),
        "speaker": ("Joey",) * len(keys),
        "modalities": ("text",),
        "present": np.ones((len(keys), 1), np.bool_),
        "emotion": true,
        "sentiment": np.where(true == UNLABELLED, UNLABELLED, of_emotion[np.maximum(true, 0)]),
        "emotion_logits": np.eye(len(EMOTIONS))[claimed] * confidence,
        "sentiment_logits": np.eye(len(SENTIMENTS))[of_emotion[claimed]] * confidence,
    }
    return Predictions(**{**values, **columns})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def plant_predictions() -> Callable[..., Predictions]:
    return make_predictions
