"""Several encoders of one modality as one: `--audio spectrogram,prosody`.

    clip ── prepare ──> (item of the 1st, item of the 2nd, ...)     None where it finds nothing
         ── encode ───> [rows, layers, dim of the 1st + dim of the 2nd + ...]

The modality is present where any of them finds something. The features of one that finds nothing
beside others that do are zero, and a warning records it: a fusion model masks modalities, not
parts of them. An encoder of one layer stands beside each layer of one that has many; a mix of
layers whose weights add up to 1 leaves it as it is. Of two that have many, the layers of the one
with fewer are repeated, so that those of a like depth stand beside each other.

Encoders of pictures that want frames of different sizes have a view each: a clip is decoded once,
and its frames hold all views (`DecodeConfig.more_views`).
"""

import shutil
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.encoder import (
    AnyEncoder,
    AnyPreparation,
    EncoderAsSeen,
    EncoderChoice,
    EncoderEntry,
    SharesWork,
)
from pipeline.encoders.pruning import HasPrunable, PrunableLayer
from pipeline.encoders.side_by_side import Items, SideBySide, spread_layers
from pipeline.recipe import DecodeConfig, FrameView

Entries = Sequence[tuple[str, EncoderEntry]]  # by name


@dataclass(frozen=True)
class SeveralBatch:
    """rows: of the whole batch; each part: the rows that it has, and their batch or None"""

    rows: int
    parts: tuple[tuple[Tensor, Any | None], ...]

    def to(self, device: torch.device) -> "SeveralBatch":
        return SeveralBatch(
            self.rows,
            tuple(
                (places.to(device), None if batch is None else batch.to(device))
                for places, batch in self.parts
            ),
        )


class SeveralPreparations(SideBySide):
    """The preparations of all encoders, side by side; an item of theirs is a tuple of items."""

    def __init__(
        self,
        parts: Sequence[tuple[str, AnyPreparation]],
        decode: DecodeConfig | None,
        views: Sequence[FrameView | None],
    ) -> None:
        super().__init__(parts, decode, views)
        self.parts = [part for _, part in parts]
        limits = [part.most_rows for part in self.parts if part.most_rows is not None]
        self.most_rows: int | None = min(limits, default=None)

    def group(self, item: Items) -> Hashable:
        """Of what the parts have that share work: all have what the first of them has."""
        groups = [
            part.group(each)
            for part, each in zip(self.parts, item, strict=True)
            if each is not None and isinstance(part, SharesWork)
        ]
        return groups[0] if groups else id(item)

    def augment(self, item: Items, config: AugmentConfig, generator: torch.Generator) -> Items:
        """Each draws for itself."""
        return tuple(
            None if each is None else part.augment(each, config, generator)
            for part, each in zip(self.parts, item, strict=True)
        )

    def collate(self, items: Sequence[Items]) -> SeveralBatch:
        parts: list[tuple[Tensor, Any | None]] = []
        for part, column in zip(self.parts, zip(*items, strict=True), strict=True):
            there = [row for row, each in enumerate(column) if each is not None]
            batch = part.collate([column[row] for row in there]) if there else None
            parts.append((torch.tensor(there, dtype=torch.int64), batch))
        return SeveralBatch(len(items), tuple(parts))


class SeveralEncoders(nn.Module):
    """Encoders whose features are concatenated, in the order of their names.

    num_layers: of the one with the most
    autocast:   whether each may compute in bfloat16; those that may not never do
    decode, views: as in `SeveralPreparations`

    forward: SeveralBatch -> float32 [rows, num_layers, sum of dims]
    """

    def __init__(
        self,
        encoders: Sequence[tuple[str, AnyEncoder]],
        *,
        num_layers: int,
        autocast: Sequence[bool],
        decode: DecodeConfig | None,
        views: Sequence[FrameView | None],
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(cast(nn.Module, each) for _, each in encoders)
        self.preparation = SeveralPreparations(
            [(name, each.preparation) for name, each in encoders], decode, views
        )
        self.num_layers = num_layers
        self.autocast = tuple(autocast)
        sizes = [each.batch_size for _, each in encoders if each.batch_size is not None]
        self.batch_size: int | None = min(sizes, default=None)

    @property
    def _encoders(self) -> list[AnyEncoder]:
        return [cast(AnyEncoder, part) for part in self.parts]

    @property
    def dim(self) -> int:
        return sum(each.dim for each in self._encoders)

    def forward(self, batch: SeveralBatch) -> Tensor:
        columns = []
        for encoder, takes_any, (places, own) in zip(
            self._encoders, self.autocast, batch.parts, strict=True
        ):
            features = torch.zeros(batch.rows, self.num_layers, encoder.dim, device=places.device)
            if own is not None:
                enabled = takes_any and torch.is_autocast_enabled(places.device.type)
                with torch.autocast(places.device.type, torch.bfloat16, enabled):
                    encoded = encoder(own).float()  # [rows that have it, layers, dim]
                spread = encoded[:, spread_layers(encoded.shape[1], self.num_layers)]
                features = features.index_copy(0, places, spread)
            columns.append(features)
        return torch.cat(columns, dim=2)

    def as_seen(self) -> list[EncoderAsSeen]:
        own = self.preparation
        return [
            EncoderAsSeen(name, encoder, view, _decode_of(view, own.decode))
            for name, encoder, view in zip(own.names, self._encoders, own.views, strict=True)
        ]

    def layer_depths(self) -> dict[str, int]:
        """The tops of all are level: what is below the top learns slower."""
        own = [encoder.layer_depths() for encoder in self._encoders]
        top = max((depth for depths in own for depth in depths.values()), default=0)
        return {
            f"parts.{number}.{path}": depth + top - max(depths.values())
            for number, depths in enumerate(own)
            for path, depth in depths.items()
        }

    def prunable(self) -> list[PrunableLayer]:
        """Of those encoders that have some."""
        return [
            replace(layer, name=f"parts.{number}.{layer.name}")
            for number, encoder in enumerate(self._encoders)
            if isinstance(encoder, HasPrunable)
            for layer in encoder.prunable()
        ]

    def prune_to(self, kept: Sequence[Sequence[int]]) -> None:
        rest = list(kept)
        for encoder in self._encoders:
            if isinstance(encoder, HasPrunable):
                count = len(encoder.prunable())
                encoder.prune_to(rest[:count])
                rest = rest[count:]

    def checkpoint_gradients(self) -> None:
        for encoder in self._encoders:
            encoder.checkpoint_gradients()

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        return sum(each.activation_bytes(rows, longest, value_bytes) for each in self._encoders)

    def save(self, folder: Path) -> None:
        """Each into a folder of its own, by its place."""
        for place, encoder in enumerate(self._encoders):
            _folder_of(folder, place).mkdir()
            encoder.save(_folder_of(folder, place))


def prepare_several(
    choice: EncoderChoice, decode: DecodeConfig | None, entries: Entries
) -> AnyPreparation:
    parts, views = _parts_of(choice, entries), _views_of(entries)
    prepared = [
        (name, entry.prepare(part, _decode_of(view, decode)))
        for (name, entry, part), view in zip(parts, views, strict=True)
    ]
    return SeveralPreparations(prepared, decode, views)


def build_several(
    choice: EncoderChoice, decode: DecodeConfig | None, entries: Entries
) -> AnyEncoder:
    """Raises MismatchError where a part's files are not its weights."""
    parts, views = _parts_of(choice, entries), _views_of(entries)
    built = [
        (name, entry.build(part, _decode_of(view, decode)))
        for (name, entry, part), view in zip(parts, views, strict=True)
    ]
    return SeveralEncoders(
        built,
        num_layers=len(choice.spec.layers),
        autocast=[entry.autocast for _, entry in entries],
        decode=decode,
        views=views,
    ).eval()


def _views_of(entries: Entries) -> list[FrameView | None]:
    return [entry.frames(name)[0] if entry.frames else None for name, entry in entries]


def _decode_of(view: FrameView | None, decode: DecodeConfig | None) -> DecodeConfig | None:
    """How the clips were decoded as far as this part sees them."""
    return decode if view is None or decode is None else decode.of_view(view)


def _parts_of(
    choice: EncoderChoice, entries: Entries
) -> list[tuple[str, EncoderEntry, EncoderChoice]]:
    """As they were chosen, or of a fine-tuned run, in the precision that is asked for."""
    precision = choice.spec.precision
    parts = []
    for place, (name, entry) in enumerate(entries):
        if choice.parts:
            part = choice.parts[place]
        else:
            assert choice.path is not None
            folder = _folder_of(choice.path, place)
            part = EncoderChoice(
                spec=replace(
                    choice.spec,
                    name=name,
                    layers=_layers_of(entry, folder, choice.spec.layers),
                    dialogue=choice.spec.dialogue if entry.is_layered else "none",
                    context=choice.spec.context if entry.is_layered else 0,
                ),
                path=folder,
            )
        own = precision if entry.autocast else "float32"
        parts.append((name, entry, replace(part, spec=replace(part.spec, precision=own))))
    return parts


def _layers_of(entry: EncoderEntry, folder: Path, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Of one that was saved: those of the whole, which are those of the part with the most; where
    it has not so many, all were asked for."""
    if not entry.is_layered:
        return (-1,)
    own = len(layers) if entry.count_layers is None else entry.count_layers(folder)
    return layers if max(layers) < own else tuple(range(own))


def _folder_of(folder: Path, place: int) -> Path:
    return folder / str(place)


class CopiedEncoders:
    """Encoders of one modality that were saved in several runs, to be saved side by side, as
    `SeveralEncoders` saves its parts."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """folders: of each run's encoder, whose parts are in folders of their own where it is
        several itself"""
        self.folders = [part for folder in folders for part in _parts_in(folder)]

    def save(self, folder: Path) -> None:
        for place, saved in enumerate(self.folders):
            shutil.copytree(saved, _folder_of(folder, place))


class CopiedEncoder:
    """One that was saved in a run, to be saved again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, folder: Path) -> None:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)


def _parts_in(folder: Path) -> list[Path]:
    inner = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda p: int(p.name))
    return inner or [folder]
