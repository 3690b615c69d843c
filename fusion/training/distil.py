"""Soft targets: what a trained run, the teacher, says of the rows that another is trained on.

Its calibrated probabilities, softened by a temperature, stand beside the labels in the loss
(Hinton et al. 2015, arXiv 1503.02531): a model learns of each row how much it is like other classes
too. An ensemble as teacher makes one model of many.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fusion.data.split import FusionData
from fusion.evaluation.evaluate import EvaluateConfig, name_of, open_split
from fusion.inference.checkpoint import Checkpoint, read_checkpoint
from fusion.inference.predict import predict_rows
from fusion.inference.temperature import Temperature
from fusion.labels import HEADS, Head, Logits
from pipeline.cache.format import FeatureCache, read_cache, require_cache
from pipeline.errors import InputError, MismatchError
from pipeline.schema import ClipKey, Split

log = logging.getLogger(__name__)

SoftTargets = dict[Head, Tensor]  # float32 [rows, classes], each row adds up to 1


# Who says what in each row: another corpus has dialogues that are numbered from 0 too.
Said = Mapping[ClipKey, tuple[str, str]]


def check_teacher_of(teacher: Path, rows: Said) -> None:
    """Refuses what `soft_targets` would refuse for these rows of train, as far as can be told
    without making features.

    Raises as `soft_targets`.
    """
    checkpoint = read_checkpoint(teacher)
    _check_heads(teacher, checkpoint)
    if checkpoint.finetuned:  # its features are made when they are needed
        return
    path = require_cache(checkpoint.require_features(), "train")
    cache = read_cache(path, modalities=(), want=())
    _check_rows(teacher, rows, _said_in(cache))


def soft_targets(teacher: Path, train: FusionData, temperature: float) -> SoftTargets:
    """Of the rows of `train`. The features of a fine-tuned teacher are made by its own encoders
    and kept in its folder, as `meld evaluate` does.

    temperature: divides the calibrated log-probabilities; above 1 they are softer

    Raises InputError where the teacher's features lack a row, MismatchError where another speaker
    or text stands there or one of its heads never learned, else as `open_split`.
    """
    found: dict[ClipKey, dict[Head, Logits]] = {}
    there: dict[ClipKey, tuple[str, str]] = {}
    splits: list[Split] = ["train"]
    while splits:
        split = splits.pop()
        checkpoint, data = open_split(EvaluateConfig(run=teacher, split=split))
        _check_heads(teacher, checkpoint)
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
        there |= _said_in(data)
    _check_rows(teacher, _said_in(train), there)
    log.info("%s says how likely each class is for %d rows of train", teacher, len(train))
    soften = Temperature(value=float(temperature))
    return {
        head: torch.from_numpy(
            np.exp(soften.log_probabilities(np.stack([found[key][head] for key in train.keys])))
        ).float()
        for head in HEADS
    }


def _said_in(rows: FusionData | FeatureCache) -> Said:
    said = zip(rows.keys, rows.speaker, rows.text, strict=True)
    return {key: (speaker, text) for key, speaker, text in said}


def _check_heads(teacher: Path, checkpoint: Checkpoint) -> None:
    if checkpoint.untrained:
        raise MismatchError(
            f"--distil {teacher}: its {checkpoint.untrained[0]} head never learned; name a run "
            "that was trained on both"
        )


def _check_rows(teacher: Path, rows: Said, there: Said) -> None:
    """there: in what the teacher reads"""
    missing = [key for key in rows if key not in there]
    if missing:
        raise InputError(
            f"--distil {teacher}: its features have no {missing[0]} ({len(missing)} such rows); "
            "name a run that was trained on the same rows"
        )
    others = [key for key, said in rows.items() if there[key] != said]
    if others:
        one, other = (": ".join(each[others[0]]) for each in (there, rows))
        raise MismatchError(
            f"--distil {teacher}: its {others[0]} is {one!r}, and here it is {other!r} "
            f"({len(others)} such rows); name a run that was trained on the same corpus"
        )
