"""The settings of all trials."""

from dataclasses import dataclass
from pathlib import Path

from bench.service.inputs import Clip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """
    work:    folder for the files of a trial
    clips:   clips of the generated corpus
    options: options of `meld serve` and `meld predict` that choose the model
    seed:    random seed of the times of kills and of the behaviour of clients
    rounds:  number of repetitions of timed parts
    num_clips: number of clips that `throughput` and `same` send
    soak_s:  duration of the trial `soak`
    minutes: duration of the long file
    """

    work: Path
    clips: list[Clip]
    options: tuple[str, ...] = ()
    seed: int = 0
    kills: int = 30
    rounds: int = 3
    num_clips: int = 12
    soak_s: float = 600.0
    minutes: float = 60.0
