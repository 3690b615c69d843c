"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) of a few tensors, by PyTorch's own kernel.

Its class `torch.optim.AdamW` gives the same bits, but imports PyTorch's compiler when it is made,
which takes as long as five epochs of a fusion model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # the usual ones


class AdamW:
    """groups: (tensors, weight decay of these); gradients are those in their `grad`"""

    def __init__(self, groups: Sequence[tuple[Sequence[Tensor], float]]) -> None:
        self._groups = [
            (
                list(tensors),
                decay,
                [torch.zeros_like(each) for each in tensors],
                [torch.zeros_like(each) for each in tensors],
                [torch.zeros((), device=each.device) for each in tensors],
            )
            for tensors, decay in groups
        ]

    def zero_grad(self) -> None:
        for tensors, *_ in self._groups:
            for each in tensors:
                each.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """A tensor without a gradient stays as it is."""
        for tensors, decay, means, squares, steps in self._groups:
            learning = [k for k, each in enumerate(tensors) if each.grad is not None]
            if not learning:
                continue
            adamw(
                [tensors[k] for k in learning],
                [grad for k in learning if (grad := tensors[k].grad) is not None],
                [means[k] for k in learning],
                [squares[k] for k in learning],
                [],
                [steps[k] for k in learning],
                fused=True,
                amsgrad=False,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                lr=learning_rate,
                weight_decay=decay,
                eps=_EPSILON,
                maximize=False,
            )
