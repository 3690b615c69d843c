"""Text overlap between train and a measured split, and the scores without the overlapping rows.

Two texts are the same if they are equal after casefolding and with runs of white space taken as
one space; punctuation counts, and a row without text is never "seen". In spoken dialogue short
texts ("What?") recur without having been copied. A whole dialogue whose texts occur in the same
order within one dialogue of train is a copy, and is named.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fusion.evaluation.slices import Slice, measure_slice
from fusion.inference.checkpoint import Checkpoint, read_checkpoint
from fusion.inference.predictions import Predictions
from pipeline.cache.format import read_cache, require_cache
from pipeline.errors import MeldError, MismatchError
from pipeline.schema import EMOTIONS, ClipKey

_MIN_UTTERANCES = 2  # fewer are no dialogue: they are among the seen texts already


@dataclass(frozen=True, kw_only=True)
class CopiedDialogue:
    """A dialogue of the measured split, and those of train that hold it: "test dia12"."""

    name: str
    utterances: int
    train: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} = {', '.join(self.train)}"


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """seen: the rows whose text occurs in train; unseen: the others; copied: whole dialogues."""

    everything: Slice
    unseen: Slice
    seen: Slice
    copied: tuple[CopiedDialogue, ...]


@dataclass(frozen=True, kw_only=True)
class NotChecked:
    """not_checked: why."""

    not_checked: str


def check_leakage(checkpoint: Checkpoint, predictions: Predictions) -> Leakage | NotChecked:
    """Compares a split with the train cache of the folder that the run was trained from.

    That cache may be missing or have changed since; a run can be measured all the same, so this is
    reported and not raised.
    """
    try:
        keys, texts = read_train_texts(checkpoint)
    except (MeldError, OSError) as error:
        return NotChecked(not_checked=str(error))
    return find_leakage(predictions, keys, texts)


def read_train_texts(checkpoint: Checkpoint) -> tuple[list[ClipKey], list[str]]:
    """Key and text of each row that the run was trained on.

    Raises InputError, StorageError or MismatchError where they are no longer available.
    """
    path = require_cache(_trained_from(checkpoint), "train")
    cache = read_cache(path, modalities=(), want=())
    aside = () if checkpoint.set_aside is None else checkpoint.set_aside.dialogues
    rows = np.flatnonzero(~np.isin(cache.dialogue_id, aside)).tolist()
    emotions = [cache.emotion[row] for row in rows]
    counts = tuple(map(emotions.count, EMOTIONS))
    # A fine-tuned run keeps the label counts of the run it started from, maybe of other rows, and
    # so does one that goes on where train has no emotion.
    if not checkpoint.finetuned and any(counts) and counts != checkpoint.emotion_counts:
        raise MismatchError(f"{path} no longer holds the rows that the run was trained on")
    keys = [
        ClipKey("train", int(cache.dialogue_id[row]), int(cache.utterance_id[row])) for row in rows
    ]
    return keys, [cache.text[row] for row in rows]


def _trained_from(checkpoint: Checkpoint) -> Path:
    """A fine-tuned run's own `features` are what its encoders made since; it learned from those
    that its settings name, else from those of the run it started from."""
    if not checkpoint.finetuned:
        return checkpoint.require_features()
    features, start = (checkpoint.settings.get(name) for name in ("features", "run"))
    if features is None and start is None:
        return checkpoint.require_features()
    if features is not None:
        return Path(features)
    return read_checkpoint(Path(str(start))).require_features()


def find_leakage(
    predictions: Predictions, train_keys: Sequence[ClipKey], train_texts: Sequence[str]
) -> Leakage:
    """train_keys, train_texts: one of each train row, in any order."""
    known = {same_text(text) for text in train_texts} - {""}
    seen = np.array([same_text(text) in known for text in predictions.text], dtype=np.bool_)
    everything = np.ones(len(predictions), np.bool_)
    return Leakage(
        everything=measure_slice("all rows", predictions, everything),
        unseen=measure_slice("text not in train", predictions, ~seen),
        seen=measure_slice("text in train", predictions, seen),
        copied=tuple(
            find_copied(
                _dialogues(predictions.keys, predictions.text), _dialogues(train_keys, train_texts)
            )
        ),
    )


def same_text(text: str) -> str:
    """Two texts count as the same where this is equal."""
    return " ".join(text.casefold().split())


def _dialogues(keys: Sequence[ClipKey], texts: Sequence[str]) -> dict[str, list[str]]:
    """ "train dia12" -> its texts, in the order in which they were said."""
    dialogues: dict[str, list[str]] = defaultdict(list)
    for key, text in sorted(zip(keys, texts, strict=True), key=lambda row: row[0]):
        dialogues[f"{key.split} dia{key.dialogue_id}"].append(same_text(text))
    return dialogues


def find_copied(
    measured: Mapping[str, Sequence[str]], train: Mapping[str, Sequence[str]]
) -> Iterator[CopiedDialogue]:
    """Dialogues of two utterances or more that occur whole and in order within one of train."""
    places: dict[str, list[tuple[str, int]]] = defaultdict(list)  # a text -> where train says it
    for name, texts in train.items():
        for position, text in enumerate(texts):
            places[text].append((name, position))
    for name, texts in measured.items():
        if sum(map(bool, texts)) < _MIN_UTTERANCES:
            continue
        # Sought by its rarest text: many dialogues begin alike ("", "Hi").
        rarest = min(range(len(texts)), key=lambda position: len(places.get(texts[position], ())))
        starts = ((other, at - rarest) for other, at in places.get(texts[rarest], ()))
        copies = dict.fromkeys(
            other
            for other, start in starts
            if start >= 0 and list(train[other][start : start + len(texts)]) == list(texts)
        )
        if copies:
            yield CopiedDialogue(name=name, utterances=len(texts), train=tuple(copies))
