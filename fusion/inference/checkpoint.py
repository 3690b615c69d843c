"""The folder of a run: weights, and what is needed to use and to evaluate them.

model.safetensors   the weights; of all members, where it is an ensemble (`fusion.model.ensemble`)
config.json         dims, labels by name, recipe, settings; written last: a folder without it
                    is an unfinished run (`description.py` reads and writes it)
metrics.json, history.jsonl, evaluation-<split>.json, *.png   scores and plots
test-evaluations.jsonl    the test evaluations; kept when the run is overwritten
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fusion.inference.description import (
    CONFIG,
    WEIGHTS,
    RunDescription,
    not_a_description,
    read_description,
    write_description,
)
from fusion.model.ensemble import Fusion, build_fusion
from pipeline.errors import CacheCorrupt, StorageError
from pipeline.system.building import one_builder
from pipeline.system.files import write_whole


@dataclass(frozen=True, kw_only=True)
class Checkpoint(RunDescription):
    """A run's description with its model."""

    model: Fusion

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dims != self.model.dims:
            raise ValueError(f"the model is {self.model.dims}, its description {self.dims}")


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Raises StorageError."""
    write_weights(run, checkpoint)
    write_description(run, checkpoint)


def write_weights(run: Path, checkpoint: Checkpoint) -> None:
    """Raises StorageError."""
    weights = {name: value.cpu() for name, value in checkpoint.model.state_dict().items()}
    write_whole(run / WEIGHTS, save_tensors(weights))


def read_checkpoint(run: Path) -> Checkpoint:
    """The model is on the CPU, in evaluation mode.

    Raises:
        InputError: no such run, or an unfinished one.
        CacheCorrupt: a damaged one; what is wrong is named.
        MismatchError: made for other labels or by another version of the format.
    """
    description = read_description(run)
    try:
        # Built without storage: a damaged config must not be able to ask for all memory.
        with one_builder(), torch.device("meta"):
            model = build_fusion(description.dims)
    except (TypeError, ValueError, RuntimeError) as error:  # Runtime: dims beyond 2^63
        raise not_a_description(run, error) from error
    weights = _read_weights(run / WEIGHTS)
    _check_weights(run / WEIGHTS, weights, model)
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    model.eval()
    values = {field.name: getattr(description, field.name) for field in fields(description)}
    return Checkpoint(model=model, **values)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path.read_bytes())
    except FileNotFoundError as error:
        raise CacheCorrupt(f"{path} is missing; train again") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except (SafetensorError, ValueError) as error:
        raise CacheCorrupt(f"{path}: not a safetensors file ({error}); train again") from error


def _check_weights(path: Path, weights: Mapping[str, Tensor], model: Fusion) -> None:
    """Shapes, names, types and finite values; safetensors itself checks none of them."""
    wanted = model.state_dict()
    odd = sorted(weights.keys() ^ wanted.keys())
    if odd:
        raise CacheCorrupt(f"{path}: missing or unknown weights: {', '.join(odd)}")
    for name, value in weights.items():
        expected = wanted[name]
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise CacheCorrupt(
                f"{path}: {name} is {value.dtype} {list(value.shape)}, "
                f"{CONFIG} says {expected.dtype} {list(expected.shape)}"
            )
        if not torch.isfinite(value).all():
            raise CacheCorrupt(f"{path}: {name} holds values that are not finite; train again")
