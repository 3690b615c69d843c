"""Warm start: training that continues from a trained run, such as a fine-tuned one on the features
of its own encoders. Before step 1 the model is the run's, and it is kept unless an epoch is better
on dev."""

from collections.abc import Mapping
from typing import Any

from fusion.model.dims import FusionDims
from fusion.model.fusion import FusionModel
from pipeline.errors import UsageError
from pipeline.settings import describe_config, merge_settings

# Chosen on MELD's dev split (LOG.md): at the usual 1e-3 the best epochs stay below the start.
LEARNING_RATE = 3e-4
# What decides the weights' shapes or what they mean.
_OF_THE_WEIGHTS = ("fusion", "layers", "projection", "hidden")


def inherit(values: Mapping[str, Any], start: FusionDims) -> dict[str, Any]:
    """The settings of a warm start: those of the start, overridden by `values` as in a settings
    file. Raises UsageError where the start is an ensemble."""
    refuse_ensemble(start, "--start")
    taken_over = {
        "modalities": list(start.names),
        "input": start.input,
        "model": describe_config(start.model),
        "fit": {"learning_rate": LEARNING_RATE},
    }
    return merge_settings(taken_over, values)


def refuse_ensemble(there: FusionDims, option: str) -> None:
    """Raises UsageError where a training would start from several models."""
    if there.members > 1:
        raise UsageError(
            f"{option}: the run is an ensemble of {there.members} models, and a training starts "
            "from one; name a run of a single model"
        )


def check_shape(there: FusionDims, wanted: FusionDims) -> None:
    """Raises UsageError where weights of `there` are none of `wanted`; the differing settings are
    named."""
    refuse_ensemble(there, "--start")
    names = (
        _OF_THE_WEIGHTS
        if there.model.context == "none"
        else (*_OF_THE_WEIGHTS, "context", "future")
    )
    pairs = [(name, getattr(there.model, name), getattr(wanted.model, name)) for name in names]
    pairs += [
        ("modalities", ",".join(there.names), ",".join(wanted.names)),
        ("input", there.input, wanted.input),
    ]
    differing = [f"{name}: {one} != {other}" for name, one, other in pairs if one != other]
    if differing:
        raise UsageError(
            f"--start: the run is of another shape ({'; '.join(differing)}); leave these out, or "
            "train without --start"
        )


def take_weights(model: FusionModel, start: FusionModel) -> None:
    """Gives `model` everything that `start`, of its shape and on its features, has, its
    standardisation too. A dialogue context that `start` lacks begins as the identity."""
    model.load_state_dict(start.state_dict(), strict=False)
