"""Predictions of a run from every subset of its modalities, as if the others were absent.

A modality is hidden by the presence mask alone, as in a row whose clip has no sound or no video.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import torch

from fusion.data.split import FusionData
from fusion.inference.checkpoint import Checkpoint
from fusion.inference.predict import predict_rows
from fusion.inference.predictions import Predictions
from pipeline.schema import Modality

SubsetPredictions = Mapping[tuple[Modality, ...], Predictions]  # the smallest first, all last


def predict_subsets(checkpoint: Checkpoint, data: FusionData, *, run: str) -> SubsetPredictions:
    """Predictions from every non-empty subset of the data's modalities: at most 7 passes.

    Raises MismatchError as `predict_rows` does.
    """
    return {
        subset: predict_rows(checkpoint, hide_all_but(subset, data), run=run)
        for subset in choose_subsets(data.modalities)
    }


def choose_subsets(modalities: tuple[Modality, ...]) -> tuple[tuple[Modality, ...], ...]:
    """Non-empty, the smallest first, each in the order of `modalities`."""
    sizes = range(1, len(modalities) + 1)
    return tuple(subset for size in sizes for subset in combinations(modalities, size))


def hide_all_but(visible: tuple[Modality, ...], data: FusionData) -> FusionData:
    """The same rows with every other modality absent; what was absent stays so."""
    columns = torch.tensor([modality in visible for modality in data.modalities])  # [modalities]
    return replace(data, present=data.present & columns)
