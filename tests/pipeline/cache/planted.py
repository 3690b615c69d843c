"""Caches whose content is known, ways to change one on disk, and what its refusal says."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.cache.format import FeatureCache, read_cache, read_header, verify
from pipeline.errors import CacheCorrupt
from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipFailure, ClipKey, Modality

DIMS: dict[Modality, tuple[int, int]] = {"text": (2, 24), "video": (1, 32), "audio": (1, 16)}
TEXTS = ["Joey doesn't share food!", "", "ünïcødé \U0001f355 你好", 'quotes " and,', " ", "x"]


def make_recipe(*modalities: Modality) -> FeatureRecipe:
    encoders = tuple(
        EncoderSpec(
            modality=modality,
            name=f"planted-{modality}",
            weights="pretrained",
            weights_hash="0",
            pooling="mean",
            precision="float32",
            layers=tuple(range(DIMS[modality][0])),
        )
        for modality in modalities or tuple(DIMS)
    )
    return FeatureRecipe(encoders=encoders, decode=DecodeConfig())


def failure(number: int, modality: Modality = "video", *, lost: bool = True) -> ClipFailure:
    return ClipFailure(
        key=ClipKey("dev", 3, number),
        modality=modality,
        stage="decode",
        code="unreadable",
        message=f"clip {number}: größer als \N{SNOWMAN}",
        lost=lost,
    )


def make_cache(
    rows: int = 6,
    *,
    first: int = 0,
    modalities: Sequence[Modality] = ("text", "video", "audio"),
    failures: tuple[ClipFailure, ...] = (failure(1), failure(2, "audio", lost=False)),
    embedded: bool = False,
) -> FeatureCache:
    random = np.random.default_rng(first)
    raw = {name: random.random((rows, *DIMS[name]), np.float32) for name in modalities}
    present = {
        name: (np.arange(rows) % 4 > 0) if name in modalities else np.zeros(rows, np.bool_)
        for name in DIMS
    }
    embedding = {name: random.random((rows, 128), np.float32) for name in modalities}
    return FeatureCache(
        split="dev",
        recipe=make_recipe(),
        rows_hash="abc",
        dialogue_id=np.full(rows, 3),
        utterance_id=np.arange(first, first + rows),
        text=[TEXTS[i % len(TEXTS)] for i in range(rows)],
        speaker=["Ross", "Zoë"] * (rows // 2) + ["Joey"] * (rows % 2),
        emotion=[(*EMOTIONS, "")[i % 8] for i in range(rows)],
        sentiment=[(*SENTIMENTS, "")[i % 4] for i in range(rows)],
        raw=raw,
        present=present,
        embedding=embedding if embedded else {},
        failures=failures,
        projection_hash="f00" if embedded else None,
    )


def first_difference(mine: FeatureCache, theirs: FeatureCache) -> str | None:
    for field in dataclasses.fields(FeatureCache):
        left, right = getattr(mine, field.name), getattr(theirs, field.name)
        if isinstance(left, dict):
            same = left.keys() == right.keys() and all(
                left[key].dtype == right[key].dtype and np.array_equal(left[key], right[key])
                for key in left
            )
        elif isinstance(left, np.ndarray):
            same = np.array_equal(left, right)
        else:
            same = left == right
        if not same:
            return field.name
    return None


def refusal(path: Path, read: Callable[[Path], Any] = read_cache) -> str:
    with pytest.raises(CacheCorrupt) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def refusal_of_descriptions(path: Path) -> None:
    """Header and verification may find nothing wrong, but never raise anything else."""
    for read in (read_header, verify):
        with suppress(CacheCorrupt):
            read(path)


def set_text_attribute(file: h5py.File, name: str, value: str) -> None:
    file.attrs[name] = np.array(value.encode(), h5py.string_dtype("utf-8", len(value)))


def replace_dataset(file: h5py.File, name: str, **arguments: Any) -> None:
    del file[name]
    file.create_dataset(name, **arguments)
