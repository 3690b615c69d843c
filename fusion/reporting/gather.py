"""Gathers everything that a report shows of one run on one split."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fusion.evaluation.evaluate import EvaluateConfig, measure_unrecorded
from fusion.evaluation.report import EvalReport
from fusion.evaluation.test_evaluations import record_evaluation
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predictions import Predictions
from fusion.inference.shapley import ModalityShares, explain_modalities
from fusion.reporting.reproduce import Remake, remake
from fusion.reporting.run_info import history_of, versions_of
from fusion.training.history import EpochResult
from pipeline.html.stills import read_stills
from pipeline.recipe import FeatureRecipe
from pipeline.schema import ClipKey, Split

OnProgress = Callable[[int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """One run on one split. What is None or empty is left out of the page.

    settings: of the training, as in the run's config, nested
    versions: package -> version that trained it
    stills:   a frame of some clips as JPEG, where the clips are at hand
    """

    path: Path
    evaluation: EvalReport
    predictions: Predictions
    recipe: FeatureRecipe
    settings: Mapping[str, Any]
    remake: Remake
    versions: Mapping[str, str] = field(default_factory=dict)
    history: tuple[EpochResult, ...] = ()
    shapley: ModalityShares | None = None
    stills: Mapping[ClipKey, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.evaluation.run

    @property
    def dialogues(self) -> int:
        return len(set(self.predictions.dialogue.tolist()))

    @property
    def sections(self) -> tuple[tuple[str, str], ...]:
        """(anchor, title) of the sections about this run, in order."""
        evaluation = self.evaluation
        there = {
            "classes": "classes",
            "confusion": "confusion",
            "errors": "errors" if evaluation.errors else "",
            "mistakes": "mistakes" if evaluation.errors else "",
            "subsets": "subsets of modalities" if len(evaluation.subsets) > 1 else "",
            "decides": "which modality decides" if self.shapley else "",
            "calibration": "calibration" if evaluation.calibration else "",
            "joint": "joint decoding" if evaluation.joint else "",
            "leakage": "leakage" if evaluation.leakage else "",
            "training": "training" if self.history else "",
            "recipe": "features",
            "settings": "settings",
            "again": "commands",
        }
        return tuple((anchor, title) for anchor, title in there.items() if title)


def gather(
    runs: Sequence[Path],
    split: Split,
    data: Path | None,
    on_progress: OnProgress = lambda *_: None,
) -> tuple[RunReport, ...]:
    """Measures runs and reads the records of their training. A test evaluation is recorded of each
    run once, after all were measured.

    data: the corpus, for stills; None takes that of a fine-tuned run, which is measured on it

    Raises what reading a run and its features raises; the message says what to do.
    """
    gathered = [_gather(run, split, data, on_progress) for run in runs]
    if split == "test":
        paths = [run.resolve() for run in runs]
        counts = {path: record_evaluation(path, "report") for path in dict.fromkeys(paths)}
        gathered = [
            replace(each, evaluation=replace(each.evaluation, test_evaluations=counts[path]))
            for each, path in zip(gathered, paths, strict=True)
        ]
    return tuple(gathered)


def _gather(run: Path, split: Split, data: Path | None, on_progress: OnProgress) -> RunReport:
    measured = measure_unrecorded(_evaluation(run, split, data), on_progress)
    checkpoint, by_subset = measured.checkpoint, measured.by_subset
    errors, clips = measured.report.errors, data or checkpoint.data
    shown = [mistake.key for mistake in errors.mistakes] if errors is not None else []
    stills: dict[ClipKey, bytes] = {}
    if clips is not None and clips.is_dir():
        stills = read_stills(clips, shown, checkpoint.recipe.test_clips or "fixed")
    return RunReport(
        path=run,
        evaluation=measured.report,
        predictions=by_subset[max(by_subset, key=len)],
        recipe=checkpoint.recipe,
        settings=checkpoint.settings,
        remake=remake(checkpoint, run, data=data),
        versions=versions_of(run),
        history=history_of(run),
        stills=stills,
        # With one modality there is nothing to share out, and an untrained head decides nothing.
        shapley=explain_modalities(checkpoint, by_subset)
        if len(by_subset) > 1 and "emotion" not in checkpoint.untrained
        else None,
    )


def _evaluation(run: Path, split: Split, data: Path | None) -> EvaluateConfig:
    finetuned = read_checkpoint(run).finetuned
    return EvaluateConfig(run=run, split=split, data=data if finetuned else None)
