"""Dropout of encoders on a CPU, from random bytes.

PyTorch draws a random float for every value, one after another, which took more than half of a
fine-tuning step; a byte costs an eighth of that, and chances hold to the nearest 1/256. Attention
that drops weights is computed in its three steps for it (`attention.py`): the library's own draws
floats. On a GPU the library's own are as fast, and stay.
"""

import torch
from torch import Tensor, nn


def random_bytes(count: int, generator: torch.Generator | None = None) -> Tensor:
    """uint8 [count]"""
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    return words.random_(-(2**63), None, generator=generator).view(torch.uint8)[:count]


def drop(values: Tensor, chance: float) -> Tensor:
    """Values on the CPU -> the same shape, dropped with PyTorch's global generator."""
    dropped = min(round(chance * 256), 255)
    if dropped == 0:
        return values
    kept = random_bytes(values.numel()).view(values.shape) >= dropped
    return values * kept.to(values.dtype).mul_(256 / (256 - dropped))


class ByteDropout(nn.Module):
    """p: chance, by the name that `nn.Dropout` has for it; attention asks for it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        return drop(values, self.p) if self.training else values
