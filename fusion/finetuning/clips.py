"""Raw media as training sees it: a torch Dataset over decoded clips, and batches of it.

    decoded store, utterances, cached features -> ClipDataset[epoch, row] -> RawRow
    -> collate -> RawBatch -> EndToEnd

Modalities whose encoder stays frozen come from the cache: the same numbers, without the work. What
the others' encoders read is made by their own preparation (see `pipeline.encoders.encoder`).
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion.data.split import FusionData
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.encoder import AnyPreparation
from pipeline.schema import MEDIA, DecodedClip, Modality, Utterance

# Sorted by length within so many batches: little padding, and still another order every epoch.
_BATCHES_PER_BUCKET = 50


class ClipReader(Protocol):
    """The interface of a decoded store that a dataset needs."""

    def read(self, row: int, modalities: Collection[Modality]) -> DecodedClip: ...


@dataclass(frozen=True)
class RawRow:
    """One utterance.

    items: {modality read raw: what its encoder reads, None where the utterance lacks it}
    cached: {modality: float32 [layers, dim]}; present: bool [modalities]
    """

    row: int
    items: dict[Modality, Any]
    cached: dict[Modality, Tensor]
    present: Tensor


@dataclass(frozen=True)
class RawBatch:
    """A batch of rows; for each modality the rows that have it, and their places in the batch.

    inputs: {modality: what its encoder takes}, of those that a row of the batch has
    places: {modality: int64 [rows that have it]}, for each of these
    cached: {modality: float32 [batch, layers, dim]}
    present: bool [batch, modalities]; rows: int64 [batch], rows of the split
    """

    rows: Tensor
    present: Tensor
    inputs: dict[Modality, Any]
    places: dict[Modality, Tensor]
    cached: dict[Modality, Tensor]

    def to(self, device: torch.device) -> "RawBatch":
        return RawBatch(
            rows=self.rows,
            present=self.present.to(device),
            inputs={name: batch.to(device) for name, batch in self.inputs.items()},
            places={name: place.to(device) for name, place in self.places.items()},
            cached={name: values.to(device) for name, values in self.cached.items()},
        )


@dataclass(frozen=True)
class SomeClips:
    """A view of some rows of a store."""

    store: ClipReader
    rows: tuple[int, ...]

    def read(self, row: int, modalities: Collection[Modality]) -> DecodedClip:
        return self.store.read(self.rows[row], modalities)


class ClipDataset(Dataset[RawRow]):
    """A split, addressed by (epoch, row): the epoch decides the augmentation, with the seed.

    preparations: of the modalities read raw; the others of `data` come from its cached features.
    augment: None leaves clips as they are.
    """

    def __init__(
        self,
        data: FusionData,
        utterances: Sequence[Utterance],
        preparations: Mapping[Modality, AnyPreparation],
        *,
        store: ClipReader | None,
        augment: AugmentConfig | None,
        seed: int,
    ) -> None:
        self.data = data
        self.preparations = dict(preparations)
        self.augment = augment
        self.seed = seed
        self._store = store
        self._media = tuple(name for name in self.preparations if name in MEDIA)
        # What needs no media is prepared once for all epochs.
        words = [DecodedClip(utterance=utterance) for utterance in utterances]
        self._prepared = {
            name: preparation.prepare(words)
            for name, preparation in self.preparations.items()
            if name not in MEDIA
        }

    def __len__(self) -> int:
        return len(self.data)

    @property
    def reads_media(self) -> bool:
        return self._store is not None

    @property
    def lost(self) -> dict[Modality, list[int]]:
        """Rows whose text the cache has and the encoder finds nothing in here; they would be
        trained on as zeros."""
        lost: dict[Modality, list[int]] = {}
        for name, items in self._prepared.items():
            there = self.data.present[:, self.data.modalities.index(name)].tolist()
            rows = [row for row, item in enumerate(items) if item is None and there[row]]
            if rows:
                lost[name] = rows
        return lost

    @property
    def lengths(self) -> list[int]:
        """Length of each row's text; the rows of a batch should have similar lengths."""
        total = [0] * len(self)
        for name, items in self._prepared.items():
            for row, item in enumerate(items):
                total[row] += 0 if item is None else self.preparations[name].length(item)
        return total

    def __getitem__(self, epoch_and_row: tuple[int, int]) -> RawRow:
        epoch, row = epoch_and_row
        generator = torch.Generator().manual_seed(seed_of(self.seed, "clip", epoch, row))
        clip = self._store.read(row, self._media) if self._store is not None else None
        return RawRow(
            row=row,
            items={
                name: self._augmented(name, self._item(name, row, clip), generator)
                for name in self.preparations
            },
            cached={
                name: values[row]
                for name, values in self.data.features.items()
                if name not in self.preparations
            },
            present=self.data.present[row],
        )

    def _item(self, modality: Modality, row: int, clip: DecodedClip | None) -> Any:
        if modality in self._prepared:
            return self._prepared[modality][row]
        return None if clip is None else self.preparations[modality].prepare([clip])[0]

    def _augmented(self, modality: Modality, item: Any, generator: torch.Generator) -> Any:
        if item is None or self.augment is None:
            return item
        return self.preparations[modality].augment(item, self.augment, generator)


class Collate:
    """Rows -> RawBatch; a class, so that DataLoader workers can be handed one."""

    def __init__(self, preparations: Mapping[Modality, AnyPreparation]) -> None:
        self._preparations = dict(preparations)

    def __call__(self, rows: Sequence[RawRow]) -> RawBatch:
        there = {
            name: [place for place, row in enumerate(rows) if row.items[name] is not None]
            for name in self._preparations
        }
        return RawBatch(
            rows=torch.tensor([row.row for row in rows]),
            present=torch.stack([row.present for row in rows]),
            inputs={
                name: self._preparations[name].collate([rows[i].items[name] for i in places])
                for name, places in there.items()
                if places
            },
            places={name: torch.tensor(places) for name, places in there.items() if places},
            cached={
                name: torch.stack([row.cached[name] for row in rows]) for name in rows[0].cached
            },
        )


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """Every row once, in batches of similar length, in another order in each epoch."""
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    order = torch.randperm(len(lengths), generator=generator).tolist()
    bucket = batch_size * _BATCHES_PER_BUCKET
    batches = [
        batch
        for start in range(0, len(order), bucket)
        for batch in _chunks(
            sorted(order[start : start + bucket], key=lengths.__getitem__), batch_size
        )
    ]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def sorted_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Every row once, short rows first, for evaluation."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return list(_chunks(order, batch_size))


def _chunks(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def seed_of(*parts: object) -> int:
    """A seed for a purpose and a place, so that the random streams are independent."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
