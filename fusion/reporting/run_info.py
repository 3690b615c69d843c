"""A run's settings and results, without measuring it (`meld info RUN`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusion.data.set_aside import SetAside
from fusion.evaluation.test_evaluations import count_evaluations
from fusion.finetuning.job import FinetuneConfig
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.description import CONFIG
from fusion.reporting.reproduce import Remake, remake
from fusion.training.config import TrainConfig
from fusion.training.history import EpochResult, read_history
from fusion.training.run_folder import HISTORY
from pipeline.recipe import FeatureRecipe
from pipeline.schema import SPLITS, Modality
from pipeline.settings import describe_config, flatten
from pipeline.system.json_values import to_values


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A trained run, as its folder describes it.

    members:   number of models whose probabilities are averaged; 1 is a single model
    settings:  those that are not the defaults, by key: "fit.epochs"
    history:   empty where the run was passed on without it
    finetuned: modalities whose encoders the run owns
    evaluated: splits that an evaluation was written for
    versions:  of the libraries that trained it
    remake:    the commands that make the run again
    """

    run: Path
    modalities: tuple[Modality, ...]
    members: int
    recipe: FeatureRecipe
    features: Path | None
    settings: Mapping[str, Any]
    set_aside: SetAside | None
    finetuned: tuple[Modality, ...]
    history: tuple[EpochResult, ...]
    evaluated: tuple[str, ...]
    test_evaluations: int
    versions: Mapping[str, str]
    remake: Remake

    @property
    def best(self) -> EpochResult | None:
        return max(self.history, key=lambda result: result.score, default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "modalities": list(self.modalities),
            "members": self.members,
            "fingerprint": self.recipe.fingerprint,
            "recipe": self.recipe.to_dict(),
            "features": None if self.features is None else str(self.features),
            "settings": dict(self.settings),
            "set_aside": None if self.set_aside is None else self.set_aside.to_dict(),
            "finetuned": list(self.finetuned),
            "best": to_values(self.best),
            "epochs": to_values(self.history),
            "evaluated": list(self.evaluated),
            "test_evaluations": self.test_evaluations,
            "versions": dict(self.versions),
            "commands": list(self.remake.commands),
            "settings_files": dict(self.remake.files),
            "commands_note": self.remake.note,
        }


def describe_run(run: Path) -> RunInfo:
    """Reads the run's folder alone.

    Raises InputError, CacheCorrupt, MismatchError or StorageError where it is not a readable run.
    """
    checkpoint = read_checkpoint(run)
    default = flatten(describe_config(FinetuneConfig() if checkpoint.finetuned else TrainConfig()))
    settings = {
        name: value
        for name, value in flatten(checkpoint.settings).items()
        if name not in default or value != default[name]
    }
    return RunInfo(
        run=run,
        modalities=checkpoint.dims.names,
        members=checkpoint.dims.members,
        recipe=checkpoint.recipe,
        features=checkpoint.features,
        settings=settings,
        set_aside=checkpoint.set_aside,
        finetuned=checkpoint.finetuned,
        history=history_of(run),
        evaluated=tuple(name for name in SPLITS if (run / f"evaluation-{name}.json").is_file()),
        test_evaluations=count_evaluations(run),
        versions=versions_of(run),
        remake=remake(checkpoint, run, data=checkpoint.data),
    )


def history_of(run: Path) -> tuple[EpochResult, ...]:
    """Empty where the run was passed on without its history. Raises as `read_history`."""
    path = run / HISTORY
    return tuple(read_history(path)) if path.is_file() else ()


def versions_of(run: Path) -> dict[str, str]:
    """The versions of the libraries that trained a run, whose config was read already."""
    versions = json.loads((run / CONFIG).read_bytes()).get("versions", {})
    if not isinstance(versions, dict):
        return {}
    return {str(name): str(number) for name, number in versions.items()}
