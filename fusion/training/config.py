"""What to train, on which caches, and which settings would have no effect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fusion.data.set_aside import check_share
from fusion.inference.checkpoint import read_checkpoint
from fusion.model.dims import MOST_MEMBERS, FusionType, InputKind, ModelConfig
from fusion.model.joins import JOINS
from fusion.training.fit import FitConfig
from fusion.training.losses import check_teacher
from fusion.training.trackers import TrackerName
from fusion.training.warm_start import inherit
from pipeline.errors import UsageError
from pipeline.schema import MODALITIES, Modality
from pipeline.settings import build_config


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What to train, on which caches.

    features: folder of the feature caches
    modalities: modalities that the model gets; None takes all that the caches have
    input: raw features, or their 128-d embeddings
    start: trained run to continue from (warm start), on features made with the same recipe; None
        starts from random weights
    out: folder of the run; None makes a new one under runs/
    overwrite: replace the run in `out`
    seed: random seed of the training
    ensemble: number of models that are trained side by side, of this seed and those after it; the
        run is one model, which averages their probabilities
    distil: a trained run, the teacher: the model learns from its calibrated probabilities beside
        the labels (`fit.loss.teacher_weight`); a run on other features will do
    dev_share: share of train's dialogues that is held out as dev: it chooses the epoch and is not
        trained on; a dev cache is then not read. None takes the dev cache or, where there is none,
        0.1. Which dialogues these are depends on train's labels, not on `seed`
    refit: train again on all of train, the dialogues that were held out too, for all epochs; what
        was measured on dev stays that of the training without them
    device: "auto" uses a GPU if there is one
    tracker: what the training can be followed in: tensorboard, whose event files are written where
        it is installed; or wandb, which writes an offline run of Weights & Biases beside them

    Only `from_mapping` takes settings over from `start`; the constructor takes this class's
    defaults.
    """

    features: Path = Path("features")
    modalities: tuple[Modality, ...] | None = None
    input: InputKind = "raw"
    start: Path | None = None
    out: Path | None = None
    overwrite: bool = False
    seed: int = 0
    ensemble: int = 1
    distil: Path | None = None
    dev_share: float | None = None
    refit: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tracker: TrackerName = "tensorboard"
    model: ModelConfig = field(default_factory=ModelConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        if self.dev_share is not None:
            check_share(self.dev_share)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), not {self.seed}")
        check_ensemble(self.ensemble, self.seed)
        check_teacher(self.fit.loss, self.distil, "fit.loss")
        check_overwrite(self.overwrite, self.out)
        if self.refit and self.start is not None:
            raise UsageError(
                f"--refit: the run of --start ({self.start}) is trained on as it is, and a refit "
                "starts anew; leave one of the two out"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The config of a settings file with the tables `[fit]`, `[fit.loss]` and `[model]`. What
        the file does not set is taken from the start, if there is one. Raises UsageError, and what
        reading the start raises."""
        start = build_config(cls, {"start": values.get("start")}).start
        if start is not None:
            values = inherit(values, read_checkpoint(start).dims)
        config = build_config(cls, values)
        if start is None:
            check_projection((config.model.fusion,), config.model)
        if config.modalities is not None:
            check_modality_dropout(config.modalities, config.fit.modality_dropout)
        return config


def check_modalities(modalities: tuple[Modality, ...] | None) -> None:
    """Raises ValueError unless None, or each at most once and at least one."""
    if modalities is None:
        return
    if not modalities or len(set(modalities)) != len(modalities):
        raise ValueError(f"modalities: each once and at least one: {modalities}")
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown:
        raise ValueError(f"modalities are {', '.join(MODALITIES)}, not {unknown[0]!r}")


def check_ensemble(members: int, seed: int) -> None:
    """Raises ValueError."""
    if not 1 <= members <= MOST_MEMBERS:
        raise ValueError(f"ensemble: 1 to {MOST_MEMBERS} models, not {members}")
    if seed + members > 2**63:
        raise ValueError(f"seed {seed}: {members} seeds from it on must be below 2^63")


def check_overwrite(overwrite: bool, out: Path | None) -> None:
    """Raises ValueError where a run is to be replaced and none is named."""
    if overwrite and out is None:
        raise ValueError(
            "--overwrite replaces the run in --out, and without --out the run gets a new folder; "
            "name --out, or leave --overwrite out"
        )


def check_projection(fusions: Sequence[FusionType], model: ModelConfig) -> None:
    """Raises UsageError where `model.projection` is set and none of `fusions` projects."""
    is_set = model.projection != ModelConfig().projection
    if is_set and not any(JOINS[fusion].projects for fusion in fusions):
        raise UsageError(
            f"model.projection = {model.projection}: {' and '.join(fusions)} fusion projects "
            "nothing; leave it out, or name another --fusion"
        )


def check_layers(features: Mapping[Modality, Tensor], model: ModelConfig) -> None:
    """Raises UsageError where `model.layers` is set and nothing has several layers."""
    is_set = model.layers != ModelConfig().layers
    if is_set and all(values.shape[1] == 1 for values in features.values()):
        raise UsageError(
            f"model.layers = {model.layers}: no modality of these features has several layers; "
            "leave it out"
        )


def check_modality_dropout(
    modalities: Sequence[Modality], chance: float, key: str = "fit.modality_dropout"
) -> None:
    """Raises UsageError where modality dropout is set and there is one modality only."""
    if len(modalities) == 1 and chance not in (0, FitConfig().modality_dropout):
        raise UsageError(
            f"{key} = {chance}: {modalities[0]} is the only modality, and a row never loses all; "
            "leave it out"
        )
