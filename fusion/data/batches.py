"""Rows in memory as input of `FusionModel.fuse`, and the batches of a training."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from fusion.data.split import FusionData
from fusion.labels import UNLABELLED, Head
from fusion.model.dialogue import Turns
from fusion.model.ensemble import Fusion
from fusion.model.fusion import FusionModel, FusionOutput
from pipeline.schema import Modality


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Features standardised, shapes as in `FusionData`, or all with a leading axis [trainings].

    soft: a teacher's probabilities, float32 [rows, classes] of each head; empty without one
    shared: where `features` are those of more rows, not standardised: see `of_shared`
    """

    features: dict[Modality, Tensor]
    present: Tensor
    turns: Turns
    emotion: Tensor
    sentiment: Tensor
    soft: dict[Head, Tensor] = field(default_factory=dict)
    shared: "_Shared | None" = None

    @classmethod
    def prepare(
        cls,
        model: Fusion,
        data: FusionData,
        device: torch.device,
        soft: Mapping[Head, Tensor] | None = None,
    ) -> "Rows":
        features = {name: values.to(device) for name, values in data.features.items()}
        present = data.present.to(device)
        with torch.no_grad():
            standardised = model.standardise(features, present)
        return cls(
            features=standardised,
            present=present,
            turns=data.turns.to(device),
            emotion=data.emotion.to(device),
            sentiment=data.sentiment.to(device),
            soft={head: values.to(device) for head, values in (soft or {}).items()},
        )

    @classmethod
    def of_shared(
        cls,
        model: FusionModel,
        features: dict[Modality, Tensor],
        part: FusionData,
        places: Tensor,
    ) -> "Rows":
        """Rows whose features are standardised when they are picked: the same values as prepared,
        and many parts of the same rows, such as folds, need one copy of them.

        features: of all rows, on their device
        part:     the labels of these rows; its own features are not looked at
        places:   int64 [rows], where each of these rows stands in `features`
        """
        device = places.device
        return cls(
            features=features,
            present=part.present.to(device),
            turns=part.turns.to(device),
            emotion=part.emotion.to(device),
            sentiment=part.sentiment.to(device),
            shared=_Shared(model=model, columns=part.modalities, places=places),
        )

    def __len__(self) -> int:
        return self.present.shape[-2]

    def pick(self, index: Tensor) -> "Rows":
        return Rows(
            features={name: self.features_of(name, index) for name in self.features},
            present=self.present[index],
            turns=self.turns.pick(index),
            emotion=self.emotion[index],
            sentiment=self.sentiment[index],
            soft={head: values[index] for head, values in self.soft.items()},
        )

    def features_of(self, name: Modality, index: Tensor, out: Tensor | None = None) -> Tensor:
        """Standardised, float32 [batch, layers, dim]; in `out` where that is given."""
        if self.shared is None:
            return torch.index_select(self.features[name], 0, index, out=out)
        values = torch.index_select(self.features[name], 0, self.shared.places[index], out=out)
        present = self.present[index, self.shared.columns.index(name)]
        return self.shared.model.branch(name).standardise_(values, present)


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """model: standardises; columns: of `Rows.present`; places: of the rows in `Rows.features`"""

    model: FusionModel
    columns: tuple[Modality, ...]
    places: Tensor


def fuse_rows(model: Fusion, rows: Rows) -> FusionOutput:
    return model.fuse(rows.features, rows.present, rows.turns)


# Batches of whole dialogues all differ in size; memory is reused best where few sizes occur.
_ROUND_UP_TO = 64


class SideBySide:
    """Makes one batch of each training's rows: a leading axis [trainings].

    Shorter batches are padded with rows that have no label, no modality and a dialogue of their
    own, which do not change the result. A batch is good until the next one: it lies in the same
    memory, as
    fresh memory of this size costs as much time as the arithmetic. It takes no more of that memory
    than its own rows need, rounded up, so that one long dialogue makes one step large and not all.
    """

    def __init__(self, all_rows: Sequence[Rows]) -> None:
        self._rows = tuple(all_rows)
        self._memory: dict[str, Tensor] = {}
        self._longest = 0

    def pick(self, indices: Sequence[Tensor]) -> Rows:
        """indices: each int64 [batch], one per training."""
        longest = max(len(index) for index in indices)
        if longest > self._longest:
            self._longest = longest
            self._memory.clear()
        size = min(self._longest, math.ceil(longest / _ROUND_UP_TO) * _ROUND_UP_TO)

        def gather(name: str, of: Callable[[Rows], Tensor], fill: float) -> Tensor:
            parts = [of(rows) for rows in self._rows]
            out = self._memory_for(name, parts[0])[:, :size]
            for own, part, index in zip(out, parts, indices, strict=True):
                torch.index_select(part, 0, index, out=own[: len(index)])
                own[len(index) :] = fill
            return out

        def gather_features(name: Modality) -> Tensor:
            out = self._memory_for(name, self._rows[0].features[name])[:, :size]
            for own, rows, index in zip(out, self._rows, indices, strict=True):
                rows.features_of(name, index, out=own[: len(index)])
                own[len(index) :] = 0.0
            return out

        return Rows(
            features={name: gather_features(name) for name in self._rows[0].features},
            present=gather("present", lambda rows: rows.present, False),
            turns=Turns(
                dialogue=gather("dialogue", lambda rows: rows.turns.dialogue, -1),
                position=gather("position", lambda rows: rows.turns.position, 0),
                speaker=gather("speaker", lambda rows: rows.turns.speaker, 0),
            ),
            emotion=gather("emotion", lambda rows: rows.emotion, UNLABELLED),
            sentiment=gather("sentiment", lambda rows: rows.sentiment, UNLABELLED),
            soft={
                head: gather(f"soft {head}", partial(_soft, head), 0.0)
                for head in self._rows[0].soft
            },
        )

    def _memory_for(self, name: str, like: Tensor) -> Tensor:
        if name not in self._memory:
            self._memory[name] = like.new_empty(len(self._rows), self._longest, *like.shape[1:])
        return self._memory[name]


def _soft(head: Head, rows: Rows) -> Tensor:
    return rows.soft[head]


def epoch_batches(
    turns: Turns, steps: int, generator: torch.Generator, *, whole_dialogues: bool
) -> tuple[Tensor, ...]:
    """Every row once, in `steps` batches of nearly equal size; each int64 [batch], on the CPU."""
    num_rows = len(turns.dialogue)
    if not whole_dialogues:
        return torch.randperm(num_rows, generator=generator).tensor_split(steps)
    dialogue = turns.dialogue.cpu()
    counts = torch.bincount(dialogue)
    order = torch.randperm(len(counts), generator=generator)  # dialogues as they will come
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    starts = counts[order].cumsum(0) - counts[order]  # the row each begins at
    step_of = (starts * steps) // num_rows
    rows = place[dialogue].argsort(stable=True)
    sizes = torch.zeros(steps, dtype=torch.int64).index_add_(0, step_of, counts[order])
    return rows.split(sizes.tolist())


def prediction_batches(turns: Turns, batch_size: int, *, whole_dialogues: bool) -> list[Tensor]:
    """Every row once, in batches of about `batch_size`; each int64 [batch]."""
    num_rows = len(turns.dialogue)
    if not whole_dialogues:
        return list(torch.arange(num_rows, device=turns.dialogue.device).split(batch_size))
    rows = turns.dialogue.argsort(stable=True)
    counts = torch.bincount(turns.dialogue)
    step_of = (counts.cumsum(0) - counts) // batch_size
    sizes = torch.zeros(int(step_of[-1]) + 1, dtype=torch.int64, device=counts.device)
    sizes.index_add_(0, step_of, counts)
    return [part for part in rows.split(sizes.tolist()) if len(part)]
