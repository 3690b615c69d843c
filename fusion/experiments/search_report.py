"""What a search found, and which settings mattered."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.experiments.search_folder import BEST
from fusion.experiments.search_space import USUAL_BATCH, Draw
from fusion.training.history import EpochResult

FEWEST_DRAWS = 20  # of which it is said what mattered: see `what_mattered`


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One draw: its settings, "fit.epochs": 30, and the best epoch of each seed.

    rung: 0 where it was trained with one seed alone
    """

    number: int
    settings: Draw
    best: tuple[EpochResult, ...]
    rung: int

    @property
    def score(self) -> float:
        """Mean over seeds of the mean of both weighted F1s on dev."""
        return float(np.mean([each.score for each in self.best]))


@dataclass(frozen=True, kw_only=True)
class FailedTrial:
    """A draw whose loss became no number, and with how many seeds; reason: that error's message."""

    number: int
    settings: Draw
    seeds: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Mattered:
    """How much of the first rung's spread one setting explains.

    share: of the variance of scores, between its values or thirds of its range; below 0 it explains
        less than chance would; None where there are too few draws to tell
    points: (value or its number, score) of each draw; names: of its values, where they are no
        numbers
    """

    setting: str
    share: float | None
    points: tuple[tuple[float, float], ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """trials: the best first: those of later rungs before others

    failed: draws that are not among them, as their loss became no number
    mattered: what explains most first, of the draws of the first rung
    reused: number of trainings that an earlier call made
    """

    out: Path
    trials: tuple[Trial, ...]
    mattered: tuple[Mattered, ...]
    reused: int
    rows: int
    fingerprint: str
    failed: tuple[FailedTrial, ...] = ()

    @property
    def num_draws(self) -> int:
        return len(self.trials) + len(self.failed)

    @property
    def compared(self) -> int:
        """Number of draws that have a score with one seed, by which settings are compared."""
        return len(self.mattered[0].points)

    @property
    def by_chance(self) -> float | None:
        """The share below which a setting may have explained nothing; None where there are too few
        draws to tell."""
        if self.compared < FEWEST_DRAWS:
            return None
        return reached_by_chance(self.compared, len(self.mattered))

    @property
    def next_command(self) -> str:
        """Ready for a shell."""
        return shlex.join(["meld", "train-fusion", "--config", str(self.out / BEST)])

    @property
    def best(self) -> Trial:
        return self.trials[0]

    @property
    def defaults(self) -> Trial:
        return next(trial for trial in self.trials if trial.number == 0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "fingerprint": self.fingerprint,
            "trials": [asdict(trial) | {"score": trial.score} for trial in self.trials],
            "failed": [asdict(each) for each in self.failed],
            "mattered": [{"setting": each.setting, "share": each.share} for each in self.mattered],
        }


def what_mattered(trials: Sequence[Trial], space: Sequence[str]) -> list[Mattered]:
    """Adjusted share of variance between groups (epsilon squared), the largest first.

    No shares of fewer than 20 draws: among 14 settings that explain nothing, the largest would
    exceed 40 % in more than one search of twenty (`reached_by_chance`; 32 % for 27 draws).
    """
    scores = np.array([trial.score for trial in trials])
    found = []
    for name in space:
        values = [trial.settings[name] for trial in trials]
        values = [USUAL_BATCH if value is None else value for value in values]
        numeric = all(type(value) in (int, float) for value in values)
        names: tuple[str, ...] = ()
        if numeric:
            numbers = np.array(values, dtype=np.float64)
        else:
            names = tuple(sorted({str(value) for value in values}))
            numbers = np.array([names.index(str(value)) for value in values], dtype=np.float64)
        found.append(
            Mattered(
                setting=name,
                share=_share_explained(numbers, scores, in_thirds=numeric),
                points=tuple(zip(numbers.tolist(), scores.tolist(), strict=True)),
                names=names,
            )
        )
    if len(trials) < FEWEST_DRAWS:
        return [replace(each, share=None) for each in found]
    return sorted(found, key=lambda each: each.share or 0.0, reverse=True)


def reached_by_chance(draws: int, settings: int) -> float:
    """The share that the largest of so many settings exceeds in one search of twenty where none
    explains anything.

    Of three equal groups: 1 - (eta squared) is then of the distribution Beta((draws - 3) / 2, 1),
    whose quantiles are powers; 0.05 is divided among the settings (Bonferroni). draws: above 3
    """
    within = (0.05 / settings) ** (2 / (draws - 3))
    return 1 - within * (draws - 1) / (draws - 3)


def _share_explained(
    values: NDArray[np.float64], scores: NDArray[np.float64], *, in_thirds: bool
) -> float:
    """values, scores: [draws]. 0 where there is nothing to explain."""
    groups: NDArray[Any] = values
    if in_thirds and len(np.unique(values)) > 3:
        groups = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)
    kinds = np.unique(groups)
    total = ((scores - scores.mean()) ** 2).sum()
    rest = len(scores) - len(kinds)
    if total == 0 or rest <= 0 or len(kinds) < 2:
        return 0.0
    within = sum(
        ((scores[groups == kind] - scores[groups == kind].mean()) ** 2).sum() for kind in kinds
    )
    return float(1 - (within / rest) / (total / (len(scores) - 1)))
