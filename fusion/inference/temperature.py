"""Temperature scaling: each head's logits are divided by one number, which `calibration` fits on
dev."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion.labels import Logits


@dataclass(frozen=True, kw_only=True)
class Temperature:
    """The number that one head's logits are divided by.

    rows: number of labelled rows it was fitted on; 0 where a fit was not possible and the value is
    1
    """

    value: float = 1.0
    rows: int = 0

    def __post_init__(self) -> None:
        if type(self.value) is not float or not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"a temperature must be a finite float above 0, not {self.value!r}")
        if type(self.rows) is not int or self.rows < 0:
            raise ValueError(f"a temperature's rows must be a count, not {self.rows!r}")

    @property
    def fitted(self) -> bool:
        return self.rows > 0

    def log_probabilities(self, logits: Logits) -> Logits:
        """[rows, classes] -> the same, every row's probabilities adding up to 1."""
        scaled = np.asarray(logits, np.float64) / self.value
        shifted = scaled - scaled.max(axis=1, keepdims=True)  # so that no exponential overflows
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Temperature":
        """Raises KeyError, TypeError or ValueError where `values` is no such thing."""
        return cls(value=values["value"], rows=values["rows"])
