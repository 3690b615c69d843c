"""Scores of an evaluation as text of a model card.

All numbers come from `evaluation-<split>.json`, so that a test can reproduce a card.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

HARD_BELOW = 0.3  # F1; a class below that is named as one that the model cannot tell
NOT_MEASURED = "not measured"

Values = Mapping[str, Any]  # an `evaluation-<split>.json`
Say = Callable[[Values, str], str]  # of a report's head


def scores_table(rows: Mapping[str, tuple[Say, Values]]) -> str:
    """rows: what is told -> how it is said, and the report that it is read from"""
    lines = [
        f"| {name} | {say(report, 'emotion')} | {say(report, 'sentiment')} |"
        for name, (say, report) in rows.items()
    ]
    return "\n".join(["| | emotion | sentiment |", "| --- | --- | --- |", *lines])


def weighted_f1(report: Values, head: str) -> str:
    return _with_interval(report[head], "weighted_f1")


def accuracy(report: Values, head: str) -> str:
    return _with_interval(report[head], "accuracy")


def macro_f1(report: Values, head: str) -> str:
    return _number(report[head]["model"]["macro_f1"])


def majority_f1(report: Values, head: str) -> str:
    return _number(report[head]["majority"]["weighted_f1"])


def calibration_error(report: Values, head: str) -> str:
    calibration = (report["calibration"] or {}).get(head)
    return NOT_MEASURED if calibration is None else _number(calibration["after"]["ece"])


def classes_table(report: Values, head: str) -> str:
    rows = [
        f"| {each['label']} | {_number(each['f1'])} | {_number(each['precision'])} "
        f"| {_number(each['recall'])} | {each['support']:,} |"
        for each in report[head]["model"]["classes"]
    ]
    top = f"| {head}, {report['split']} | F1 | precision | recall | utterances |"
    return "\n".join([top, "| --- | --- | --- | --- | --- |", *rows])


def hard_classes(report: Values) -> str:
    """The emotions that it cannot tell; the sentiments are never that few."""
    classes: Sequence[Values] = report["emotion"]["model"]["classes"]
    names = [
        each["label"] for each in classes if (each["f1"] or 0.0) < HARD_BELOW and each["support"]
    ]
    if not names:
        return f"Every emotion has an F1 of {HARD_BELOW} or more; the rarest are the worst."
    return (
        f"**It cannot tell {' and '.join(names)}**: F1 below {HARD_BELOW} on {report['split']}. "
        "Most of them it misses or takes\n  for something else."
    )


def leakage_text(report: Values) -> str:
    """What of the split could be learned by heart."""
    leakage, split = report["leakage"], report["split"]
    if leakage is None or "unseen" not in leakage:
        return f"Whether utterances of {split} stand in train as well was not checked."
    unseen, seen = leakage["unseen"], leakage["seen"]
    told = f"{seen['rows']:,} of the {split} utterances stand word for word in train as well"
    if unseen["rows"] == 0:
        return f"All {told}."
    if seen["rows"] == 0:
        return f"No {split} utterance stands word for word in train."
    emotion = _number(unseen["emotion_weighted_f1"])
    sentiment = _number(unseen["sentiment_weighted_f1"])
    return f'{told} ("What?").\nWithout them weighted F1 is {emotion} and {sentiment}.'


def _with_interval(report: Values, name: str) -> str:
    value, interval = report["model"][name], report[f"{name}_interval"]
    if value is None or interval is None:
        return _number(value)
    return f"{value:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _number(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3f}"
