"""`meld compare`: compares two runs on the same rows.

The runs may differ in modalities, encoders and recipes; the rows must be the same and are matched
by key. The difference is measured on the same samples of dialogues for both (paired bootstrap):
rows that are hard for one run are mostly hard for the other, so this finds differences that two
separate intervals would hide.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.data.set_aside import SetAside
from fusion.evaluation.bootstrap import SAMPLES, Interval, difference_interval
from fusion.evaluation.evaluate import EvaluateConfig, OnProgress, name_of, open_split
from fusion.evaluation.scores import weighted_f1
from fusion.evaluation.test_evaluations import record_evaluation
from fusion.inference.checkpoint import Checkpoint
from fusion.inference.predict import predict_rows
from fusion.inference.predictions import Predictions
from fusion.labels import HEADS, UNLABELLED, Head, Labels
from pipeline.errors import MismatchError
from pipeline.recipe import TestClips
from pipeline.schema import EMOTIONS, SENTIMENTS, SPLITS, Split
from pipeline.system.json_values import to_values


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """features_a, features_b: None as in `EvaluateConfig`; samples, seed: of the bootstrap."""

    run_a: Path
    run_b: Path
    split: Split = "test"
    features_a: Path | None = None
    features_b: Path | None = None
    samples: int = SAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")
        # A limit of 2.5 % on each side needs some samples beyond it; memory bounds the rest.
        if not 100 <= self.samples <= 100_000:
            raise ValueError(f"samples must be in 100 to 100000, not {self.samples}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, but is {self.seed}")


@dataclass(frozen=True, kw_only=True)
class HeadComparison:
    """Weighted F1 of both on the labelled rows (None where there are none), and B minus A.

    difference: None where fewer than two dialogues have labels
    won:        rows that B has right and A wrong; lost: the reverse
    not_measured: why there is no score, empty where there is one; `rows` is 0 then
    """

    rows: int
    a: float | None
    b: float | None
    difference: Interval | None
    won: int
    lost: int
    both_right: int
    both_wrong: int
    not_measured: str = ""

    @property
    def verdict(self) -> str:
        if self.not_measured:
            return f"not compared: {self.not_measured}"
        if self.difference is None:
            return "not decided: fewer than two dialogues have labels"
        if self.difference.holds_zero:
            return "no difference found: the interval holds 0"
        return f"{'B' if self.difference.low > 0 else 'A'} is better: the interval leaves out 0"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """test_evaluations_a, test_evaluations_b: this time included; 0 for other splits.

    test_clips_a, test_clips_b: which cuts of MELD's test clips each reads; None where it reads none
    set_aside_a, set_aside_b: the dialogues of train that are its dev; None where dev had a cache
    """

    run_a: str
    run_b: str
    split: Split
    rows: int
    dialogues: int
    samples: int
    seed: int
    emotion: HeadComparison
    sentiment: HeadComparison
    test_evaluations_a: int = 0
    test_evaluations_b: int = 0
    test_clips_a: TestClips | None = None
    test_clips_b: TestClips | None = None
    set_aside_a: SetAside | None = None
    set_aside_b: SetAside | None = None

    def to_dict(self) -> dict[str, Any]:
        values = to_values(self)
        for name in ("emotion", "sentiment"):
            values[name]["verdict"] = getattr(self, name).verdict
        return values


def compare(config: CompareConfig, on_progress: OnProgress = lambda *_: None) -> Comparison:
    """Measures both runs and compares them; for test, both are recorded.

    Raises MismatchError where the rows are not the same, and what `evaluate` raises.
    """
    sides = (config.run_a, config.features_a), (config.run_b, config.features_b)
    (a, of_a), (b, of_b) = (
        _predict(EvaluateConfig(run=run, split=config.split, features=features), on_progress)
        for run, features in sides
    )
    b = match_rows(a, b)  # before anything is written down: two corpora are no look
    evaluations_a = evaluations_b = 0
    if config.split == "test":
        evaluations_a = evaluations_b = record_evaluation(config.run_a, "compare")
        if config.run_b.resolve() != config.run_a.resolve():
            evaluations_b = record_evaluation(config.run_b, "compare")
    compared = compare_predictions(a, b, samples=config.samples, seed=config.seed)
    return dataclasses.replace(
        compared,
        test_evaluations_a=evaluations_a,
        test_evaluations_b=evaluations_b,
        test_clips_a=of_a.recipe.test_clips,
        test_clips_b=of_b.recipe.test_clips,
        set_aside_a=of_a.set_aside,
        set_aside_b=of_b.set_aside,
    )


def _predict(config: EvaluateConfig, on_progress: OnProgress) -> tuple[Predictions, Checkpoint]:
    checkpoint, data = open_split(config, on_progress)
    return predict_rows(checkpoint, data, run=name_of(config.run)), checkpoint


def match_rows(a: Predictions, b: Predictions) -> Predictions:
    """b with its rows in a's order.

    Raises MismatchError where one has rows that the other lacks, or one row more than once, or
    where text or labels of a row differ: then they are of two corpora that only count alike.
    """
    for side, keys, run in (("A", a.keys, a.run), ("B", b.keys, b.run)):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise MismatchError(
                f"{side} ({run}) has {twice[0]} more than once ({len(twice)} such utterances): "
                "measure both on caches with one row per utterance"
            )
    place = {key: row for row, key in enumerate(b.keys)}
    odd = sorted(set(a.keys) ^ set(b.keys))
    if odd:
        lacking = f"A ({a.run})" if odd[0] in place else f"B ({b.run})"
        raise MismatchError(
            f"A ({a.run}) was measured on {len(a)} rows and B ({b.run}) on {len(b)}; {len(odd)} "
            f"are not in both, such as {odd[0]}, which {lacking} lacks: measure both on caches of "
            "the same annotations"
        )
    order = np.array([place[key] for key in a.keys], dtype=np.int64)
    b = _reorder(b, order)
    differs = np.array(
        [one != other for one, other in zip(a.text, b.text, strict=True)], dtype=np.bool_
    )
    for head in HEADS:
        if head not in a.untrained and head not in b.untrained:  # else labels are taken away
            differs |= getattr(a, head) != getattr(b, head)
    if differs.any():
        row = int(np.flatnonzero(differs)[0])
        raise MismatchError(
            f"A ({a.run}) and B ({b.run}) were measured on other annotations: "
            f"{int(differs.sum())} rows differ in text or labels, such as {a.keys[row]}: measure "
            "both on caches of the same annotations"
        )
    return b


def _reorder(predictions: Predictions, order: NDArray[np.int64]) -> Predictions:
    return dataclasses.replace(
        predictions,
        keys=tuple(predictions.keys[row] for row in order),
        text=tuple(predictions.text[row] for row in order),
        speaker=tuple(predictions.speaker[row] for row in order),
        present=predictions.present[order],
        emotion=predictions.emotion[order],
        sentiment=predictions.sentiment[order],
        emotion_logits=predictions.emotion_logits[order],
        sentiment_logits=predictions.sentiment_logits[order],
    )


def compare_predictions(
    a: Predictions, b: Predictions, *, samples: int = SAMPLES, seed: int = 0
) -> Comparison:
    """Rows matched already; the same seed gives the same numbers. A head that one of the two never
    learned is not compared."""
    emotion = compare_head(
        b.emotion if "emotion" in b.untrained else a.emotion,
        a.predicted_emotion,
        b.predicted_emotion,
        a.dialogue,
        len(EMOTIONS),
        samples=samples,
        seed=seed,
    )
    sentiment = compare_head(
        b.sentiment if "sentiment" in b.untrained else a.sentiment,
        a.predicted_sentiment,
        b.predicted_sentiment,
        a.dialogue,
        len(SENTIMENTS),
        samples=samples,
        seed=seed,
    )
    return Comparison(
        run_a=a.run,
        run_b=b.run,
        split=a.split,
        rows=len(a),
        dialogues=len(set(a.dialogue.tolist())),
        samples=samples,
        seed=seed,
        emotion=dataclasses.replace(emotion, not_measured=_why_not("emotion", emotion, a, b)),
        sentiment=dataclasses.replace(
            sentiment, not_measured=_why_not("sentiment", sentiment, a, b)
        ),
    )


def _why_not(head: Head, compared: HeadComparison, a: Predictions, b: Predictions) -> str:
    sides = [side for side, each in (("A", a), ("B", b)) if head in each.untrained]
    if sides:
        return f"the head of {' and '.join(sides)} is untrained"
    return "" if compared.rows else f"no row of {a.split} has a label of {head}"


def compare_head(
    true: Labels,
    a: Labels,
    b: Labels,
    dialogue: Labels,
    num_classes: int,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
) -> HeadComparison:
    """true, a, b (what each predicts), dialogue: [rows]."""
    labelled = true != UNLABELLED
    a_right, b_right = (a == true)[labelled], (b == true)[labelled]
    return HeadComparison(
        rows=int(labelled.sum()),
        a=weighted_f1(true, a),
        b=weighted_f1(true, b),
        difference=difference_interval(
            true, a, b, dialogue, num_classes, samples=samples, seed=seed
        ),
        won=int((b_right & ~a_right).sum()),
        lost=int((a_right & ~b_right).sum()),
        both_right=int((a_right & b_right).sum()),
        both_wrong=int((~a_right & ~b_right).sum()),
    )
