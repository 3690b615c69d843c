"""The fusion model: parts in a row, each chosen by name.

    features {modality: [batch, layers, dim]}     present [batch, modalities]
        │ standardise     by mean and std of the train split
        │ ModalityBranch  learned mix over layers, or all side by side -> linear -> norm, GELU,
        │                 dropout; an absent modality is one learned vector  [batch, 128]
        │ join            late, early, hybrid, gated, attention: see joins.py  [batch, hidden]
        │ context         if asked: what the rest of the dialogue adds, see dialogue.py
        └ Heads           emotion [batch, 7], sentiment [batch, 3]

`standardise` is a step of its own, so that training on a cache does it once and not every epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fusion.model.dialogue import DialogueContext, Turns
from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.dropout import Dropout
from fusion.model.joins import JOINS, draw_small
from pipeline.encoders.pruning import PrunableLayer, prune_layers, units_of
from pipeline.schema import EMOTIONS, SENTIMENTS, Modality


@dataclass(frozen=True)
class FusionOutput:
    emotion_logits: Tensor  # [batch, 7], in the order of EMOTIONS
    sentiment_logits: Tensor  # [batch, 3], in the order of SENTIMENTS


class ModalityBranch(nn.Module):
    """One modality's features -> [batch, width], width the projection's or, without, that of what
    is read: dim, or layers * dim where they are read side by side."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, dims: ModalityDims, config: ModelConfig, *, project: bool) -> None:
        super().__init__()
        mixes = config.layers == "mix" and dims.layers > 1
        read = dims.dim if mixes else dims.layers * dims.dim
        self.width = config.projection if project else read
        self.register_buffer("mean", torch.zeros(dims.layers, dims.dim))
        self.register_buffer("deviation", torch.ones(dims.layers, dims.dim))
        # As in ELMo (Peters et al. 2018): which layer serves best is learned, starting from all.
        self.layer_logits = nn.Parameter(torch.zeros(dims.layers)) if mixes else None
        self.absent = nn.Parameter(draw_small(self.width))
        self.feature_dropout = Dropout(config.feature_dropout)
        self.project = Projection(read, config) if project else nn.Identity()

    @torch.no_grad()
    def fit_standardisation(self, features: Tensor, present: Tensor) -> None:
        """Takes mean and deviation from the rows that are there."""
        real = features[present]  # [rows, layers, dim]
        self.mean.copy_(real.mean(dim=0))
        deviation = real.std(dim=0, correction=0)
        # A dimension that hardly moves in train must not shout when it moves elsewhere.
        floor = 0.01 * deviation.mean(dim=1, keepdim=True)
        self.deviation.copy_(torch.maximum(deviation, floor).clamp_min(1e-6))

    def standardise(self, features: Tensor, present: Tensor) -> Tensor:
        """[batch, layers, dim] -> the same; whatever stands in an absent row becomes zero."""
        scaled = (features - self.mean) / self.deviation
        return torch.where(present[:, None, None], scaled, 0.0)

    @torch.no_grad()
    def standardise_(self, features: Tensor, present: Tensor) -> Tensor:
        """`standardise` in place, to the same bits."""
        scaled = features.sub_(self.mean).div_(self.deviation)
        return scaled.masked_fill_(~present[:, None, None], 0.0)

    def forward(self, standardised: Tensor | None, present: Tensor) -> Tensor:
        """standardised: None where the modality is absent in every row."""
        if standardised is None:
            return self.absent.expand(len(present), -1)
        mixed = self.feature_dropout(self.read_layers(standardised))  # [batch, read]
        return torch.where(present[:, None], self.project(mixed), self.absent)

    def read_layers(self, standardised: Tensor) -> Tensor:
        """[batch, layers, dim] -> [batch, dim], or [batch, layers * dim]"""
        if self.layer_logits is None:
            return standardised.flatten(1)
        return self.layer_logits.softmax(dim=0) @ standardised


class Projection(nn.Module):
    """[batch, dim] -> [batch, projection]"""

    def __init__(self, dim: int, config: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, config.projection)
        self.norm = nn.LayerNorm(config.projection)
        self.dropout = Dropout(config.dropout)

    def forward(self, features: Tensor) -> Tensor:
        return self.dropout(nn.functional.gelu(self.norm(self.linear(features))))


class Heads(nn.Module):
    """[batch, hidden] -> two sets of logits."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.emotion = nn.Linear(hidden, len(EMOTIONS))
        self.sentiment = nn.Linear(hidden, len(SENTIMENTS))

    def forward(self, hidden: Tensor) -> FusionOutput:
        return FusionOutput(self.emotion(hidden), self.sentiment(hidden))


class FusionModel(nn.Module):
    """The whole model. A modality missing from `features` counts as absent in every row.

    turns: where the rows stand in their dialogues; only a model with context looks at it, and then
        it must have all rows of every dialogue in the batch
    """

    def __init__(self, dims: FusionDims) -> None:
        super().__init__()
        self.dims = dims
        config = dims.model
        join = JOINS[config.fusion]
        self.branches = nn.ModuleDict(
            {
                each.modality: ModalityBranch(each, config, project=join.projects)
                for each in dims.modalities
            }
        )
        widths = [branch.width for _, branch in self._branches()]
        self.join = join(widths, config.hidden, config.dropout)
        self.context = (
            DialogueContext(config.hidden, future=config.future, dropout=config.dropout)
            if config.context == "dialogue"
            else None
        )
        self.heads = Heads(config.hidden)

    def forward(
        self, features: Mapping[Modality, Tensor], present: Tensor, turns: Turns | None = None
    ) -> FusionOutput:
        """features: {modality: float32 [batch, layers, dim]}; present: bool [batch, modalities]."""
        return self.fuse(self.standardise(features, present), present, turns)

    def fit_standardisation(self, features: Mapping[Modality, Tensor], present: Tensor) -> None:
        """Takes every branch's mean and deviation from the train split."""
        for column, (name, branch) in enumerate(self._branches()):
            branch.fit_standardisation(features[name], present[:, column])

    def standardise(
        self, features: Mapping[Modality, Tensor], present: Tensor
    ) -> dict[Modality, Tensor]:
        return {
            name: branch.standardise(features[name], present[:, column])
            for column, (name, branch) in enumerate(self._branches())
            if name in features
        }

    def fuse(
        self, standardised: Mapping[Modality, Tensor], present: Tensor, turns: Turns | None = None
    ) -> FusionOutput:
        """Like `forward`, from features that went through `standardise` already."""
        vectors = [
            branch(standardised.get(name), present[:, column])
            for column, (name, branch) in enumerate(self._branches())
        ]  # each [batch, width]
        hidden = self.join(vectors, present)  # [batch, hidden]
        if self.context is not None:
            if turns is None:
                raise ValueError("a model with dialogue context needs to know the dialogues")
            hidden = self.context(hidden, turns)
        return self.heads(hidden)

    def branch(self, name: Modality) -> ModalityBranch:
        return self.branches[name]  # type: ignore[return-value]

    def prunable(self) -> list[PrunableLayer]:
        """The hidden units; none where a dialogue's context reads them too."""
        if self.context is not None:
            return []
        return self.join.prunable((self.heads.emotion, self.heads.sentiment))

    def prune_to(self, kept: Sequence[Sequence[int]]) -> None:
        """All layers keep the same number of units, which `dims` then says."""
        prune_layers(self.prunable(), kept)
        (hidden,) = set(units_of(self.prunable()).values())
        self.dims = replace(self.dims, model=replace(self.dims.model, hidden=hidden))

    def _branches(self) -> list[tuple[Modality, ModalityBranch]]:
        return [(name, self.branch(name)) for name in self.dims.names]
