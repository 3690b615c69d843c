"""The predictions of a run for every row of a split, as a table for further analysis."""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from fusion.inference.checkpoint import Checkpoint
from fusion.inference.decoding import decode
from fusion.inference.predictions import Predictions
from fusion.inference.temperature import Temperature
from fusion.labels import Labels
from pipeline.errors import InputError, StorageError, UsageError
from pipeline.schema import EMOTIONS, SENTIMENTS
from pipeline.system.files import write_whole

SUFFIXES = (".csv", ".parquet")


def check_predictions_file(path: Path) -> None:
    """Checks the path before minutes of measuring. Raises UsageError or StorageError where `path`
    is not a table that can be written, or holds another kind of file."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--predictions {path}: a file that ends in {' or '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():
        raise StorageError(f"cannot write {path}: not a regular file; --predictions takes one")
    if path.is_file() and not _is_ours(path):
        raise UsageError(
            f"{path} is another kind of table and is left as it is; name another --predictions"
        )


def write_predictions(path: Path, checkpoint: Checkpoint, predictions: Predictions) -> None:
    """One row a row of the split, in its order; an absent label is an empty cell.

    Probabilities are calibrated by the run's temperatures, and the predicted labels are each head's
    most probable class, which the scores count; `joint_*` are the labels of joint decoding, if the
    run has it. An untrained head has no such columns.

    Raises StorageError.
    """
    table = to_table(checkpoint, predictions)
    written = io.BytesIO()
    if path.suffix.lower() == ".csv":
        table.to_csv(written, index=False, lineterminator="\n")
    else:
        table.to_parquet(written, index=False)
    write_whole(path, written.getvalue())


def to_table(checkpoint: Checkpoint, predictions: Predictions) -> pd.DataFrame:
    decoding = checkpoint.decoding
    columns: dict[str, object] = {
        "split": [key.split for key in predictions.keys],
        "dialogue_id": [key.dialogue_id for key in predictions.keys],
        "utterance_id": [key.utterance_id for key in predictions.keys],
        "speaker": list(predictions.speaker),
        "text": list(predictions.text),
    }
    heads = (
        ("emotion", EMOTIONS, predictions.emotion_logits, predictions.emotion),
        ("sentiment", SENTIMENTS, predictions.sentiment_logits, predictions.sentiment),
    )
    for head, names, logits, labels in heads:
        columns[f"true_{head}"] = _names(names, labels)
        if head in predictions.untrained:  # what it says is noise
            continue
        temperature = Temperature() if decoding is None else getattr(decoding, head)
        columns[f"predicted_{head}"] = _names(names, logits.argmax(axis=1))
        probabilities = np.exp(temperature.log_probabilities(logits))
        columns |= {f"{head}_{name}": probabilities[:, k] for k, name in enumerate(names)}
    if decoding is not None and not predictions.untrained:
        joint = decode(decoding, predictions.emotion_logits, predictions.sentiment_logits)
        columns["joint_emotion"] = _names(EMOTIONS, joint.emotion)
        columns["joint_sentiment"] = _names(SENTIMENTS, joint.sentiment)
    for column, modality in enumerate(predictions.modalities):
        columns[f"{modality}_present"] = predictions.present[:, column]
    return pd.DataFrame(columns)


def _names(names: tuple[str, ...], labels: Labels) -> list[str | None]:
    return [names[label] if label >= 0 else None for label in labels]


def _is_ours(path: Path) -> bool:
    """Whether it begins as what this file writes: only that is replaced."""
    with path.open("rb") as file:
        head = file.read(len(_CSV_BEGINS))
    if not head:
        return True
    if path.suffix.lower() == ".csv":
        return head == _CSV_BEGINS
    return head.startswith(b"PAR1") and set(_columns_of(path)) >= _PARQUET_NAMES


def _columns_of(path: Path) -> list[str]:
    from pipeline.exchange.arrow import column_names

    try:
        return column_names(path)
    except InputError:
        return []


_CSV_BEGINS = b"split,dialogue_id,utterance_id,speaker,text,true_emotion"
_PARQUET_NAMES = frozenset(["dialogue_id", "utterance_id", "true_emotion", "true_sentiment"])
