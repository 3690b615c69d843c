"""How modalities become one: each join is a small module, chosen by name from `JOINS`.

    vectors  one [batch, width] per modality      present  bool [batch, modalities]
        └ join -> [batch, hidden]

The vector of an absent modality is one learned for that; joins that weigh modalities against each
other (gated, attention) also leave it out by the mask.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn

from fusion.model.dims import ATTENTION_HEADS, FusionType
from fusion.model.dropout import Dropout
from pipeline.encoders.pruning import PrunableLayer


def draw_small(*shape: int) -> Tensor:
    """float32 of that shape, normal with a standard deviation of 0.02."""
    values = torch.empty(*shape)
    # A model that is only to be filled is built on the meta device, where nothing can be drawn:
    # to ask all the same takes PyTorch two seconds of imports.
    return values if values.is_meta else values.normal_() * 0.02


class Join(nn.Module):
    """projects: whether each modality is projected before it gets here."""

    projects: ClassVar[bool] = True
    trunk: nn.Sequential  # its last layer

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        raise NotImplementedError

    def prunable(self, readers: Sequence[nn.Module]) -> list[PrunableLayer]:
        """Its hidden units. readers: the modules that read its output."""
        return [
            PrunableLayer(name="join.trunk", producers=(self.trunk[0],), consumers=tuple(readers))
        ]


class LateJoin(Join):
    """Side by side into one hidden layer."""

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.trunk = layer(sum(widths), hidden, dropout)

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        return self.trunk(torch.cat(list(vectors), dim=1))


class EarlyJoin(LateJoin):
    """The features themselves side by side: the first layer already sees all modalities."""

    projects = False

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__(widths, hidden, dropout)
        self.norm = nn.LayerNorm(hidden)
        self.second = layer(hidden, hidden, dropout)

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        return self.second(self.norm(super().forward(vectors, present)))

    def prunable(self, readers: Sequence[nn.Module]) -> list[PrunableLayer]:
        second = self.second[0]
        return [
            PrunableLayer(
                name="join.trunk", producers=(self.trunk[0], self.norm), consumers=(second,)
            ),
            PrunableLayer(name="join.second", producers=(second,), consumers=tuple(readers)),
        ]


class HybridJoin(Join):
    """Each pair of modalities meets first, then all pairs and the modalities themselves."""

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.pairs = list(combinations(range(len(widths)), 2))
        self.meet = nn.ModuleList(
            layer(widths[a] + widths[b], widths[a], dropout) for a, b in self.pairs
        )
        self.trunk = layer(sum(widths) + sum(widths[a] for a, _ in self.pairs), hidden, dropout)

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        met = [
            meet(torch.cat([vectors[a], vectors[b]], dim=1))
            for meet, (a, b) in zip(self.meet, self.pairs, strict=True)
        ]
        return self.trunk(torch.cat([*vectors, *met], dim=1))


class GatedJoin(Join):
    """Each row weighs its own modalities (after Arevalo et al. 2017, arXiv 1702.01992)."""

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(sum(widths), len(widths))
        self.trunk = layer(widths[0], hidden, dropout)

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        return self.trunk(
            (self.weigh(vectors, present)[:, None] @ torch.stack(list(vectors), 1))[:, 0]
        )

    def weigh(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        """float32 [batch, modalities], adding up to 1; 0 for what is absent, unless all is."""
        scores = self.gate(torch.cat(list(vectors), dim=1))
        counts = present | ~present.any(dim=1, keepdim=True)
        return scores.masked_fill(~counts, -torch.inf).softmax(dim=1)


class AttentionJoin(Join):
    """One transformer block over a token per modality; a learned token asks, and is read."""

    heads: ClassVar[int] = ATTENTION_HEADS

    def __init__(self, widths: Sequence[int], hidden: int, dropout: float) -> None:
        super().__init__()
        width = widths[0]
        if width % self.heads:
            raise ValueError(f"attention needs a projection divisible by {self.heads}: {width}")
        self.ask = nn.Parameter(draw_small(width))
        self.kind = nn.Parameter(draw_small(len(widths) + 1, width))
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.trunk = layer(width, hidden, dropout)

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        ask = self.ask.expand_as(vectors[0])
        tokens = torch.stack([ask, *vectors], dim=1) + self.kind  # [batch, 1 + modalities, width]
        seen = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)
        tokens = tokens + self.out(self._attend(self.norm(tokens), seen))
        return self.trunk(tokens[:, 0])

    def _attend(self, tokens: Tensor, seen: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.query_key_value(tokens).view(batch, count, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [batch, heads, tokens, width]
        scores = query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5
        weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).reshape(batch, count, width)


def layer(width: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, out), nn.GELU(), Dropout(dropout))


JOINS: dict[FusionType, type[Join]] = {
    "late": LateJoin,
    "early": EarlyJoin,
    "hybrid": HybridJoin,
    "gated": GatedJoin,
    "attention": AttentionJoin,
}
