"""How labels stand in arrays: one class index per row and head, and a mark for "no label"."""

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -100  # a row whose corpus gives no label; PyTorch's own mark for it

Labels = NDArray[np.int64]  # [rows], an index in EMOTIONS or SENTIMENTS, UNLABELLED = none
Logits = NDArray[np.float64]  # [rows, classes]
