"""Late fusion: one branch per modality, their outputs side by side, one trunk, two heads.

    features {modality: [batch, layers, dim]}     present [batch, modalities]
        │ standardise     by mean and deviation of the train split
        │ ModalityBranch  learned mix over layers -> linear -> norm, GELU, dropout; an absent
        │                 modality is one learned vector         [batch, 128]
        │ concatenate                                            [batch, modalities x 128]
        │ trunk           linear, GELU, dropout                  [batch, hidden]
        └ Heads           emotion [batch, 7], sentiment [batch, 3]

`standardise` is a step of its own, so that training on a cache does it once and not every epoch.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.schema import EMBEDDING_DIM, EMOTIONS, MODALITIES, SENTIMENTS, Modality

InputKind = Literal["raw", "embedding"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a user may choose of the model; everything else follows from the features.

    feature_dropout works on the mixed features, dropout on everything behind them.
    """

    projection: int = EMBEDDING_DIM
    hidden: int = 256
    feature_dropout: float = 0.2
    dropout: float = 0.4

    def __post_init__(self) -> None:
        for name in ("projection", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("feature_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ModalityDims:
    """One modality's features: [layers, dim] per utterance."""

    modality: Modality
    layers: int
    dim: int

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"modality {self.modality!r} is none of {', '.join(MODALITIES)}")
        if self.layers < 1 or self.dim < 1:
            raise ValueError(f"{self.modality} needs layers and dim >= 1: {self}")


@dataclass(frozen=True, kw_only=True)
class FusionDims:
    """What the weights need to be rebuilt. The order of `modalities` is that of `present`."""

    modalities: tuple[ModalityDims, ...]
    input: InputKind = "raw"
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        if not self.modalities or len(set(self.names)) != len(self.names):
            raise ValueError(f"every modality once, and at least one, not {self.names}")
        if self.input not in ("raw", "embedding"):
            raise ValueError(f"input must be raw or embedding, not {self.input!r}")

    @property
    def names(self) -> tuple[Modality, ...]:
        return tuple(dims.modality for dims in self.modalities)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FusionDims":
        """Raises KeyError, TypeError or ValueError where `values` is no such thing."""
        return cls(
            modalities=tuple(ModalityDims(**dims) for dims in values["modalities"]),
            input=values["input"],
            model=ModelConfig(**values["model"]),
        )


@dataclass(frozen=True)
class FusionOutput:
    emotion_logits: Tensor  # [batch, 7], in the order of EMOTIONS
    sentiment_logits: Tensor  # [batch, 3], in the order of SENTIMENTS


class ModalityBranch(nn.Module):
    """One modality's features -> [batch, projection]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, dims: ModalityDims, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dims.layers, dims.dim))
        self.register_buffer("deviation", torch.ones(dims.layers, dims.dim))
        # As in ELMo (Peters et al. 2018): which layer serves best is learned, starting from all.
        self.layer_logits = nn.Parameter(torch.zeros(dims.layers)) if dims.layers > 1 else None
        self.absent = nn.Parameter(torch.randn(config.projection) * 0.02)
        self.feature_dropout = nn.Dropout(config.feature_dropout)
        self.project = nn.Linear(dims.dim, config.projection)
        self.norm = nn.LayerNorm(config.projection)
        self.dropout = nn.Dropout(config.dropout)

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

    def forward(self, standardised: Tensor, present: Tensor) -> Tensor:
        mixed = self.mix_layers(standardised)  # [batch, dim]
        projected = nn.functional.gelu(self.norm(self.project(self.feature_dropout(mixed))))
        vector = torch.where(present[:, None], projected, self.absent)
        return self.dropout(vector)  # [batch, projection]

    def mix_layers(self, standardised: Tensor) -> Tensor:
        if self.layer_logits is None:
            return standardised[:, 0]
        return self.layer_logits.softmax(dim=0) @ standardised

    def when_absent(self, batch: int) -> Tensor:
        return self.dropout(self.absent.expand(batch, -1))


class Heads(nn.Module):
    """[batch, hidden] -> two sets of logits."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.emotion = nn.Linear(hidden, len(EMOTIONS))
        self.sentiment = nn.Linear(hidden, len(SENTIMENTS))

    def forward(self, hidden: Tensor) -> FusionOutput:
        return FusionOutput(self.emotion(hidden), self.sentiment(hidden))


class LateFusion(nn.Module):
    """The whole model. A modality missing from `features` counts as absent in every row."""

    def __init__(self, dims: FusionDims) -> None:
        super().__init__()
        self.dims = dims
        config = dims.model
        self.branches = nn.ModuleDict(
            {each.modality: ModalityBranch(each, config) for each in dims.modalities}
        )
        width = len(dims.modalities) * config.projection
        self.trunk = nn.Sequential(
            nn.Linear(width, config.hidden), nn.GELU(), nn.Dropout(config.dropout)
        )
        self.heads = Heads(config.hidden)

    def forward(self, features: Mapping[Modality, Tensor], present: Tensor) -> FusionOutput:
        """features: {modality: float32 [batch, layers, dim]}; present: bool [batch, modalities]."""
        return self.fuse(self.standardise(features, present), present)

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

    def fuse(self, standardised: Mapping[Modality, Tensor], present: Tensor) -> FusionOutput:
        """Like `forward`, from features that went through `standardise` already."""
        vectors = [
            branch(standardised[name], present[:, column])
            if name in standardised
            else branch.when_absent(len(present))
            for column, (name, branch) in enumerate(self._branches())
        ]  # each [batch, projection]
        return self.heads(self.trunk(torch.cat(vectors, dim=1)))

    def _branches(self) -> list[tuple[Modality, ModalityBranch]]:
        return [(name, self.branches[name]) for name in self.dims.names]  # type: ignore[misc]
