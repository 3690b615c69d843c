"""How labels stand in arrays: one class index per row and head, and a mark for "no label"."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import UNLABELLED as UNLABELLED

Head = Literal["emotion", "sentiment"]  # of the model; named as the labels that it learns
HEADS: tuple[Head, ...] = ("emotion", "sentiment")

Labels = NDArray[np.int64]  # [rows], an index in EMOTIONS or SENTIMENTS, UNLABELLED = none
Logits = NDArray[np.float64]  # [rows, classes]
