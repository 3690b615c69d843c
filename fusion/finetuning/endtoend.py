"""Encoders and fusion as one model: `EndToEnd(raw) == FusionModel(encode(raw))`.

It has exactly the parameters of the two, so before the first step it is the trained fusion model
with features that are computed from raw clips.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fusion.finetuning.clips import RawBatch
from fusion.model.fusion import FusionModel, FusionOutput
from pipeline.encode import Encoders
from pipeline.schema import Modality

TrainingPrecision = Literal["float32", "bfloat16"]


class EndToEnd(nn.Module):
    """Raw batch -> logits, gradients through every encoder that is unfrozen.

    precision: of the encoders; weights and fusion are always float32.
    train_batchnorm: False keeps the video net's BatchNorm at its running statistics, because small
        batches of similar clips would disturb them.
    """

    def __init__(
        self,
        encoders: Encoders,
        fusion: FusionModel,
        *,
        unfrozen: Sequence[Modality],
        precision: TrainingPrecision,
        train_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        self.encoders = encoders
        self.fusion = fusion
        self.unfrozen = tuple(unfrozen)
        self.precision = precision
        self.train_batchnorm = train_batchnorm
        self.encoders_learn = True
        self.let_encoders_learn(True)

    def let_encoders_learn(self, learn: bool) -> None:
        """False trains the heads alone for a while, as if no encoder were unfrozen."""
        self.encoders_learn = learn
        for name, encoder in self.encoders.items():
            used = encoder.layer_depths()
            for path, parameter in self.encoders.by_modality[name].named_parameters():
                parameter.requires_grad_(learn and name in self.unfrozen and path in used)

    def train(self, mode: bool = True) -> "EndToEnd":
        """Frozen encoders stay as they are in inference, and so does BatchNorm unless asked."""
        super().train(mode)
        learn = mode and self.encoders_learn
        for name, encoder in self.encoders.by_modality.items():
            encoder.train(learn and name in self.unfrozen)
            for module in encoder.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(learn and name in self.unfrozen and self.train_batchnorm)
        return self

    def forward(self, batch: RawBatch, present: Tensor | None = None) -> FusionOutput:
        """present: bool [batch, modalities], where training hides some; None takes the batch's."""
        features = {
            name: self._features(name, batch)
            for name in self.fusion.dims.names
            if name in batch.cached or name in batch.inputs
        }
        return self.fusion(features, batch.present if present is None else present)

    def _features(self, modality: Modality, batch: RawBatch) -> Tensor:
        """float32 [batch, layers, dim]; rows without the modality are zero, and masked later."""
        if modality in batch.cached:
            return batch.cached[modality]
        learn = torch.is_grad_enabled() and self.encoders_learn and modality in self.unfrozen
        device = batch.present.device
        half = self.precision == "bfloat16" and self.encoders.autocast[modality]
        with torch.set_grad_enabled(learn), torch.autocast(device.type, torch.bfloat16, half):
            # [rows that have it, layers, dim]
            encoded = self.encoders[modality](batch.inputs[modality]).float()
        features = encoded.new_zeros(len(batch.present), *encoded.shape[1:])
        return features.index_copy(0, batch.places[modality], encoded)

    def checkpoint_gradients(self) -> None:
        """Raises UsageError where an encoder cannot."""
        for _, encoder in self.encoders.items():
            encoder.checkpoint_gradients()


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """Peak learning rates of AdamW.

    text, video, audio: learning rate of that modality's encoder
    heads: learning rate of the fusion model behind the encoders
    layer_decay: factor of the learning rate from each transformer layer to the one below it
        (Howard & Ruder 2018, arXiv 1801.06146)
    """

    text: float = 3e-5
    video: float = 1e-4
    audio: float = 1e-3
    heads: float = 3e-4
    layer_decay: float = 0.9

    def __post_init__(self) -> None:
        for name in ("text", "video", "audio", "heads"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], not {self.layer_decay}")


def parameter_groups(
    model: EndToEnd, rates: LearningRates, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of AdamW: every trainable parameter is in one; matrices have weight decay,
    vectors have none.

    Each group has `lr`, `weight_decay`, `name` and `params`.
    """
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for part, rate, parameter in _trainable(model, rates):
        groups.setdefault((part, rate, parameter.ndim > 1), []).append(parameter)
    _check_partition(model, groups.values())
    return [
        {
            "name": part,
            "params": parameters,
            "lr": rate,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (part, rate, decays), parameters in groups.items()
    ]


def _trainable(model: EndToEnd, rates: LearningRates) -> Iterator[tuple[str, float, nn.Parameter]]:
    """(part, learning rate, parameter)"""
    for name, encoder in model.encoders.items():
        depths = encoder.layer_depths()
        top = max(depths.values(), default=0)
        for path, parameter in model.encoders.by_modality[name].named_parameters():
            if parameter.requires_grad:
                below = top - depths[path]
                rate = getattr(rates, name) * rates.layer_decay**below
                yield f"{name} encoder, {below} below the top", rate, parameter
    for parameter in model.fusion.parameters():
        if parameter.requires_grad:
            yield "heads", rates.heads, parameter


def _check_partition(model: EndToEnd, groups: Any) -> None:
    placed = [id(parameter) for group in groups for parameter in group]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert len(placed) == len(set(placed)), "a parameter is in two groups"
    assert set(placed) == trainable, "a trainable parameter is in no group"


def count_parameters(model: EndToEnd) -> tuple[int, int]:
    """(trainable, frozen)"""
    counts = [0, 0]
    for parameter in model.parameters():
        counts[not parameter.requires_grad] += parameter.numel()
    return counts[0], counts[1]
