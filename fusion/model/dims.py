"""What a fusion model is built of: its parts by name, and the shapes of its features.

Needs no PyTorch, so that a run's description can be read where there is none.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pipeline.schema import EMBEDDING_DIM, MODALITIES, Modality

FusionType = Literal["late", "early", "hybrid", "gated", "attention"]
FUSION_TYPES: tuple[FusionType, ...] = get_args(FusionType)
ATTENTION_HEADS = 4
MOST_MEMBERS = 100
InputKind = Literal["raw", "embedding"]
ContextKind = Literal["none", "dialogue"]
LayerUse = Literal["mix", "beside"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The parts of the model that can be configured; everything else follows from the features.

    fusion: fusion type, which is how the modalities are combined
    context: "dialogue" lets the model see the features of the dialogue's earlier utterances
    future: with context "dialogue": the later utterances as well
    layers: what is read of an encoder with several layers: "mix" learns which layers serve best and
        reads their weighted mean; "beside" reads all of them side by side, which a few hundred
        clips of speech train better (LOG.md)
    projection: width of a modality's branch
    hidden: width of the layers after the join
    feature_dropout: dropout of the mixed features
    dropout: dropout of all later layers
    """

    fusion: FusionType = "late"
    context: ContextKind = "none"
    future: bool = False
    layers: LayerUse = "mix"
    projection: int = EMBEDDING_DIM
    hidden: int = 256
    feature_dropout: float = 0.2
    dropout: float = 0.4

    def __post_init__(self) -> None:
        if self.fusion not in FUSION_TYPES:
            known = ", ".join(FUSION_TYPES)
            raise ValueError(f"fusion must be one of {known}, not {self.fusion!r}")
        if self.context not in ("none", "dialogue"):
            raise ValueError(f"context must be none or dialogue, not {self.context!r}")
        if self.layers not in get_args(LayerUse):
            raise ValueError(f"layers must be mix or beside, not {self.layers!r}")
        if self.future and self.context == "none":
            raise ValueError("future is part of the dialogue: ask for context dialogue with it")
        for name in ("projection", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.fusion == "attention" and self.projection % ATTENTION_HEADS:
            raise ValueError(
                f"attention needs a projection divisible by {ATTENTION_HEADS}, not "
                f"{self.projection}"
            )
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
    """What the weights need to be rebuilt. The order of `modalities` is that of `present`.

    members: number of models whose probabilities are averaged; 1 is a single model
    own: modalities of which each member has features of its own: they lie side by side, so that
        `dim` is that of one member times `members`
    """

    modalities: tuple[ModalityDims, ...]
    input: InputKind = "raw"
    model: ModelConfig = field(default_factory=ModelConfig)
    members: int = 1
    own: tuple[Modality, ...] = ()

    def __post_init__(self) -> None:
        if not self.modalities or len(set(self.names)) != len(self.names):
            raise ValueError(f"every modality once, and at least one, not {self.names}")
        if self.input not in ("raw", "embedding"):
            raise ValueError(f"input must be raw or embedding, not {self.input!r}")
        if type(self.members) is not int or not 1 <= self.members <= MOST_MEMBERS:
            raise ValueError(f"members must be 1 to {MOST_MEMBERS}, not {self.members!r}")
        if set(self.own) - set(self.names):
            raise ValueError(f"own modalities are some of {self.names}, not {self.own}")
        for dims in self.modalities:
            if dims.modality in self.own and dims.dim % self.members:
                raise ValueError(f"{self.members} members cannot share {dims}")

    @property
    def of_member(self) -> "FusionDims":
        """The dims of one of the models."""
        return FusionDims(
            modalities=tuple(
                dataclasses.replace(each, dim=each.dim // self.members)
                if each.modality in self.own
                else each
                for each in self.modalities
            ),
            input=self.input,
            model=self.model,
        )

    @property
    def names(self) -> tuple[Modality, ...]:
        return tuple(dims.modality for dims in self.modalities)

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        if self.members == 1:  # as runs are described that are older than ensembles
            del values["members"], values["own"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FusionDims":
        """Raises KeyError, TypeError or ValueError where `values` is no such thing."""
        return cls(
            modalities=tuple(ModalityDims(**dims) for dims in values["modalities"]),
            input=values["input"],
            model=ModelConfig(**values["model"]),
            members=values.get("members", 1),
            own=tuple(values.get("own", ())),
        )
