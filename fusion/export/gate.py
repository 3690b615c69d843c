"""The gate of an export: what a smaller or faster variant of a run loses against the run itself.

Both predict the same utterances of dev. The difference of their weighted F1 is bootstrapped over
dialogues, paired; the lower bound of its 95 % interval must not be below the loss that is allowed.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion.data.load import cached_split
from fusion.evaluation.bootstrap import Interval, difference_interval, interval
from fusion.inference.predictor import Predictor
from fusion.inference.runtime import FeatureRows, HeadLogits
from fusion.labels import HEADS, UNLABELLED, Head, Labels
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.corpus.texts import with_surroundings
from pipeline.decode.clip import decode_clip
from pipeline.errors import InputError, MismatchError
from pipeline.schema import (
    EMOTIONS,
    MEDIA,
    SENTIMENTS,
    ClipFeatures,
    DecodedClip,
    Split,
    Utterance,
)
from pipeline.system.json_values import to_values
from pipeline.system.resources import num_cores

BATCH = 16
TIMED_CLIPS, WARM_UP = 40, 3
MOST_TIMED_S = 20.0  # for each number of threads
CLASSES: dict[Head, Sequence[str]] = {"emotion": EMOTIONS, "sentiment": SENTIMENTS}

Load = Callable[[int], Predictor]  # with so many threads


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """name: "PyTorch", "ONNX", "ONNX int8"; load: gives it with a number of threads

    num_bytes: of the weights of its encoders and of its fusion model
    """

    name: str
    load: Load
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class HeadCost:
    """f1: weighted F1 of the variant; change: of it against the original, paired. Both are None
    where fewer than two dialogues have labels. agreement: share of rows with the original's most
    probable class; largest_logit_error: over all rows and classes
    """

    f1: Interval | None
    change: Interval | None
    agreement: float
    largest_logit_error: float


@dataclass(frozen=True, kw_only=True)
class VariantCost:
    """ms_one_core, ms_all_cores: median milliseconds of one utterance, encoded and fused by itself,
    decoding apart

    speed_one_core, speed_all_cores: how many times faster than the original, which took turns with
        it utterance by utterance: what else the machine does then slows down both
    """

    name: str
    num_bytes: int
    ms_one_core: float
    ms_all_cores: float
    speed_one_core: float
    speed_all_cores: float
    emotion: HeadCost
    sentiment: HeadCost

    def passes(self, max_loss: float) -> bool:
        """max_loss: in points of weighted F1. False where nothing can be said."""
        changes = [getattr(self, head).change for head in HEADS]
        measured = [change for change in changes if change is not None]
        return bool(measured) and all(100 * change.low >= -max_loss for change in measured)


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """variants: the original first, the exported one last

    float_layers: nodes that compute in float, from 8-bit weights, because the whole lost too much
    must_be_faster: whether it is refused where it is not faster than the original, too
    """

    split: Split
    rows: int
    dialogues: int
    cores: int
    max_loss: float
    variants: tuple[VariantCost, ...]
    float_layers: tuple[str, ...] = ()
    must_be_faster: bool = False

    @property
    def passes(self) -> bool:
        last = self.variants[-1]
        return last.passes(self.max_loss) and (self.is_faster or not self.must_be_faster)

    @property
    def is_faster(self) -> bool:
        """Whether the last variant takes less time than the original, on one core and on all."""
        last = self.variants[-1]
        return min(last.speed_one_core, last.speed_all_cores) > 1

    def to_dict(self) -> dict[str, Any]:
        return to_values(self) | {"passes": self.passes}


class ExportRefused(MismatchError):
    """The variant loses more than is allowed; `report` says how much."""

    def __init__(self, message: str, report: GateReport) -> None:
        super().__init__(message)
        self.report = report


class Gate:
    """The utterances that variants are measured on, with their labels.

    Media are decoded anew for each variant, so that memory holds one batch of them.
    """

    def __init__(self, predictor: Predictor, data: Path, split: Split, max_loss: float) -> None:
        """data: folder of the corpus: its CSVs and, for runs that see or hear, its clips.

        Raises InputError where the corpus has no such split or no labels, AnnotationError.
        """
        set_aside = predictor.description.set_aside
        stored = cached_split(split, set_aside)
        rows = read_corpus(data, (stored,))[stored]
        if set_aside is not None and split == "dev":
            rows = [row for row in rows if row.key.dialogue_id in set_aside.dialogues]
        self.data, self.split, self.stored, self.max_loss = data, split, stored, max_loss
        self._original: tuple[Candidate, HeadLogits] | None = None
        self.utterances = with_surroundings(rows, predictor.recipe.encoders)
        self.labels = {head: _labels(self.utterances, head) for head in HEADS}
        numbers: dict[int, int] = {}
        self.dialogue = np.array(
            [numbers.setdefault(row.key.dialogue_id, len(numbers)) for row in rows], np.int64
        )
        if not any((labels != UNLABELLED).any() for labels in self.labels.values()):
            raise InputError(f"{data}: no row of {split} has a label, so no loss can be measured")

    def measure(self, candidate: Candidate) -> VariantCost:
        """What it costs and loses; the first that is measured is the original."""
        cores = num_cores()
        predictor = candidate.load(cores)
        own = self._logits(predictor)
        first, original = self._original = self._original or (candidate, own)
        timed = list(self.clips(predictor, self.spread(TIMED_CLIPS)))
        first_one, own_one = _milliseconds(first, candidate, timed, threads=1)
        first_all, own_all = _milliseconds(first, candidate, timed, threads=cores)
        return VariantCost(
            name=candidate.name,
            num_bytes=candidate.num_bytes,
            ms_one_core=own_one,
            ms_all_cores=own_all,
            speed_one_core=first_one / own_one,
            speed_all_cores=first_all / own_all,
            emotion=self._cost("emotion", original.emotion, own.emotion),
            sentiment=self._cost("sentiment", original.sentiment, own.sentiment),
        )

    def report(
        self,
        variants: Sequence[VariantCost],
        *,
        float_layers: Sequence[str] = (),
        must_be_faster: bool = False,
    ) -> GateReport:
        return GateReport(
            split=self.split,
            rows=len(self.utterances),
            dialogues=int(self.dialogue.max()) + 1,
            cores=num_cores(),
            max_loss=self.max_loss,
            variants=tuple(variants),
            float_layers=tuple(float_layers),
            must_be_faster=must_be_faster,
        )

    def clips(self, predictor: Predictor, rows: Sequence[int]) -> Iterator[DecodedClip]:
        """Decoded clips of these rows, in order."""
        chosen = [self.utterances[row] for row in rows]
        decode = predictor.decode
        wanted = [name for name in predictor.modalities if name in MEDIA]
        if decode is None or not wanted:
            yield from (DecodedClip(utterance=each) for each in chosen)
            return
        for located in locate_clips(self.data, self.stored, chosen, decode.test_clips):
            yield decode_clip(located, decode, predictor.recipe.modalities)

    def calibration(self, predictor: Predictor, count: int) -> list[DecodedClip]:
        """`count` clips, evenly spread: convolutions take the ranges of their values from them."""
        return list(self.clips(predictor, self.spread(count)))

    def spread(self, count: int) -> list[int]:
        chosen = np.linspace(0, len(self.utterances) - 1, min(count, len(self.utterances)))
        return sorted({int(row) for row in chosen})

    def _logits(self, predictor: Predictor) -> HeadLogits:
        features: list[ClipFeatures] = []
        rows = range(len(self.utterances))
        for start in rows[::BATCH]:
            features += predictor.encode(list(self.clips(predictor, rows[start : start + BATCH])))
        for modality in predictor.modalities:
            if not any(modality in each.raw for each in features):
                raise InputError(
                    f"{self.data}: no clip of {self.split} has {modality}, which the run reads, so "
                    "what it loses there cannot be measured; name the folder with the clips: --data"
                )
        keys = [each.key for each in self.utterances]
        return predictor.runtime.fuse(FeatureRows.of(predictor.description.dims, features, keys))

    def _cost(self, head: Head, original: np.ndarray, own: np.ndarray) -> HeadCost:
        true, num_classes = self.labels[head], len(CLASSES[head])
        before, after = original.argmax(axis=1), own.argmax(axis=1)
        return HeadCost(
            f1=interval(true, after, self.dialogue, num_classes),
            change=difference_interval(true, before, after, self.dialogue, num_classes),
            agreement=float((before == after).mean()),
            largest_logit_error=float(np.abs(own - original).max()),
        )


def refusal(report: GateReport) -> str:
    """What the gate says of a variant that loses too much, or is not faster."""
    first, worst = report.variants[0], report.variants[-1]
    if report.must_be_faster and worst.passes(report.max_loss):
        return (
            f"{worst.name} is not faster here: {worst.speed_one_core:.2f} times as fast as "
            f"{first.name} on one core, {worst.speed_all_cores:.2f} times on all; nothing was "
            "written"
        )
    told = [
        f"{head} {100 * change.value:+.2f} points "
        f"[{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
        for head in HEADS
        if (change := getattr(worst, head).change) is not None
    ]
    measured = ", ".join(told) or "too few dialogues have labels to say"
    kept = f" with {len(report.float_layers)} layers in float" if report.float_layers else ""
    return (
        f"{worst.name}{kept} may lose more than --max-loss {report.max_loss:g} points of weighted "
        f"F1 on {report.split}: {measured}; nothing was written"
    )


def _labels(utterances: Sequence[Utterance], head: Head) -> Labels:
    names = list(CLASSES[head])
    values = [getattr(each, head) for each in utterances]
    return np.array(
        [UNLABELLED if each is None else names.index(each) for each in values], np.int64
    )


def _milliseconds(
    first: Candidate, second: Candidate, clips: Sequence[DecodedClip], *, threads: int
) -> tuple[float, float]:
    """Medians of both, which take turns; the same twice where they are one. At least a few clips,
    and so many as `MOST_TIMED_S` lets."""
    predictors = [first.load(threads)]
    if second is not first:
        predictors.append(second.load(threads))
    took: list[list[float]] = [[] for _ in predictors]
    started = time.perf_counter()
    for number, clip in enumerate([*clips[:WARM_UP], *clips]):
        if number > 2 * WARM_UP and time.perf_counter() - started > MOST_TIMED_S:
            break
        for times, predictor in zip(took, predictors, strict=True):
            times.append(_time(predictor, clip))
    medians = [statistics.median(times[WARM_UP:] or times) for times in took]
    return medians[0], medians[-1]


def _time(predictor: Predictor, clip: DecodedClip) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    features = predictor.encode([clip])
    predictor.runtime.fuse(
        FeatureRows.of(predictor.description.dims, features, [clip.utterance.key])
    )
    return 1000 * (time.perf_counter() - start)
