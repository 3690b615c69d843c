"""Feature caches in the layout that MMSA trains on (https://github.com/thuiar/MMSA): one pickle of
all splits.

    {"train": {...}, "valid": {...}, "test": {...}, "meld": {...}}, and in each split

    id                             "dia0_utt3"
    raw_text                       texts
    text, audio, vision            float32 [rows, 1, dim]: MMSA's axes are rows, time and features
    text_lengths, audio_lengths, vision_lengths     1 in every row
    regression_labels              float32 [rows]: positive 1, neutral 0, negative -1
    classification_labels          int64 [rows]: negative 0, neutral 1, positive 2
    annotations                    "Positive", "Neutral", "Negative"
    emotion, speaker, present      ours, which MMSA does not read

A cache has no axis of time: the layers are averaged into one step, as for its 128-d embeddings. A
row without a sentiment cannot be trained on there and is left out; a modality that a row lacks is
zeros. What is written is never read here: to unpickle a file is to run it.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.format import FeatureCache
from pipeline.corpus.layout import clip_stem
from pipeline.errors import InputError
from pipeline.schema import MODALITIES, Modality, Split
from pipeline.system.files import write_whole

MMSA_SPLITS: dict[Split, str] = {"train": "train", "dev": "valid", "test": "test"}
_NAMES: dict[Modality, str] = {"text": "text", "video": "vision", "audio": "audio"}
_SENTIMENTS = {"negative": -1, "neutral": 0, "positive": 1}
# Older NumPys and Pythons read it too.
_PROTOCOL = 4


def write_mmsa(path: Path, caches: Sequence[FeatureCache]) -> dict[Split, int]:
    """Writes one file of all splits, whole or not at all; returns the rows that were left out.

    Raises InputError where a split, a modality or every sentiment is missing; StorageError.
    """
    by_split = {cache.split: cache for cache in caches}
    missing = [split for split in MMSA_SPLITS if split not in by_split]
    if missing:
        raise InputError(
            f"MMSA reads train, dev and test from one file, and there is no {missing[0]}; name a "
            "folder that has all three caches"
        )
    values: dict[str, Any] = {
        name: _split_values(by_split[split]) for split, name in MMSA_SPLITS.items()
    }
    recipe = by_split["train"].recipe
    values["meld"] = {"recipe": recipe.to_json(), "fingerprint": recipe.fingerprint}
    write_whole(path, pickle.dumps(values, protocol=_PROTOCOL))
    return {
        split: len(by_split[split]) - len(values[name]["id"]) for split, name in MMSA_SPLITS.items()
    }


def _split_values(cache: FeatureCache) -> dict[str, Any]:
    for modality in MODALITIES:
        if modality not in cache.raw:
            raise InputError(
                f"MMSA's models need {', '.join(MODALITIES)}, and no row of {cache.split} has "
                f"{modality}; extract it, or import it with meld import"
            )
    rows = np.array([bool(label) for label in cache.sentiment], np.bool_)
    kept = np.flatnonzero(rows).tolist()
    if not kept:
        raise InputError(f"no row of {cache.split} has a sentiment, which MMSA trains on")
    scores = np.array([_SENTIMENTS[cache.sentiment[row]] for row in kept], np.int64)
    values: dict[str, Any] = {
        "id": [clip_stem(cache.key(row)) for row in kept],
        "raw_text": [cache.text[row] for row in kept],
        "regression_labels": scores.astype(np.float32),
        "classification_labels": scores + 1,
        "annotations": [cache.sentiment[row].capitalize() for row in kept],
        "emotion": [cache.emotion[row] for row in kept],
        "speaker": [cache.speaker[row] for row in kept],
        "present": {name: there[rows] for name, there in cache.present.items()},
    }
    for modality, name in _NAMES.items():
        raw = cache.raw[modality][rows]  # [kept, layers, dim]
        there = cache.present[modality][rows]
        steps = raw.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        values[name] = steps * there[:, None, None]
        values[f"{name}_lengths"] = [1] * len(kept)
    return values
