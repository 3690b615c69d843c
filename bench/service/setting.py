"""What every trial is given."""

from dataclasses import dataclass
from pathlib import Path

from bench.service.inputs import Clip


@dataclass(frozen=True, kw_only=True)
class Setting:
    """
    work:    folder for whatever a trial writes
    clips:   of the generated corpus
    options: of `meld serve` and `meld predict`: which model
    seed:    of the moments of kills and of what clients do
    rounds:  of what is timed
    num_clips: that are sent one after the other where throughput and sameness are tried
    soak_s:  how long the service is used without an end
    minutes: of the long file
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
