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
    media:   a real film beside the generated ones
    """

    work: Path
    clips: list[Clip]
    options: tuple[str, ...] = ()
    media: Path | None = None
    seed: int = 0
    kills: int = 30
    rounds: int = 3
    soak_s: float = 600.0
    minutes: float = 60.0
