"""The measurements of a trial, and their goals."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """is_met: None if the measurement has no goal"""

    name: str
    value: float
    unit: str = ""
    goal: str = ""
    is_met: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


def told(name: str, value: float, unit: str = "") -> Figure:
    return Figure(name=name, value=value, unit=unit)


def at_most(name: str, value: float, most: float, unit: str = "") -> Figure:
    return Figure(name=name, value=value, unit=unit, goal=f"<= {most:g}", is_met=value <= most)


def at_least(name: str, value: float, least: float, unit: str = "") -> Figure:
    return Figure(name=name, value=value, unit=unit, goal=f">= {least:g}", is_met=value >= least)


def exactly(name: str, value: float, wanted: float, unit: str = "") -> Figure:
    return Figure(name=name, value=value, unit=unit, goal=f"{wanted:g}", is_met=value == wanted)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
