"""An exponential moving average of a model's weights: it forgets the noise of single steps."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class MovingAverage:
    """average = decay * average + (1 - decay) * weights, after every step.

    Early on the decay is smaller, so that the start is soon forgotten: (1 + steps) / (10 + steps).

    decay: 0 keeps no average
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        # Those that may learn at some time: encoders may be frozen for the first epochs. The
        # running statistics of BatchNorm belong to the weights, and are averaged with them.
        statistics = [each for each in model.buffers() if each.is_floating_point()]
        self._weights = [*model.parameters(), *statistics] if decay else []
        self._average = [weight.detach().clone() for weight in self._weights]
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        if self._weights:
            self._steps += 1
            decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
            weights = [weight.detach() for weight in self._weights]
            torch._foreach_lerp_(self._average, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights inside of the block, and its own again after it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "average": self._average}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._steps = state["steps"]
        saved: list[Tensor] = state["average"]
        for mine, there in zip(self._average, saved, strict=True):
            mine.copy_(there)

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights, self._average, strict=True):
            own = weight.detach().clone()
            weight.copy_(average)
            average.copy_(own)
