"""The result of an evaluation, as values: the content of `evaluation-<split>.json`."""

from dataclasses import dataclass
from typing import Any

from fusion.data.set_aside import SetAside
from fusion.evaluation.bootstrap import Interval
from fusion.evaluation.calibration import HeadCalibration
from fusion.evaluation.error_analysis import ErrorAnalysis
from fusion.evaluation.leakage import Leakage, NotChecked
from fusion.evaluation.scores import Scores, describe_macro, selection_score
from fusion.labels import Head
from pipeline.recipe import TestClips
from pipeline.schema import Modality, Split
from pipeline.system.json_values import to_values


@dataclass(frozen=True, kw_only=True)
class HeadReport:
    """One head's scores over its labelled rows.

    majority: the same scores for always predicting `majority_label`, the most frequent in train;
        None where train has no such label
    intervals: of the model's scores, over dialogues; None where there are fewer than two
    not_measured: why there is no score, empty where there is one; `rows` is 0 then
    """

    labels: tuple[str, ...]
    rows: int
    model: Scores
    majority_label: str | None
    majority: Scores
    weighted_f1_interval: Interval | None = None
    accuracy_interval: Interval | None = None
    not_measured: str = ""


@dataclass(frozen=True, kw_only=True)
class ModalityPresence:
    """Number of rows that have a modality; `random_weights`: its encoder was never trained;
    `foreign`: the tool that made its features, "" where one of our encoders did."""

    modality: Modality
    rows: int
    random_weights: bool
    foreign: str = ""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of each head; None for one without labelled rows."""

    emotion: HeadCalibration | None
    sentiment: HeadCalibration | None


@dataclass(frozen=True, kw_only=True)
class JointScores:
    """Joint decoding compared with each head's most probable class; both heads are trained.

    contradictions: share of rows whose two most probable classes never occur together in train;
                    joint decoding leaves none
    rows_changed:   rows in which at least one label became another
    *_f1, *_f1_joint: weighted F1 of the first choices and of the joint ones; None without labels
    """

    rows: int
    sentiment_weight: float
    contradictions: float
    rows_changed: int
    emotion_rows_changed: int
    sentiment_rows_changed: int
    emotion_f1: float | None
    emotion_f1_joint: float | None
    sentiment_f1: float | None
    sentiment_f1_joint: float | None


@dataclass(frozen=True, kw_only=True)
class SubsetScores:
    """Scores of the run with `modalities` alone.

    rows:      all rows of the split, so that subsets are comparable
    rows_seen: those of them in which one of `modalities` is present
    *_f1, *_ece: weighted F1 and expected calibration error through the run's temperature over the
               labelled rows; None without labels
    """

    modalities: tuple[Modality, ...]
    rows: int
    rows_seen: int
    emotion_f1: float | None
    sentiment_f1: float | None
    emotion_ece: float | None
    sentiment_ece: float | None


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """One run on one split. `fingerprint` is that of the features' recipe.

    test_clips: which cuts of MELD's test clips the features are of; None where they are of no clip
    calibration, joint: None for a run without a `Decoding`; joint also where a head never learned
    subsets:            every choice of the run's modalities; empty where it was not measured
    test_evaluations: of this run, this time included; 0 for other splits
    leakage:    overlap with train; None for train itself
    errors:     error analysis. The reports of a training have neither of the two
    set_aside:  the dialogues of train that are the run's dev; None where dev had a cache
    features, data: the folder that was named to measure on; None where it is the run's own
    fitted_here: whether the temperatures and joint decoding were fitted on these rows; None where
                that is not known, as the run was passed on without its own rows
    """

    run: str
    split: Split
    fingerprint: str
    rows: int
    presence: tuple[ModalityPresence, ...]
    emotion: HeadReport
    sentiment: HeadReport
    test_clips: TestClips | None = None
    calibration: Calibration | None = None
    joint: JointScores | None = None
    subsets: tuple[SubsetScores, ...] = ()
    test_evaluations: int = 0
    leakage: Leakage | NotChecked | None = None
    errors: ErrorAnalysis | None = None
    set_aside: SetAside | None = None
    features: str | None = None
    data: str | None = None
    fitted_here: bool | None = False

    @property
    def random_modalities(self) -> tuple[Modality, ...]:
        return tuple(each.modality for each in self.presence if each.random_weights)

    @property
    def heads(self) -> tuple[tuple[Head, HeadReport], ...]:
        return (("emotion", self.emotion), ("sentiment", self.sentiment))

    @property
    def score(self) -> float | None:
        """The selection score on dev: `selection_score` of the two weighted F1s; None without
        any."""
        f1s = [head.model.weighted_f1 for _, head in self.heads]
        measured = [f1 for f1 in f1s if f1 is not None]
        return selection_score(measured) if measured else None

    def to_dict(self) -> dict[str, Any]:
        return to_values(self) | {"random_modalities": list(self.random_modalities)}


def describe_presence(report: EvalReport) -> str:
    """ "text 100%, video 98% (video: RANDOM WEIGHTS), audio 97% (audio: FOREIGN, opensmile); test
    clips fixed" """
    shares = [
        f"{each.modality} {each.rows / max(report.rows, 1):.0%}"
        + (f" ({each.modality}: RANDOM WEIGHTS)" if each.random_weights else "")
        + (f" ({each.modality}: FOREIGN, {each.foreign})" if each.foreign else "")
        for each in report.presence
    ]
    return ", ".join(shares) + describe_test_clips(report.test_clips)


def describe_measured(report: EvalReport) -> tuple[str, ...]:
    """Remarks on the scores: which rows dev consists of where it had no cache, heads without a
    score, and the classes that macro F1 is a mean over."""
    told = [] if report.set_aside is None else [str(report.set_aside)]
    for name, head in report.heads:
        if head.not_measured:
            told.append(f"{name}: not measured: {head.not_measured}")
        counted = (head.model.macro_classes, head.majority.macro_classes)
        told.append(describe_macro(name, counted, len(head.labels)))
    return tuple(filter(None, told))


def describe_fitted(report: EvalReport) -> str:
    """What to think of the figures of calibration and joint decoding; empty where nothing."""
    fitted = "the rows that temperatures and joint decoding were fitted on"
    if report.fitted_here is None:
        return f"if these are {fitted}, these figures are optimistic"
    return f"these are {fitted}, so these figures are optimistic" if report.fitted_here else ""


def describe_test_clips(test_clips: TestClips | None) -> str:
    """ "; test clips fixed", or nothing where no clip was read."""
    return "" if test_clips is None else f"; test clips {test_clips}"
