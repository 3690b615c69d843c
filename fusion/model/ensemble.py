"""An ensemble: several fusion models as one, whose probabilities are averaged.

    features ── member 1 ── softmax ─┐
             ── member 2 ── softmax ─┼─ mean ── log ──> "logits"
             ── ...                  ┘

The logarithm of the averaged probabilities stands where a single model has its logits: its softmax
is the average itself. So what comes after works as for one model: one temperature, fitted on dev,
calibrates the average (a member alone has none), joint labels are chosen from it, and Shapley
values explain it, with a modality hidden from all members at once.

In a run's folder `model.safetensors` holds the weights of all members, by number, so that one hash
is the fingerprint of all, and `config.json` says how many there are. Members of a fine-tuned run
have encoders of their own: their features lie side by side in the feature's last axis, as those of
several encoders do (`pipeline.encoders.several`), and each member takes its part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fusion.model.dialogue import DialogueContext, Turns
from fusion.model.dims import FusionDims
from fusion.model.fusion import FusionModel, FusionOutput
from pipeline.encoders.pruning import PrunableLayer
from pipeline.schema import Modality

_LEAST = 1e-30  # a probability that is 0 in float32 has no logarithm


class FusionEnsemble(nn.Module):
    """Used as a `FusionModel` is, with logarithms of averaged probabilities as logits.

    members: of one shape, that of `dims.of_member`
    """

    def __init__(self, dims: FusionDims, members: Sequence[FusionModel] | None = None) -> None:
        super().__init__()
        self.dims = dims
        if members is None:
            members = [FusionModel(dims.of_member) for _ in range(dims.members)]
        if len(members) != dims.members or any(each.dims != dims.of_member for each in members):
            raise ValueError(f"the members are no {dims.members} models of {dims.of_member}")
        self.members = nn.ModuleList(members)

    @property
    def context(self) -> DialogueContext | None:
        """As in `FusionModel`: where there is one, a batch must hold whole dialogues."""
        return self._members[0].context

    def forward(
        self, features: Mapping[Modality, Tensor], present: Tensor, turns: Turns | None = None
    ) -> FusionOutput:
        return self.fuse(self.standardise(features, present), present, turns)

    def standardise(
        self, features: Mapping[Modality, Tensor], present: Tensor
    ) -> dict[Modality, Tensor]:
        """Nothing: each member has a mean and a deviation of its own."""
        return dict(features)

    def fuse(
        self, features: Mapping[Modality, Tensor], present: Tensor, turns: Turns | None = None
    ) -> FusionOutput:
        outputs = [
            member(self._part_of(number, features), present, turns)
            for number, member in enumerate(self._members)
        ]
        return average_outputs(outputs)

    def prunable(self) -> list[PrunableLayer]:
        """None: members would have to lose the same units."""
        return []

    @property
    def _members(self) -> list[FusionModel]:
        return list(self.members)  # type: ignore[arg-type]

    def _part_of(self, number: int, features: Mapping[Modality, Tensor]) -> dict[Modality, Tensor]:
        """{modality: [batch, layers, dim]} of one member"""
        width = {dims.modality: dims.dim for dims in self.dims.of_member.modalities}
        return {
            name: values[..., number * width[name] : (number + 1) * width[name]]
            if name in self.dims.own
            else values
            for name, values in features.items()
        }


Fusion = FusionModel | FusionEnsemble


def average_outputs(outputs: Sequence[FusionOutput]) -> FusionOutput:
    """Logarithms of the mean of the probabilities."""
    return FusionOutput(
        _log_mean([each.emotion_logits for each in outputs]),
        _log_mean([each.sentiment_logits for each in outputs]),
    )


def _log_mean(logits: Sequence[Tensor]) -> Tensor:
    """each [batch, classes] -> [batch, classes]"""
    mean = sum(each.softmax(dim=1) for each in logits) / len(logits)
    return torch.as_tensor(mean).clamp_min(_LEAST).log()


def join_members(members: Sequence[FusionModel], own: Sequence[Modality] = ()) -> Fusion:
    """The members as one model, in evaluation mode; a single one stays what it is."""
    if len(members) == 1:
        return members[0].eval()
    first = members[0].dims
    modalities = tuple(
        replace(each, dim=each.dim * len(members)) if each.modality in own else each
        for each in first.modalities
    )
    whole = replace(first, modalities=modalities, members=len(members), own=tuple(own))
    return FusionEnsemble(whole, members).eval()


def build_fusion(dims: FusionDims) -> Fusion:
    """With random weights."""
    return FusionModel(dims) if dims.members == 1 else FusionEnsemble(dims)
