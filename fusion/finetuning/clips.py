"""Raw media as training sees it: a torch Dataset over decoded clips, and batches of it.

    decoded store, tokens, cached features -> ClipDataset[epoch, row] -> RawRow
    -> collate -> RawBatch -> EndToEnd

Modalities whose encoder stays frozen come from the cache: the same numbers, without the work.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fusion.data.split import FusionData
from fusion.finetuning.augment import (
    AugmentConfig,
    augment_frames,
    augment_waveform,
    draw_mask,
    hide_tokens,
)
from pipeline.encoders.audio import SpectrogramMask
from pipeline.encoders.text import TokenBatch, Tokeniser, Tokens
from pipeline.schema import DecodedClip, Modality, Utterance

# Sorted by length within so many batches: little padding, and still another order every epoch.
_BATCHES_PER_BUCKET = 50


class ClipReader(Protocol):
    """What the decoded store is to a dataset."""

    def read(self, row: int) -> DecodedClip: ...


@dataclass(frozen=True)
class RawRow:
    """One utterance. What it lacks, or what is read from the cache instead, is None.

    frames: uint8 [frames, height, width, 3]; waveform: float32 [samples];
    cached: {modality: float32 [layers, dim]}; present: bool [modalities]
    """

    row: int
    tokens: Tokens | None
    frames: Tensor | None
    waveform: Tensor | None
    mask: SpectrogramMask | None
    cached: dict[Modality, Tensor]
    present: Tensor


@dataclass(frozen=True)
class RawBatch:
    """Rows side by side; per modality only those that have it, and where in the batch they are.

    places: {modality: int64 [rows that have it]}, for tokens, frames, waveforms
    cached: {modality: float32 [batch, layers, dim]}
    present: bool [batch, modalities]; rows: int64 [batch], rows of the split
    """

    rows: Tensor
    present: Tensor
    places: dict[Modality, Tensor]
    tokens: TokenBatch | None
    frames: Tensor | None
    waveforms: list[Tensor]
    masks: list[SpectrogramMask | None]
    cached: dict[Modality, Tensor]

    def to(self, device: torch.device) -> "RawBatch":
        return RawBatch(
            rows=self.rows,
            present=self.present.to(device),
            places={name: place.to(device) for name, place in self.places.items()},
            tokens=self.tokens and self.tokens.to(device),
            frames=None if self.frames is None else self.frames.to(device, non_blocking=True),
            waveforms=[waveform.to(device) for waveform in self.waveforms],
            masks=self.masks,
            cached={name: values.to(device) for name, values in self.cached.items()},
        )


class ClipDataset(Dataset[RawRow]):
    """A split, addressed by (epoch, row): the epoch decides the augmentation, with the seed.

    live: modalities read raw; the others of `data` come from its cached features.
    crop: (height, width) that the video encoder sees; augment None leaves clips as they are.
    """

    def __init__(
        self,
        data: FusionData,
        utterances: Sequence[Utterance],
        live: Sequence[Modality],
        *,
        tokenise: Tokeniser | None,
        store: ClipReader | None,
        crop: tuple[int, int],
        augment: AugmentConfig | None,
        seed: int,
    ) -> None:
        self.data = data
        self.live = tuple(live)
        self.augment = augment
        self.seed = seed
        self._store = store
        self.crop = crop
        self.tokeniser = tokenise
        self._tokens = _tokenise(utterances, tokenise) if tokenise and "text" in live else None

    def __len__(self) -> int:
        return len(self.data)

    @property
    def reads_media(self) -> bool:
        return self._store is not None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row: what shares a batch should be alike in it."""
        if self._tokens is None:
            return [0] * len(self)
        return [len(tokens.ids) if tokens else 0 for tokens in self._tokens]

    def __getitem__(self, epoch_and_row: tuple[int, int]) -> RawRow:
        epoch, row = epoch_and_row
        generator = torch.Generator().manual_seed(seed_of(self.seed, "clip", epoch, row))
        clip = self._read(row)
        return RawRow(
            row=row,
            tokens=self._text(row, generator),
            frames=self._video(clip, generator),
            waveform=self._audio(clip, generator),
            mask=draw_mask(self.augment, generator) if self.augment else None,
            cached={
                name: values[row]
                for name, values in self.data.features.items()
                if name not in self.live
            },
            present=self.data.present[row],
        )

    def _read(self, row: int) -> DecodedClip | None:
        return self._store.read(row) if self._store is not None else None

    def _text(self, row: int, generator: torch.Generator) -> Tokens | None:
        tokens = self._tokens[row] if self._tokens is not None else None
        if tokens is None or self.augment is None or self.tokeniser is None:
            return tokens
        return hide_tokens(tokens, self.tokeniser, self.augment, generator)

    def _video(self, clip: DecodedClip | None, generator: torch.Generator) -> Tensor | None:
        if clip is None or clip.frames is None or "video" not in self.live:
            return None
        frames = torch.from_numpy(clip.frames)
        if self.augment is None:
            return frames
        return augment_frames(frames, self.crop, self.augment, generator)

    def _audio(self, clip: DecodedClip | None, generator: torch.Generator) -> Tensor | None:
        if clip is None or clip.waveform is None or "audio" not in self.live:
            return None
        waveform = torch.from_numpy(clip.waveform)
        if self.augment is None:
            return waveform
        return augment_waveform(waveform, self.augment, generator)


def _tokenise(utterances: Sequence[Utterance], tokenise: Tokeniser) -> list[Tokens | None]:
    """Once for all epochs; None where there is no text."""
    said = [row for row in utterances if row.text]
    contexts = [row.context for row in said] if any(row.context for row in said) else None
    tokens = iter(tokenise([row.text for row in said], contexts) if said else [])
    return [next(tokens) if row.text else None for row in utterances]


class Collate:
    """Rows -> RawBatch; a class, so that DataLoader workers can be handed one."""

    def __init__(self, tokenise: Tokeniser | None) -> None:
        self._pad_id = tokenise.pad_id if tokenise is not None else 0

    def __call__(self, rows: Sequence[RawRow]) -> RawBatch:
        tokens = [row.tokens for row in rows if row.tokens is not None]
        frames = [row.frames for row in rows if row.frames is not None]
        sounding = [row for row in rows if row.waveform is not None]
        return RawBatch(
            rows=torch.tensor([row.row for row in rows]),
            present=torch.stack([row.present for row in rows]),
            places={
                "text": _places([row.tokens for row in rows]),
                "video": _places([row.frames for row in rows]),
                "audio": _places([row.waveform for row in rows]),
            },
            tokens=TokenBatch.pad(tokens, self._pad_id) if tokens else None,
            frames=torch.stack(frames) if frames else None,
            waveforms=[row.waveform for row in sounding if row.waveform is not None],
            masks=[row.mask for row in sounding],
            cached={
                name: torch.stack([row.cached[name] for row in rows]) for name in rows[0].cached
            },
        )


def _places(values: Sequence[object | None]) -> Tensor:
    return torch.tensor([i for i, value in enumerate(values) if value is not None]).long()


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """Every row once, in batches of rows of like length, in another order every epoch."""
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
    """Every row once, short ones first, for measuring."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return list(_chunks(order, batch_size))


def _chunks(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield list(rows[start : start + size])


def seed_of(*parts: object) -> int:
    """One number for a purpose and a place: streams that never run into each other."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) >> 1
