"""Soft targets: what a trained run, the teacher, says of the rows that another is trained on.

Its calibrated probabilities, softened by a temperature, stand beside the labels in the loss
(Hinton et al. 2015, arXiv 1503.02531): a model learns of each row how much it is like other classes
too. An ensemble as teacher makes one model of many.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion.evaluation.evaluate import EvaluateConfig, name_of, open_split
from fusion.inference.predict import predict_rows
from fusion.inference.temperature import Temperature
from fusion.labels import HEADS, Head, Logits
from pipeline.errors import InputError, MismatchError
from pipeline.schema import ClipKey, Split

log = logging.getLogger(__name__)

SoftTargets = dict[Head, Tensor]  # float32 [rows, classes], each row adds up to 1


def soft_targets(teacher: Path, keys: Sequence[ClipKey], temperature: float) -> SoftTargets:
    """Of the rows `keys` of train. The features of a fine-tuned teacher are made by its own
    encoders and kept in its folder, as `meld evaluate` does.

    temperature: divides the calibrated log-probabilities; above 1 they are softer

    Raises InputError where the teacher's features lack a row, MismatchError where one of its heads
    never learned, else as `open_split`.
    """
    found: dict[ClipKey, dict[Head, Logits]] = {}
    splits: list[Split] = ["train"]
    while splits:
        split = splits.pop()
        checkpoint, data = open_split(EvaluateConfig(run=teacher, split=split))
        if checkpoint.untrained:
            raise MismatchError(
                f"--distil {teacher}: its {checkpoint.untrained[0]} head never learned; name a run "
                "that was trained on both"
            )
        if split == "train" and checkpoint.set_aside is not None:
            splits.append("dev")  # rows of train that it was not trained on
        predictions = predict_rows(checkpoint, data, run=name_of(teacher))
        decoding = checkpoint.decoding
        calibrated: dict[Head, Logits] = {
            "emotion": (decoding.emotion if decoding else Temperature()).log_probabilities(
                predictions.emotion_logits
            ),
            "sentiment": (decoding.sentiment if decoding else Temperature()).log_probabilities(
                predictions.sentiment_logits
            ),
        }
        for row, key in enumerate(data.keys):
            found[key] = {head: calibrated[head][row] for head in HEADS}
    missing = [key for key in keys if key not in found]
    if missing:
        raise InputError(
            f"--distil {teacher}: its features have no {missing[0]} ({len(missing)} such rows); "
            "name a run that was trained on the same rows"
        )
    log.info("%s says how likely each class is for %d rows of train", teacher, len(keys))
    soften = Temperature(value=float(temperature))
    return {
        head: torch.from_numpy(
            np.exp(soften.log_probabilities(np.stack([found[key][head] for key in keys])))
        ).float()
        for head in HEADS
    }
