"""A feature cache as a map-style dataset of PyTorch, for models that are not of this package.

Our own training does not use it: it holds a split as whole tensors (`split.py`), and a batch is one
index into them.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion.model.dims import InputKind
from pipeline.cache.format import FeatureCache
from pipeline.errors import InputError, UsageError
from pipeline.schema import Modality


class CacheRow(NamedTuple):
    """One utterance; a `DataLoader` makes of several of them one `CacheRow` of batches.

    features:  per modality float32 [layers, dim] of raw features, [128] of embeddings; zeros where
               the row lacks the modality
    present:   per modality bool []
    emotion, sentiment: int64 [], -100 where the corpus gives no label: the `ignore_index` of
               PyTorch's cross-entropy
    row:       int64 [], the row of the cache
    """

    features: dict[Modality, Tensor]
    present: dict[Modality, Tensor]
    emotion: Tensor
    sentiment: Tensor
    row: Tensor


class CacheDataset(Dataset[CacheRow]):
    """The rows of a cache in its order. The tensors share the memory of the cache's arrays.

    A modality that no row of the cache has is left out: its shape is not known.

    Raises:
        UsageError: `input` is neither raw nor embedding.
        InputError: the cache was read without these features, or has none.
    """

    def __init__(self, cache: FeatureCache, *, input: InputKind = "raw") -> None:
        if input not in ("raw", "embedding"):
            raise UsageError(f"input: raw or embedding, not {input!r}")
        arrays = cache.raw if input == "raw" else cache.embedding
        if not arrays:
            raise InputError(
                f"the {cache.split} cache holds no {input} features here; read it with "
                f"want={input!r}, or extract them"
            )
        self.cache = cache
        self._features = {name: torch.from_numpy(values) for name, values in arrays.items()}
        self._present = {name: torch.from_numpy(cache.present[name]) for name in arrays}
        self._labels = {name: torch.from_numpy(values) for name, values in cache.labels.items()}
        self._rows = torch.arange(len(cache))

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return tuple(self._features)

    @property
    def shapes(self) -> dict[Modality, tuple[int, ...]]:
        """Of one row's features: (layers, dim), or (128,)."""
        return {name: tuple(values.shape[1:]) for name, values in self._features.items()}

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, row: int) -> CacheRow:
        return CacheRow(
            features={name: values[row] for name, values in self._features.items()},
            present={name: values[row] for name, values in self._present.items()},
            emotion=self._labels["emotion"][row],
            sentiment=self._labels["sentiment"][row],
            row=self._rows[row],
        )
