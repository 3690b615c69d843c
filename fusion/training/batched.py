"""Models of one shape as one batched model: every weight has a leading axis [trainings].

One call of each small kernel then computes all trainings (`torch.func.vmap`). Each training gives
the same result as alone, up to the order of summation in matrix products.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from fusion.data.batches import Rows
from fusion.labels import Head
from fusion.model.dialogue import Turns
from fusion.model.fusion import FusionModel, FusionOutput
from fusion.training.losses import MultiTaskLoss
from pipeline.schema import Modality

Weights = dict[str, Tensor]  # by parameter name


class Together:
    """The given models' weights, [trainings, ...] each. The models themselves stay as they are."""

    def __init__(self, models: Sequence[FusionModel]) -> None:
        stacked, _ = stack_module_state([_Fuse(model) for model in models])
        self.weights: Weights = {
            name: value.detach().clone().requires_grad_() for name, value in stacked.items()
        }
        # Lends the computation its shape; its own weights are never used.
        self._shape = _Fuse(copy.deepcopy(models[0]))

    def losses(
        self, batch: Rows, masks: Mapping[str, Tensor], losses: Sequence[MultiTaskLoss]
    ) -> Tensor:
        """batch, masks: with the leading axis [trainings] -> float32 [trainings]"""
        config = losses[0].config
        class_weights = (
            torch.stack([loss.emotion_weights for loss in losses]),
            torch.stack([loss.sentiment_weights for loss in losses]),
        )
        self._shape.train()

        def one(
            state: Weights,
            inputs: tuple[dict[Modality, Tensor], Tensor, Turns],
            labels: tuple[Tensor, Tensor],
            class_weights: tuple[Tensor, Tensor],
            soft: dict[Head, Tensor],
        ) -> Tensor:
            output = functional_call(self._shape, state, inputs)
            loss = MultiTaskLoss(
                config=config,
                emotion_weights=class_weights[0],
                sentiment_weights=class_weights[1],
            )
            return loss(output, *labels, soft=soft)

        state = self.weights | {f"model.{name}": mask for name, mask in masks.items()}
        inputs = (batch.features, batch.present, batch.turns)
        labels = (batch.emotion, batch.sentiment)
        return vmap(one)(state, inputs, labels, class_weights, batch.soft)

    @torch.no_grad()
    def clip_gradients(self, longest: float) -> None:
        """Scales each training's own gradient to a norm of at most `longest`."""
        gradients = [value.grad for value in self.weights.values() if value.grad is not None]
        squares = [gradient.flatten(1).square().sum(dim=1) for gradient in gradients]
        lengths = torch.stack(squares).sum(dim=0).sqrt()  # [trainings]
        factors = (longest / (lengths + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))

    def weights_of(self, number: int) -> Weights:
        """A copy of one training's weights, by the names that `FusionModel` has for them."""
        return {
            name.removeprefix("model."): value[number].detach().clone()
            for name, value in self.weights.items()
        }


class _Fuse(nn.Module):
    """`functional_call` calls a module; this one passes the call on to `fuse`."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, features: Mapping[Modality, Tensor], present: Tensor, turns: Turns
    ) -> FusionOutput:
        return self.model.fuse(features, present, turns)
