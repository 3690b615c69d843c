"""Loads a split of a cache as checked tensors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fusion.data.set_aside import SetAside
from fusion.data.split import FusionData
from fusion.model.dims import InputKind
from pipeline.cache.format import FeatureCache, read_cache, read_header, require_cache
from pipeline.errors import CacheCorrupt, InputError
from pipeline.schema import Modality, Split


def load_split(
    features: Path, split: Split, *, modalities: Sequence[Modality] | None, input: InputKind
) -> FusionData:
    """Reads `<features>/<split>.h5`. `modalities` None takes all that the cache has.

    Raises InputError where the cache, a modality, the embeddings or all labels are missing.
    """
    path = require_cache(features, split)
    header = read_header(path)
    chosen = _choose_modalities(path, header.recipe.modalities, modalities)
    if input == "embedding" and header.projection_hash is None:
        raise InputError(
            f"{path} holds no 128-d embeddings: their projection is fitted on train; "
            f"run meld extract --split train, then meld extract --split {split}, "
            "or train on raw features"
        )
    data = _to_tensors(read_cache(path, modalities=chosen, want=(input,)), chosen, input)
    if not data.has_labels:
        raise InputError(f"{path}: none of {len(data)} rows has an emotion or sentiment label")
    _check_features(data, path)
    return data


def load_part(
    features: Path,
    split: Split,
    set_aside: SetAside | None,
    *,
    modalities: tuple[Modality, ...] | None,
    input: InputKind,
) -> FusionData:
    """One split of a run: if the run held out dialogues of train, these are its dev and the others
    its train. Raises as `load_split`, and MismatchError."""
    cached = cached_split(split, set_aside)
    data = load_split(features, cached, modalities=modalities, input=input)
    if set_aside is None or split == "test":
        return data
    return set_aside.part(data, split)


def cached_split(split: Split, set_aside: SetAside | None) -> Split:
    """The split whose cache holds a run's split."""
    return "train" if split == "dev" and set_aside is not None else split


def _choose_modalities(
    path: Path, there: tuple[Modality, ...], wanted: Sequence[Modality] | None
) -> tuple[Modality, ...]:
    for modality in wanted or ():
        if modality not in there:
            raise InputError(f"{path} has no {modality}; it has {', '.join(there)}")
    return there if wanted is None else tuple(wanted)


def _to_tensors(
    cache: FeatureCache, modalities: tuple[Modality, ...], input: InputKind
) -> FusionData:
    present = np.stack([cache.present[name] for name in modalities], axis=1)
    features, labels = {}, cache.labels
    for name, values in (cache.raw if input == "raw" else cache.embedding).items():
        layered = values if input == "raw" else values[:, None, :]  # [rows, layers, dim]
        features[name] = torch.from_numpy(np.ascontiguousarray(layered, dtype=np.float32))
    return FusionData(
        split=cache.split,
        recipe=cache.recipe,
        input=input,
        modalities=modalities,
        features=features,
        present=torch.from_numpy(present),  # [rows, modalities]
        emotion=torch.from_numpy(labels["emotion"]),
        sentiment=torch.from_numpy(labels["sentiment"]),
        keys=cache.keys,
        text=tuple(cache.text),
        speaker=tuple(cache.speaker),
        projection_hash=cache.projection_hash if input == "embedding" else None,
        encoders_run=cache.encoders_run,
    )


def _check_features(data: FusionData, path: Path) -> None:
    for modality, values in data.features.items():
        if 0 in values.shape[1:]:
            raise CacheCorrupt(
                f"{path}: {modality} features of {list(values.shape[1:])} [layers, dim] are empty; "
                "extract the split again"
            )
    for column, modality in enumerate(data.modalities):
        if modality in data.features:
            values = data.features[modality].flatten(1)
            # The sum is finite only where every value is (or in a float32 overflow, as bad).
            broken = ~torch.isfinite(values.sum(dim=1)) & data.present[:, column]
            if broken.any():
                key = data.keys[int(broken.nonzero()[0, 0])]
                raise CacheCorrupt(
                    f"{path}: {modality} features of {int(broken.sum())} rows are not finite, "
                    f"first {key}; extract the split again"
                )
