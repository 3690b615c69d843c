"""The features and labels of one split as checked tensors."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusion.labels import HEADS, UNLABELLED, Head
from fusion.model.dialogue import Turns
from fusion.model.dims import InputKind
from pipeline.errors import InputError, RecipeMismatch
from pipeline.recipe import FeatureRecipe
from pipeline.schema import ClipKey, Modality, Split


@dataclass(frozen=True, kw_only=True)
class FusionData:
    """One split in memory.

    features:  {modality: float32 [rows, layers, dim]}; what stands in an absent row means
               nothing. A modality absent in all rows has no key. `embedding` has one layer.
    present:   bool [rows, modalities], True = real, columns as in `modalities`
    emotion, sentiment: int64 [rows], index in EMOTIONS and SENTIMENTS, UNLABELLED = none
    projection_hash: which projection made the embeddings; None for `raw` input
    encoders_run: name of the fine-tuned run whose encoders made the features, None where none did
    """

    split: Split
    recipe: FeatureRecipe
    input: InputKind
    modalities: tuple[Modality, ...]
    features: dict[Modality, Tensor]
    present: Tensor
    emotion: Tensor
    sentiment: Tensor
    keys: tuple[ClipKey, ...]
    text: tuple[str, ...]
    speaker: tuple[str, ...]
    projection_hash: str | None = None
    encoders_run: str | None = None

    def __post_init__(self) -> None:
        rows = len(self.keys)
        if self.present.shape != (rows, len(self.modalities)):
            raise ValueError(f"present must be [rows, modalities], not {self.present.shape}")
        for modality, values in self.features.items():
            if values.ndim != 3 or len(values) != rows:
                raise ValueError(f"{modality} must be [{rows}, layers, dim], not {values.shape}")
        for name in ("emotion", "sentiment"):
            if getattr(self, name).shape != (rows,):
                raise ValueError(f"{name} must be [{rows}], not {getattr(self, name).shape}")

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def has_labels(self) -> bool:
        """Whether any row has an emotion or a sentiment label."""
        return bool(self.labelled_heads)

    def without_labels(self, heads: Collection[Head]) -> "FusionData":
        """The same rows without the labels of these heads."""
        if not heads:
            return self
        none = torch.full((len(self),), UNLABELLED, dtype=torch.int64)
        return replace(
            self,
            emotion=none if "emotion" in heads else self.emotion,
            sentiment=none if "sentiment" in heads else self.sentiment,
        )

    @property
    def labelled_heads(self) -> tuple[Head, ...]:
        """The heads that a row has a label of."""
        return tuple(head for head in HEADS if (getattr(self, head) != UNLABELLED).any())

    @property
    def turns(self) -> Turns:
        """Where each row stands in its dialogue."""
        return Turns.of(self.keys, self.speaker)

    def take(self, rows: NDArray[np.int64]) -> "FusionData":
        """Some rows, in the given order."""
        index = torch.as_tensor(rows)
        return replace(
            self,
            features={name: values[index] for name, values in self.features.items()},
            present=self.present[index],
            emotion=self.emotion[index],
            sentiment=self.sentiment[index],
            keys=tuple(self.keys[row] for row in rows),
            text=tuple(self.text[row] for row in rows),
            speaker=tuple(self.speaker[row] for row in rows),
        )

    def select(self, modalities: Sequence[Modality]) -> "FusionData":
        """The same rows with fewer modalities; an absent row of them stays a row."""
        columns = [self.modalities.index(name) for name in modalities]
        return replace(
            self,
            modalities=tuple(modalities),
            features={name: v for name, v in self.features.items() if name in modalities},
            present=self.present[:, columns],
        )


def pool_splits(splits: Sequence[FusionData]) -> FusionData:
    """Concatenates splits; the keys still name each row's split.

    Raises RecipeMismatch where their recipes differ.
    """
    first = splits[0]
    for other in splits[1:]:
        check_recipe(first.recipe, first.projection_hash, other)
    names = [name for name in first.modalities if any(name in each.features for each in splits)]
    return replace(
        first,
        features={
            name: torch.cat([_or_zeros(each, name, splits) for each in splits]) for name in names
        },
        present=torch.cat([each.present for each in splits]),
        emotion=torch.cat([each.emotion for each in splits]),
        sentiment=torch.cat([each.sentiment for each in splits]),
        keys=tuple(key for each in splits for key in each.keys),
        text=tuple(text for each in splits for text in each.text),
        speaker=tuple(name for each in splits for name in each.speaker),
    )


def _or_zeros(data: FusionData, modality: Modality, splits: Sequence[FusionData]) -> Tensor:
    """A modality that is absent in all rows of one split has no tensor there."""
    if modality in data.features:
        return data.features[modality]
    like = next(each.features[modality] for each in splits if modality in each.features)
    return like.new_zeros(len(data), *like.shape[1:])


def check_trainable(train: FusionData, dev: FusionData) -> None:
    """Train and dev must come from one recipe, and every modality must occur in train."""
    check_recipe(train.recipe, train.projection_hash, dev)
    for column, modality in enumerate(train.modalities):
        if modality not in train.features or not train.present[:, column].any():
            raise InputError(
                f"{modality} is absent in all {len(train)} rows of train; leave it out with "
                f"--modalities, or extract train again (its failures say why)"
            )


def check_recipe(recipe: FeatureRecipe, projection_hash: str | None, data: FusionData) -> None:
    """Raises RecipeMismatch where `data` has another recipe or projection."""
    differences = recipe.differences(data.recipe)
    if not differences and projection_hash != data.projection_hash:
        differences = [f"projection: {_short(projection_hash)} != {_short(data.projection_hash)}"]
    if differences:
        raise RecipeMismatch(
            f"features of {data.split} were made in another way: {'; '.join(differences)}. "
            f"Extract {data.split} again with the same settings, or name another features folder"
        )


def _short(digest: str | None) -> str:
    return "none" if digest is None else digest[:12]
