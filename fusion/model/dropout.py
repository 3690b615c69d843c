"""Dropout whose masks may be given from outside.

Trainings that run as one batched model must each get the masks that they would get alone. So masks
are drawn before a step, from each training's own generator (`MaskSource`), and set as buffers.
Without given masks it works like PyTorch's dropout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encoders.dropout import random_bytes
from pipeline.system.building import one_builder


class Dropout(nn.Module):
    """mask: float32 [batch, ...] as the input, 0 where dropped, 1 / (1 - chance) elsewhere; None
    draws one."""

    mask: Tensor | None

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance
        self.register_buffer("mask", None, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.chance == 0:
            return values
        if self.mask is None:
            return nn.functional.dropout(values, self.chance)
        return values * self.mask


@dataclass(frozen=True)
class _Site:
    """Where a mask is wanted: its buffer's name, its shape per row, and the share dropped."""

    buffer: str
    shape: tuple[int, ...]
    chance: float

    @property
    def width(self) -> int:
        return torch.Size(self.shape).numel()


class MaskSource:
    """Draws all of a model's masks for one step, for several trainings at once."""

    def __init__(self, sites: Sequence[_Site]) -> None:
        self.sites = tuple(sites)
        self.width = sum(site.width for site in sites)

    @classmethod
    def of(cls, model: nn.Module, run: Callable[[], object]) -> "MaskSource":
        """Finds `model`'s masks and their shapes in one pass of it, which `run` does."""
        sites: list[_Site] = []
        hooks = [
            module.register_forward_pre_hook(_noting(name, sites))
            for name, module in model.named_modules()
            if isinstance(module, Dropout) and module.chance > 0
        ]
        model.train()
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        with one_builder(), torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            run()
        for hook in hooks:
            hook.remove()
        return cls(sites)

    def draw(
        self, num_rows: Sequence[int], batch: int, generators: Sequence[torch.Generator]
    ) -> dict[str, Tensor]:
        """{buffer: float32 [trainings, batch, ...]}; rows beyond a training's own drop all.

        A mask costs a random byte, not a random float, so chances hold to the nearest 1/256.
        Drawing floats takes 15 times as long, more than the model's arithmetic.
        """
        random = torch.zeros(len(generators), batch, self.width, dtype=torch.uint8)
        for own, rows, generator in zip(random, num_rows, generators, strict=True):
            own[:rows] = random_bytes(rows * self.width, generator).view(rows, self.width)
        masks, start = {}, 0
        for site in self.sites:
            part = random[:, :, start : start + site.width]
            dropped = min(round(site.chance * 256), 255)
            mask = (part >= dropped).to(torch.float32).mul_(256 / (256 - dropped))
            masks[site.buffer] = mask.view(*random.shape[:2], *site.shape)
            start += site.width
        return masks


def _noting(name: str, sites: list[_Site]) -> Callable[[Any, tuple[Tensor, ...]], None]:
    def note(module: Any, arguments: tuple[Tensor, ...]) -> None:
        sites.append(_Site(f"{name}.mask", tuple(arguments[0].shape[1:]), module.chance))

    return note
