"""Raw media as training sees it: a torch Dataset over decoded clips, and batches of it.

    decoded store, utterances, cached features -> ClipDataset[epoch, row] -> RawRow
    -> collate -> RawBatch -> EndToEnd

Modalities whose encoder stays frozen come from the cache: the same numbers, without the work. What
the others' encoders read is made by their own preparation (see `pipeline.encoders.encoder`).
"""

import hashlib
import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion.data.split import FusionData
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.encoder import AnyPreparation, SharesWork
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

    @cached_property
    def groups(self) -> list[int]:
        """The first row of those that each row shares its work with, itself where there are none:
        rows of a group belong into one batch, and are augmented alike."""
        groups = list(range(len(self)))
        for name, items in self._prepared.items():
            preparation = self.preparations[name]
            if isinstance(preparation, SharesWork):
                first: dict[Hashable, int] = {}
                for row, item in enumerate(items):
                    if item is not None:
                        groups[row] = first.setdefault(preparation.group(item), row)
        return groups

    def __getitem__(self, epoch_and_row: tuple[int, int]) -> RawRow:
        epoch, row = epoch_and_row
        seed = seed_of(self.seed, "clip", epoch, self.groups[row])
        generator = torch.Generator().manual_seed(seed)
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
    lengths: Sequence[int],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    groups: Sequence[int] | None = None,
) -> list[list[int]]:
    """Every row once, in batches of similar length, in another order in each epoch.

    groups: as in `ClipDataset`; rows of a group are in one batch, so that batches are only about as
        large as `batch_size`
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    if groups is not None and len(set(groups)) < len(groups):
        return _batches_of_groups(lengths, batch_size, groups, generator)
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


def _batches_of_groups(
    lengths: Sequence[int], batch_size: int, groups: Sequence[int], generator: torch.Generator
) -> list[list[int]]:
    """As many steps as there would be without groups, or fewer where there are fewer groups."""
    members: dict[int, list[int]] = {}
    for row, first in enumerate(groups):
        members.setdefault(first, []).append(row)
    firsts = list(members)
    order = [firsts[i] for i in torch.randperm(len(firsts), generator=generator).tolist()]
    mean = len(groups) / len(firsts)
    bucket = max(1, round(batch_size * _BATCHES_PER_BUCKET / mean))
    alike = [
        first
        for start in range(0, len(order), bucket)
        for first in sorted(order[start : start + bucket], key=lengths.__getitem__)
    ]
    batches: dict[int, list[int]] = {}
    num_steps, done = -(-len(groups) // batch_size), 0
    for first in alike:
        step = done * num_steps // len(groups)
        batches.setdefault(step, []).extend(members[first])
        done += len(members[first])
    found = list(batches.values())
    return [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]


def sorted_batches(
    lengths: Sequence[int], batch_size: int, groups: Sequence[int] | None = None
) -> list[list[int]]:
    """Every row once, short rows first, for evaluation; rows of a group follow each other."""
    by = range(len(lengths)) if groups is None else groups
    order = sorted(range(len(lengths)), key=lambda row: (lengths[by[row]], by[row], row))
    return pack(order, batch_size, by)


def pack(rows: Sequence[int], size: int, groups: Sequence[int]) -> list[list[int]]:
    """The rows in their order, at most `size` at once; neighbours of one group stay together unless
    they alone are more."""
    parts: list[list[int]] = []
    for _, group in itertools.groupby(rows, key=groups.__getitem__):
        for few in _chunks(list(group), size):
            if parts and len(parts[-1]) + len(few) <= size:
                parts[-1] += few
            else:
                parts.append(few)
    return parts


def _chunks(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def seed_of(*parts: object) -> int:
    """A seed for a purpose and a place, so that the random streams are independent."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
