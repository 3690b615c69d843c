"""Structured pruning: whole units of a network are removed, so what is left is smaller and faster.

    network ── prunable ──> PrunableLayer, one for each set of units that can go
                              │ measure_importance     what the loss would change without a unit
                              └ keep_units             cuts the rest out of the weights

A unit is what some modules produce and others consume: an attention head, a neuron of a
feed-forward layer, a channel between two convolutions. What leaves the network keeps its shape.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

# Kernels work on so many channels at a time: r3d_18 with 30 % less in widths of 8 is no faster than
# whole, in widths of 16 it is (LOG.md).
MULTIPLE = 16
_UNITS_HINT = "pruned_units of config.json"


@dataclass(frozen=True, kw_only=True)
class PrunableLayer:
    """Units that can be removed together with nothing else.

    name:      of the layer, as messages and files give it
    producers: modules whose outputs are the units: Linear, convolutions, their norms
    consumers: modules that read them, and nothing else reads them
    unit:      outputs of the producers that are one unit: the width of an attention head, else 1
    """

    name: str
    producers: tuple[nn.Module, ...]
    consumers: tuple[nn.Module, ...]
    unit: int = 1

    @property
    def num_units(self) -> int:
        return len(_parameter(self.producers[0], "weight")) // self.unit

    def units_kept(self, share: float) -> int:
        """How many stay where `share` of them is to go: at least one, and of single neurons and
        channels a multiple that kernels compute well."""
        wanted = (1 - share) * self.num_units
        if self.unit > 1 or self.num_units <= MULTIPLE:
            return max(1, round(wanted))
        return min(self.num_units, max(MULTIPLE, MULTIPLE * round(wanted / MULTIPLE)))


@runtime_checkable
class HasPrunable(Protocol):
    """A network of which units can be removed; not every network has some.

    `prune_to` keeps the numbers of units that attributes or configs of the network hold in step
    with the weights, and is what rebuilds a pruned network before its weights are read.
    """

    def prunable(self) -> list[PrunableLayer]:
        """In a fixed order, with their present numbers of units."""

    def prune_to(self, kept: Sequence[Sequence[int]]) -> None:
        """Keeps these units of each layer of `prunable`, and removes the others."""


class Importance:
    """Adds up what each unit means for a loss, over the backward passes of a `watch` block.

    The importance of a unit is the absolute value of its output times its gradient, summed over
    the positions of a row and then over rows: to first order, what the loss of a row changes where
    the unit is silent (Molchanov et al. 2019, arXiv 1906.10771; of attention heads Michel et al.
    2019, arXiv 1905.10650).
    """

    def __init__(self, layers: Sequence[PrunableLayer]) -> None:
        self.layers = layers
        self.sums = [torch.zeros(layer.num_units, dtype=torch.float64) for layer in layers]

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Within the block every backward pass through the layers counts."""
        hooks = [
            layer.consumers[0].register_forward_pre_hook(self._watch_input(number))
            for number, layer in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _watch_input(self, number: int) -> Any:
        def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            (units,) = inputs
            if units.requires_grad:
                values = units.detach()
                units.register_hook(lambda gradient: self._add(number, module, values * gradient))

        return look

    def _add(self, number: int, module: nn.Module, change: Tensor) -> None:
        """change: [rows, ..., units] of a Linear, [rows, units, ...] of a convolution."""
        at = -1 if isinstance(module, nn.Linear) else 1
        layer = self.layers[number]
        by_row = change.movedim(at, -1).reshape(len(change), -1, change.shape[at]).sum(1)
        by_unit = by_row.reshape(len(change), -1, layer.unit).sum(2)
        self.sums[number] += by_unit.abs().sum(0).double()

    def best(self, share: float) -> list[list[int]]:
        """The units of each layer that stay where `share` of them goes, in their order."""
        kept = []
        for layer, sums in zip(self.layers, self.sums, strict=True):
            order = sums.argsort(descending=True, stable=True)
            kept.append(sorted(order[: layer.units_kept(share)].tolist()))
        return kept


def prune_layers(layers: Sequence[PrunableLayer], kept: Sequence[Sequence[int]]) -> None:
    """`keep_units` of each layer."""
    for layer, units in zip(layers, kept, strict=True):
        keep_units(layer, units)


def units_of(layers: Sequence[PrunableLayer]) -> dict[str, int]:
    """Number of units of each layer by name: what is kept in a file, see `check_units`."""
    return {layer.name: layer.num_units for layer in layers}


def check_units(layers: Sequence[PrunableLayer], units: object) -> list[int]:
    """The number of units of each of these layers that `units_of` wrote.

    Raises ValueError where `units` names other layers, or more units than the layers have.
    """
    names = [layer.name for layer in layers]
    if not isinstance(units, dict) or set(units) != set(names):
        raise ValueError(f"{_UNITS_HINT}: it names other layers than the network has")
    for layer in layers:
        number = units[layer.name]
        if type(number) is not int or not 1 <= number <= layer.num_units:
            raise ValueError(
                f"{_UNITS_HINT}: {layer.name} has {str(number)[:40]} units of {layer.num_units}"
            )
    return [units[name] for name in names]


def keep_units(layer: PrunableLayer, kept: Sequence[int]) -> None:
    """Cuts all other units out of the weights, in place."""
    at = torch.tensor(
        [unit * layer.unit + place for unit in kept for place in range(layer.unit)],
        dtype=torch.int64,
    )
    for producer in layer.producers:
        for name in ("weight", "bias", "running_mean", "running_var"):
            _cut(producer, name, at, axis=0)
        for name in ("out_features", "out_channels", "num_features"):
            if hasattr(producer, name):
                setattr(producer, name, len(at))
        if isinstance(producer, nn.LayerNorm):
            producer.normalized_shape = (len(at),)
    for consumer in layer.consumers:
        _cut(consumer, "weight", at, axis=1)
        for name in ("in_features", "in_channels"):
            if hasattr(consumer, name):
                setattr(consumer, name, len(at))


def _cut(module: nn.Module, name: str, at: Tensor, *, axis: int) -> None:
    value = getattr(module, name, None)
    if value is None:
        return
    left = value.detach().index_select(axis, at.to(value.device)).contiguous()
    if isinstance(value, nn.Parameter):
        setattr(module, name, nn.Parameter(left, requires_grad=value.requires_grad))
    else:
        setattr(module, name, left)


def _parameter(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value
