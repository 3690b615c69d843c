"""Error analysis of a run: scores by class, speaker, length, emotion shift, position and presence.

Slices of one table do not overlap. Most are small: the score of 30 rows varies by ten points by
chance, so look at the number of rows first.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusion.evaluation.scores import score
from fusion.evaluation.slices import Slice, measure_slice
from fusion.inference.predictions import Predictions
from fusion.labels import UNLABELLED
from pipeline.schema import EMOTIONS, ClipKey, Split

SPEAKERS = 12
MISTAKES = 20
_LENGTHS = ((0, 0), (1, 2), (3, 5), (6, 10), (11, 20), (21, None))  # words
_POSITIONS = ((1, 1), (2, 3), (4, 7), (8, None))  # in the dialogue, counted from 1


@dataclass(frozen=True, kw_only=True)
class SliceTable:
    """note: explanation of the table; empty where the title suffices."""

    title: str
    slices: tuple[Slice, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A wrong emotion. probability: what the model gave the emotion that it predicted."""

    key: ClipKey
    speaker: str
    text: str
    true: str
    predicted: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class ErrorAnalysis:
    """mistakes: the most confident first."""

    run: str
    split: Split
    by_emotion: SliceTable
    by_speaker: SliceTable
    by_length: SliceTable
    by_shift: SliceTable
    by_position: SliceTable
    by_presence: SliceTable
    mistakes: tuple[Mistake, ...]

    @property
    def tables(self) -> tuple[SliceTable, ...]:
        """All of them, in the order in which they are shown."""
        return (
            self.by_emotion,
            self.by_speaker,
            self.by_length,
            self.by_shift,
            self.by_position,
            self.by_presence,
        )


def analyse_errors(predictions: Predictions) -> ErrorAnalysis:
    return ErrorAnalysis(
        run=predictions.run,
        split=predictions.split,
        by_emotion=slice_by_emotion(predictions),
        by_speaker=slice_by_speaker(predictions),
        by_length=slice_by_length(predictions),
        by_shift=slice_by_shift(predictions),
        by_position=slice_by_position(predictions),
        by_presence=slice_by_presence(predictions),
        mistakes=find_confident_mistakes(predictions),
    )


def slice_by_emotion(predictions: Predictions) -> SliceTable:
    """Rows of one true emotion. Within such a slice precision is always 1 and F1 too high, so the
    emotion F1 shown is that of the class over all rows, and a sentiment F1 is left out."""
    true, predicted = predictions.emotion, predictions.predicted_emotion
    labelled = true != UNLABELLED
    classes = score(EMOTIONS, true[labelled], predicted[labelled]).classes
    measured = _measure_each(
        predictions, [(name, true == index) for index, name in enumerate(EMOTIONS)]
    )
    f1 = {each.label: each.f1 for each in classes}
    return SliceTable(
        title="by true emotion",
        slices=tuple(
            replace(each, emotion_weighted_f1=f1[each.name], sentiment_weighted_f1=None)
            for each in measured
        ),
        note="emotion F1: of the class, over all rows; accuracy: its recall",
    )


def slice_by_speaker(predictions: Predictions) -> SliceTable:
    """The most frequent speakers, and all others as one slice; ties go to the one who speaks
    first."""
    speakers = np.array([name or "(nobody named)" for name in predictions.speaker], dtype=object)
    counts = Counter(speakers.tolist())
    common = [name for name, _ in counts.most_common(SPEAKERS)]
    chosen = [(name, speakers == name) for name in common]
    rest = len(counts) - len(common)
    if rest:
        chosen.append((f"{rest} others", ~np.isin(speakers, common)))
    return SliceTable(title="by speaker", slices=_measure_each(predictions, chosen))


def slice_by_length(predictions: Predictions) -> SliceTable:
    """By number of words, separated by white space."""
    words = np.array([len(text.split()) for text in predictions.text], dtype=np.int64)
    return SliceTable(
        title="by length in words", slices=_measure_each(predictions, _bins(words, _LENGTHS))
    )


def slice_by_shift(predictions: Predictions) -> SliceTable:
    """Compared with the previous utterance of the dialogue that has an emotion, of any speaker;
    rows without an emotion are in no slice."""
    shift = np.full(len(predictions), "", dtype=object)
    for rows in _rows_of_dialogues(predictions):
        before = UNLABELLED
        for row in rows:
            emotion = int(predictions.emotion[row])
            if emotion == UNLABELLED:
                continue
            if before == UNLABELLED:
                shift[row] = "first of its dialogue"
            else:
                shift[row] = "same as before" if emotion == before else "another than before"
            before = emotion
    names = ("same as before", "another than before", "first of its dialogue")
    return SliceTable(
        title="by emotion shift",
        slices=_measure_each(predictions, [(name, shift == name) for name in names]),
    )


def slice_by_position(predictions: Predictions) -> SliceTable:
    """Among the rows of its dialogue in this split, counted from 1."""
    position = np.zeros(len(predictions), np.int64)
    for rows in _rows_of_dialogues(predictions):
        position[rows] = np.arange(1, len(rows) + 1)
    return SliceTable(
        title="by position in the dialogue",
        slices=_measure_each(predictions, _bins(position, _POSITIONS)),
    )


def slice_by_presence(predictions: Predictions) -> SliceTable:
    """Which of the run's modalities each row has; the commonest combination first."""
    combinations = np.array(
        [
            "+".join(name for name, there in zip(predictions.modalities, row, strict=True) if there)
            or "nothing"
            for row in predictions.present
        ],
        dtype=object,
    )
    common = [name for name, _ in Counter(combinations.tolist()).most_common()]
    return SliceTable(
        title="by what is present",
        slices=_measure_each(predictions, [(name, combinations == name) for name in common]),
    )


def find_confident_mistakes(
    predictions: Predictions, *, count: int = MISTAKES
) -> tuple[Mistake, ...]:
    """The wrong emotions that the model gave the highest probability (softmax of its logits)."""
    logits = predictions.emotion_logits
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)  # [rows, 7]
    true, predicted = predictions.emotion, predictions.predicted_emotion
    given = shares[np.arange(len(predictions)), predicted]
    wrong = np.flatnonzero((true != predicted) & (true != UNLABELLED))
    first = wrong[np.argsort(-given[wrong], kind="stable")][:count]
    return tuple(
        Mistake(
            key=predictions.keys[row],
            speaker=predictions.speaker[row],
            text=predictions.text[row],
            true=EMOTIONS[true[row]],
            predicted=EMOTIONS[predicted[row]],
            probability=float(given[row]),
        )
        for row in first
    )


def _rows_of_dialogues(predictions: Predictions) -> list[list[int]]:
    """Of each dialogue its rows, in the order in which they were said."""
    dialogues: dict[int, list[int]] = {}
    order = sorted(range(len(predictions)), key=lambda row: predictions.keys[row])
    for row in order:
        dialogues.setdefault(predictions.keys[row].dialogue_id, []).append(row)
    return list(dialogues.values())


def _bins(
    values: NDArray[np.int64], bounds: Sequence[tuple[int, int | None]]
) -> list[tuple[str, NDArray[np.bool_]]]:
    """Both bounds belong to a bin; None is no upper bound."""
    bins = []
    for low, high in bounds:
        if high is None:
            bins.append((f"{low} and more", values >= low))
        else:
            name = str(low) if low == high else f"{low} to {high}"
            bins.append((name, (values >= low) & (values <= high)))
    return bins


def _measure_each(
    predictions: Predictions, chosen: Sequence[tuple[str, NDArray[np.bool_]]]
) -> tuple[Slice, ...]:
    """Slices without a row are left out."""
    return tuple(measure_slice(name, predictions, rows) for name, rows in chosen if rows.any())
