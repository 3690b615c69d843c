"""The subsets of a run's modalities: a model predicts from each as if the others were absent.

A modality is hidden by the presence mask alone, as in a row whose clip has no sound or no video.
"""

from collections.abc import Mapping
from itertools import combinations

from fusion.inference.predictions import Predictions
from pipeline.schema import Modality

SubsetPredictions = Mapping[tuple[Modality, ...], Predictions]  # the smallest first, all last


def choose_subsets(modalities: tuple[Modality, ...]) -> tuple[tuple[Modality, ...], ...]:
    """Non-empty, the smallest first, each in the order of `modalities`."""
    sizes = range(1, len(modalities) + 1)
    return tuple(subset for size in sizes for subset in combinations(modalities, size))
