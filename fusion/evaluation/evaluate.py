"""`meld evaluate`: measures a trained run on one split; nothing is fitted or chosen here."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote

import numpy as np

from fusion.data.load import cached_split, load_part
from fusion.data.set_aside import SetAside
from fusion.data.split import FusionData, check_recipe
from fusion.evaluation.bootstrap import interval
from fusion.evaluation.calibration import calibrate
from fusion.evaluation.error_analysis import analyse_errors
from fusion.evaluation.joint_labels import score_joint
from fusion.evaluation.leakage import check_leakage
from fusion.evaluation.modality_subsets import score_subsets
from fusion.evaluation.report import Calibration, EvalReport, HeadReport, ModalityPresence
from fusion.evaluation.scores import accuracy_of, score
from fusion.evaluation.test_evaluations import record_evaluation
from fusion.inference.bundle import EXPORT, read_export
from fusion.inference.checkpoint import Checkpoint, read_checkpoint
from fusion.inference.decoding import Decoding
from fusion.inference.predict import predict_subsets
from fusion.inference.predictions import Predictions
from fusion.inference.subsets import SubsetPredictions
from fusion.labels import UNLABELLED, Head, Labels
from pipeline.cache.format import read_header
from pipeline.errors import InputError, MeldError, MismatchError, RecipeMismatch, UsageError
from pipeline.schema import EMOTIONS, SENTIMENTS, SPLITS, Split
from pipeline.system.files import check_out, check_writable, write_whole
from pipeline.system.json_values import json_bytes

log = logging.getLogger(__name__)


OnProgress = Callable[[int, int, int], None]  # clips done, clips in all, failures


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """features: None takes the folder that the run was trained from; for a fine-tuned run it
    measures on raw clips, of which its own encoders make features in <run>/features.

    data: where those clips are; None takes the corpus it was fine-tuned on
    predictions: a .csv or .parquet file to write the predictions of every row to
    """

    run: Path
    split: Split = "test"
    features: Path | None = None
    data: Path | None = None
    predictions: Path | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")
        if self.features is not None and self.data is not None:
            raise UsageError(
                f"--data {self.data}: with --features the clips are not read; give one of the two"
            )


def evaluate(
    config: EvaluateConfig, on_progress: OnProgress = lambda *_: None, *, draw: bool = True
) -> EvalReport:
    """Modalities, input kind and labels are the run's own.

    Writes `evaluation-<split>.json` and, if `draw`, plots into the run; for test, it records a test
    evaluation.
    Raises RecipeMismatch where the features were not made as those that the run was trained on.
    """
    if config.predictions is not None:
        from fusion.evaluation.predictions_file import check_predictions_file, write_predictions

        check_predictions_file(config.predictions)
        check_out(config.predictions, begins=b"", option="--predictions")
    measured = measure_unrecorded(config, on_progress)
    written = [f"evaluation-{config.split}.json"]
    written += [f"{config.split}-{plot}.png" for plot in ("confusion", "classes")] if draw else []
    for name in written:
        check_writable(config.run / name)
    measured = record_measured(measured, config.run, "evaluate")
    report = measured.report
    if config.predictions is not None:
        everything = measured.by_subset[max(measured.by_subset, key=len)]
        write_predictions(config.predictions, measured.checkpoint, everything)
    write_whole(config.run / written[0], json_bytes(report.to_dict()))
    if draw:
        from fusion.evaluation.plots import plot_report  # matplotlib takes seconds to load

        plot_report(report, config.run)
    log.info("%s: written: evaluation-%s.json and plots", config.run, config.split)
    return report


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Predictions of a run on a split from each subset of its modalities, and the scores."""

    checkpoint: Checkpoint
    by_subset: SubsetPredictions
    report: EvalReport


def measure_split(
    config: EvaluateConfig, on_progress: OnProgress = lambda *_: None, *, command: str = "evaluate"
) -> Measured:
    """A test evaluation is recorded before anything is returned.

    command: name of the command, for the record. Raises as `evaluate`.
    """
    return record_measured(measure_unrecorded(config, on_progress), config.run, command)


def record_measured(measured: Measured, run: Path, command: str) -> Measured:
    """Records a test evaluation, if it is one. Raises StorageError."""
    if measured.report.split != "test":
        return measured
    num_evaluations = record_evaluation(run, command)
    log.info("%s: test evaluation %d is recorded", run, num_evaluations)
    return replace(measured, report=replace(measured.report, test_evaluations=num_evaluations))


def measure_unrecorded(
    config: EvaluateConfig, on_progress: OnProgress = lambda *_: None
) -> Measured:
    """Its caller calls `record_measured` when nothing can fail any more, before anything of it is
    shown or written. Raises as `evaluate`."""
    checkpoint, data, features, set_aside = _open_split(config, on_progress)
    by_subset = predict_subsets(checkpoint, data, run=name_of(config.run))
    predictions = by_subset[data.modalities]
    report = replace(
        report_subsets(checkpoint, by_subset),
        features=_name_unless(config.features, checkpoint.features),
        data=_name_unless(config.data, checkpoint.data),
        set_aside=set_aside,
        fitted_here=set_aside == checkpoint.set_aside
        and _is_fitted_here(config, checkpoint, features),
        leakage=None if config.split == "train" else check_leakage(checkpoint, predictions),
        errors=analyse_errors(_calibrated(checkpoint.decoding, predictions)),
    )
    return Measured(checkpoint=checkpoint, by_subset=by_subset, report=report)


def open_split(
    config: EvaluateConfig, on_progress: OnProgress = lambda *_: None
) -> tuple[Checkpoint, FusionData]:
    """A run and the features of a split, checked against the recipe that it was trained on. What
    the run set aside is None where the split is another corpus's own."""
    checkpoint, data, _, set_aside = _open_split(config, on_progress)
    return replace(checkpoint, set_aside=set_aside), data


def _open_split(
    config: EvaluateConfig, on_progress: OnProgress
) -> tuple[Checkpoint, FusionData, Path, SetAside | None]:
    """Also the folder of the features, and which dialogues of train are its dev."""
    checkpoint = read_checkpoint(config.run)
    exported = read_export(config.run)
    if exported is not None and "torch" not in exported["runtimes"]:
        raise UsageError(
            f"{config.run} holds 8-bit graphs, which read no cached features; what they score "
            f"beside the run that they were made of is in {config.run / EXPORT}"
        )
    dims = checkpoint.dims
    features = _features(config, checkpoint, on_progress)
    log.info("%s: features from %s", config.run, features)
    data, set_aside = _load(config, checkpoint, features)
    _check_made_alike(config, checkpoint, data)
    log.info(
        "%s: %s of %d rows of %s, recipe %s, on the CPU",
        config.run,
        ", ".join(dims.names),
        len(data),
        config.split,
        data.recipe.fingerprint[:12],
    )
    return checkpoint, data, features, set_aside


def _load(
    config: EvaluateConfig, checkpoint: Checkpoint, features: Path
) -> tuple[FusionData, SetAside | None]:
    """A split of the run's corpus, less or only what it set aside of train; of another corpus that
    was named, the split as it is.

    Raises MismatchError where the run's dev is part of train, and the other corpus has no dev.
    """
    dims, set_aside = checkpoint.dims, checkpoint.set_aside
    load = partial(load_part, features, config.split, modalities=dims.names, input=dims.input)
    named = config.features is not None or config.data is not None
    as_it_is = features / f"{config.split}.h5"
    may_be_another = set_aside is not None and named and config.split != "test"
    if may_be_another and as_it_is.is_file() and not (features / "train.h5").is_file():
        return load(None), None
    try:
        return load(set_aside), set_aside
    except MismatchError:
        if not may_be_another or not as_it_is.is_file():
            raise
        log.info("%s: another corpus, whose %s is taken as it is", features, config.split)
        return load(None), None


def name_of(run: Path) -> str:
    return run.resolve().name


def _features(config: EvaluateConfig, checkpoint: Checkpoint, on_progress: OnProgress) -> Path:
    if config.features is not None:
        return config.features
    if not checkpoint.finetuned:
        if config.data is not None:
            raise UsageError(
                f"--data: {config.run} was trained on cached features, and is measured on them; "
                "extract features of that corpus and name them with --features"
            )
        return checkpoint.require_features()
    # Only for fine-tuned runs: a plain one is measured without decoder, Ray or encoders.
    from pipeline.encoders.choice import EncoderRequest
    from pipeline.extract.extract import ExtractConfig, extract

    features = config.run / "features"
    data = config.data or checkpoint.data
    if data is None:
        raise InputError(
            f"{config.run} was fine-tuned, and passed on without the clips that it was fine-tuned "
            "on: name clips with --data, or features of its own encoders with --features "
            "(--features-a and --features-b of meld compare), made by meld extract "
            f"--split {config.split} --encoders {quote(str(config.run))} --features FOLDER"
        )
    if (
        checkpoint.data is None or data.resolve() != checkpoint.data.resolve()
    ):  # the same annotations may be of other clips
        features /= hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12]
    log.info("%s: its own encoders make features of the clips in %s", config.run, data)
    request = EncoderRequest(run=config.run)
    extract(
        ExtractConfig(
            data=data,
            features=features,
            splits=(cached_split(config.split, checkpoint.set_aside),),
            encoders=request,
        ),
        on_progress,
    )
    return features


def _name_unless(named: Path | None, own: Path | None) -> str | None:
    if named is None or (own is not None and named.resolve() == own.resolve()):
        return None
    return str(named)


def _is_fitted_here(config: EvaluateConfig, checkpoint: Checkpoint, features: Path) -> bool | None:
    """Whether these are the rows of the run's own dev; None where these are not at hand."""
    if config.split != "dev" or checkpoint.decoding is None:
        return False
    if config.features is None and config.data is None:
        return True
    if checkpoint.features is None:
        return None
    name = f"{cached_split('dev', checkpoint.set_aside)}.h5"
    try:
        own, measured = (read_header(folder / name) for folder in (checkpoint.features, features))
    except MeldError:
        return None
    return own.rows_hash == measured.rows_hash


def _check_made_alike(config: EvaluateConfig, checkpoint: Checkpoint, data: FusionData) -> None:
    try:
        check_recipe(checkpoint.recipe, checkpoint.projection_hash, data)
    except RecipeMismatch as error:
        if not checkpoint.finetuned:
            raise
        raise RecipeMismatch(
            f"{config.run} was fine-tuned and reads features of its own encoders alone; leave out "
            f"--features to measure it on raw clips, or make such features: meld extract --split "
            f"{config.split} --encoders {quote(str(config.run))} --features FOLDER ({error})"
        ) from error


def report_subsets(checkpoint: Checkpoint, by_subset: SubsetPredictions) -> EvalReport:
    """`report_of` the predictions from all modalities, with the scores of every subset of them."""
    return replace(
        report_of(checkpoint, by_subset[max(by_subset, key=len)]),
        subsets=score_subsets(by_subset, checkpoint.decoding),
    )


def report_of(checkpoint: Checkpoint, predictions: Predictions) -> EvalReport:
    """The report of predictions. The main scores are those of each head's most probable class;
    joint decoding is reported beside them: on MELD's transcripts neither is better (LOG.md)."""
    decoding = checkpoint.decoding
    return EvalReport(
        run=predictions.run,
        split=predictions.split,
        fingerprint=checkpoint.recipe.fingerprint,
        rows=len(predictions),
        presence=tuple(
            ModalityPresence(
                modality=modality,
                rows=int(predictions.present[:, column].sum()),
                random_weights=modality in checkpoint.recipe.random_modalities,
                foreign=checkpoint.recipe.foreign.get(modality, ""),
            )
            for column, modality in enumerate(predictions.modalities)
        ),
        emotion=report_emotion(
            predictions.emotion,
            predictions.predicted_emotion,
            checkpoint.emotion_counts,
            dialogue=predictions.dialogue,
            not_measured=_why_not("emotion", checkpoint.emotion_counts, predictions),
        ),
        sentiment=report_sentiment(
            predictions.sentiment,
            predictions.predicted_sentiment,
            checkpoint.sentiment_counts,
            dialogue=predictions.dialogue,
            not_measured=_why_not("sentiment", checkpoint.sentiment_counts, predictions),
        ),
        set_aside=checkpoint.set_aside,
        fitted_here=decoding is not None and predictions.split == "dev",
        test_clips=checkpoint.recipe.test_clips,
        calibration=None if decoding is None else _calibration(decoding, predictions),
        joint=score_joint(decoding, predictions)
        if decoding and not predictions.untrained
        else None,
    )


def _why_not(head: Head, train_counts: Sequence[int], predictions: Predictions) -> str:
    """Reason why a head has no score; empty where it has one."""
    if head in predictions.untrained:
        if not any(train_counts):
            return f"the head is untrained, as no row of train had a label of {head}"
        return f"the head is untrained, as its loss counted 0 (loss.{head}_weight)"
    if (getattr(predictions, head) == UNLABELLED).all():
        return f"no row of {predictions.split} has a label of {head}"
    return ""


def _calibrated(decoding: Decoding | None, predictions: Predictions) -> Predictions:
    """The same predictions with calibrated probabilities."""
    if decoding is None:
        return predictions
    return replace(
        predictions,
        emotion_logits=decoding.emotion.log_probabilities(predictions.emotion_logits),
        sentiment_logits=decoding.sentiment.log_probabilities(predictions.sentiment_logits),
    )


def _calibration(decoding: Decoding, predictions: Predictions) -> Calibration:
    return Calibration(
        emotion=calibrate(predictions.emotion_logits, predictions.emotion, decoding.emotion),
        sentiment=calibrate(
            predictions.sentiment_logits, predictions.sentiment, decoding.sentiment
        ),
    )


def report_emotion(
    true: Labels,
    predicted: Labels,
    train_counts: Sequence[int],
    *,
    dialogue: Labels | None = None,
    not_measured: str = "",
) -> HeadReport:
    """dialogue: which dialogue each row is of, numbered from 0; None leaves out the intervals

    not_measured: why, where no row has a label
    """
    return _report_head(EMOTIONS, true, predicted, train_counts, dialogue, not_measured)


def report_sentiment(
    true: Labels,
    predicted: Labels,
    train_counts: Sequence[int],
    *,
    dialogue: Labels | None = None,
    not_measured: str = "",
) -> HeadReport:
    """See `report_emotion`."""
    return _report_head(SENTIMENTS, true, predicted, train_counts, dialogue, not_measured)


def _report_head(
    labels: tuple[str, ...],
    true: Labels,
    predicted: Labels,
    train_counts: Sequence[int],
    dialogue: Labels | None,
    not_measured: str,
) -> HeadReport:
    f1_interval = accuracy_interval = None
    if dialogue is not None:
        f1_interval = interval(true, predicted, dialogue, len(labels))
        accuracy_interval = interval(true, predicted, dialogue, len(labels), scoring=accuracy_of)
    rows = int((true != UNLABELLED).sum())
    majority = int(np.argmax(train_counts))
    known = any(train_counts)  # without labels in train nothing is commonest there
    said = np.full_like(true, majority if known else UNLABELLED)
    return HeadReport(
        labels=labels,
        rows=rows,
        model=score(labels, true, predicted),
        majority_label=labels[majority] if known else None,
        majority=score(labels, true if known else said, said),
        weighted_f1_interval=f1_interval,
        accuracy_interval=accuracy_interval,
        not_measured=(not_measured or "no row has such a label") if rows == 0 else "",
    )
