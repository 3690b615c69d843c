"""The settings that `meld search` draws, and from where."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fusion.model.dims import FUSION_TYPES, ModelConfig
from fusion.model.joins import JOINS
from fusion.training.fit import FitConfig
from fusion.training.losses import LossConfig
from pipeline.errors import UsageError
from pipeline.schema import Modality

log = logging.getLogger(__name__)

Value = int | float | str | bool | None
Draw = Mapping[str, Value]  # by name: "fit.learning_rate"
USUAL_BATCH = 256  # where the default, None, has many rows to train on
Random = np.random.Generator


def _between(low: float, high: float) -> Callable[[Random], float]:
    return lambda random: round(float(random.uniform(low, high)), 3)


def _times(low: float, high: float) -> Callable[[Random], float]:
    """Each factor alike."""
    return lambda random: float(f"{math.exp(random.uniform(math.log(low), math.log(high))):.3g}")


def _one_of(*values: Value) -> Callable[[Random], Value]:
    return lambda random: values[int(random.integers(len(values)))]


SPACE: dict[str, Callable[[Random], Value]] = {
    "fit.learning_rate": _times(2e-4, 5e-3),
    "fit.batch_size": _one_of(64, 128, 256, 512),
    "fit.epochs": _one_of(10, 20, 30),
    "fit.weight_decay": _times(1e-3, 0.3),
    "fit.modality_dropout": _between(0.0, 0.3),
    "fit.loss.class_weight_power": _between(0.0, 0.8),
    "fit.loss.label_smoothing": _between(0.0, 0.2),
    "model.fusion": _one_of(*FUSION_TYPES),
    "model.context": _one_of("none", "dialogue"),
    "model.future": _one_of(False, True),
    "model.projection": _one_of(64, 128, 256),
    "model.hidden": _one_of(64, 128, 256, 512),
    "model.feature_dropout": _between(0.0, 0.5),
    "model.dropout": _between(0.1, 0.6),
}
_MOST_REFUSED = 1000
_OF_SEVERAL = ("fit.modality_dropout", "model.fusion")  # say nothing with one modality


def open_settings(
    modalities: Sequence[Modality], fixed: Sequence[str], model: ModelConfig
) -> list[str]:
    """The settings that are searched. Raises UsageError where one that is fixed is none of them
    and no setting of `train-fusion`."""
    known = {f"fit.{name}" for name in vars(FitConfig())}
    known |= {f"fit.loss.{name}" for name in vars(LossConfig())}
    known |= {f"model.{name}" for name in vars(model)}
    for name in fixed:
        if name not in known:
            raise UsageError(f"fixed: {name!r} is no setting; there are {', '.join(sorted(SPACE))}")
    left = [name for name in SPACE if name not in fixed]
    if len(modalities) == 1:
        left = [name for name in left if name not in _OF_SEVERAL]
    if "model.fusion" not in left and not JOINS[model.fusion].projects:
        left = [name for name in left if name != "model.projection"]
    if "model.context" not in left and model.context == "none":
        left = [name for name in left if name != "model.future"]
    return left


def draw_settings(
    space: Sequence[str],
    count: int,
    seed: int,
    check: Callable[[Draw], object] = lambda draw: None,
) -> list[Draw]:
    """The first is the defaults. Of a draw without dialogue context there is no future, and no
    projection of one that projects nothing.

    check: raises UsageError where a draw cannot be together with the settings that are fixed;
        another is then drawn. Raises that error for the defaults, and where it refuses 1000 draws
        one after another.
    """
    random = np.random.default_rng(seed)
    draws: list[Draw] = [{name: _default(name) for name in space}]
    check(draws[0])
    refused = 0
    while len(draws) < count:
        drawn = {name: SPACE[name](random) for name in space}
        if drawn.get("model.context") == "none" and "model.future" in drawn:
            drawn["model.future"] = False
        projects = [
            join.projects for name, join in JOINS.items() if name == drawn.get("model.fusion")
        ]
        if "model.projection" in drawn and projects == [False]:
            drawn["model.projection"] = ModelConfig().projection
        try:
            check(drawn)
        except UsageError as error:
            refused += 1
            if refused == _MOST_REFUSED:
                raise
            log.info("a draw that cannot be, another is drawn: %s", error)
            continue
        refused = 0
        draws.append(drawn)
    return draws[:count]


def _default(name: str) -> Value:
    table, _, leaf = name.rpartition(".")
    config: object = {"fit": FitConfig(), "fit.loss": LossConfig(), "model": ModelConfig()}[table]
    value: Value = getattr(config, leaf)
    return value
