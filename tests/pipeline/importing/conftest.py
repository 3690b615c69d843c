"""Caches of text alone, into which features are imported, and features as tools write them."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cache.embeddings import complete_embeddings
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.recipe import EncoderSpec, FeatureRecipe
from pipeline.schema import ClipKey, Split

RECIPE = FeatureRecipe(
    encoders=(
        EncoderSpec(
            modality="text",
            name="planted",
            weights="pretrained",
            weights_hash="0" * 64,
            pooling="mean",
            precision="float32",
            layers=(-1,),
        ),
    ),
    decode=None,
)
ROWS: Mapping[Split, int] = {"train": 8, "dev": 3, "test": 4}
Clips = dict[ClipKey, NDArray[np.float64]]


def plant(split: Split) -> FeatureCache:
    rows = ROWS[split]
    random = np.random.default_rng(rows)
    return FeatureCache(
        split=split,
        recipe=RECIPE,
        rows_hash="1" * 64,
        dialogue_id=np.arange(rows, dtype=np.int64) // 4,
        utterance_id=np.arange(rows, dtype=np.int64) % 4,
        text=[f"line {row}" for row in range(rows)],
        speaker=["Joey"] * rows,
        emotion=["joy", "anger"] * (rows // 2) + ["fear"] * (rows % 2),
        sentiment=["positive", "negative"] * (rows // 2) + [""] * (rows % 2),
        raw={"text": random.normal(size=(rows, 1, 6)).astype(np.float32)},
        present={"text": np.ones(rows, np.bool_)},
    )


@pytest.fixture(scope="session")
def planted_caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "features"
    for split in ROWS:
        write_cache(folder / f"{split}.h5", plant(split))
    complete_embeddings(folder, RECIPE, ())
    return folder


@pytest.fixture
def caches(planted_caches: Path, tmp_path: Path) -> Path:
    """A folder with all three splits, embedded."""
    return Path(shutil.copytree(planted_caches, tmp_path / "features"))


@pytest.fixture
def clips() -> Clips:
    """Five frames of three numbers for every row of every cache."""
    random = np.random.default_rng(9)
    return {key: random.normal(size=(5, 3)) for split in ROWS for key in plant(split).keys}


def write_npy(folder: Path, clips: Clips, suffix: str = "") -> Path:
    for key, values in clips.items():
        (folder / key.split).mkdir(parents=True, exist_ok=True)
        name = f"dia{key.dialogue_id}_utt{key.utterance_id}{suffix}.npy"
        np.save(folder / key.split / name, values)
    return folder


def write_openface(folder: Path, clips: Clips, *, unseen: Sequence[ClipKey] = ()) -> Path:
    """As OpenFace 2's FeatureExtraction writes: names behind a space, and in the last frame, and in
    every one of `unseen`, no face was found."""
    names = [f"AU{number:02}_r" for number in range(3)]
    for key, values in clips.items():
        (folder / key.split).mkdir(parents=True, exist_ok=True)
        lines = ["frame, face_id, timestamp, confidence, success, " + ", ".join(names)]
        for frame, row in enumerate([*values.tolist(), [99.0] * 3]):
            found = int(frame < len(values) and key not in unseen)
            numbers = ", ".join(map(repr, row))
            lines.append(f"{frame + 1}, 0, {frame / 25:.3f}, 0.98, {found}, {numbers}")
        path = folder / key.split / f"dia{key.dialogue_id}_utt{key.utterance_id}.csv"
        path.write_text("\n".join(lines) + "\n")
    return folder


def write_opensmile(folder: Path, clips: Clips) -> Path:
    """As SMILExtract writes functionals: one file a split, a row a clip, and its name in quotes."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in {key.split for key in clips}:
        lines = ["name;frameTime;F0_sma3nz_amean;loudness_sma3_amean;HNR_sma3nz_amean"]
        for key, values in clips.items():
            if key.split == split:
                numbers = ";".join(map(repr, values[0].tolist()))
                lines.append(f"'dia{key.dialogue_id}_utt{key.utterance_id}.wav';0.000000;{numbers}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def npy() -> Callable[..., Path]:
    return write_npy


@pytest.fixture
def openface() -> Callable[..., Path]:
    return write_openface


@pytest.fixture
def opensmile() -> Callable[..., Path]:
    return write_opensmile
