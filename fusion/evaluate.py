"""`meld evaluate`: a trained run measured on one split; nothing is chosen here."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from fusion.calibration import calibrate
from fusion.checkpoint import Checkpoint, read_checkpoint
from fusion.data import FusionData, check_recipe, load_split
from fusion.decoding import Decoding, score_joint
from fusion.error_analysis import analyse_errors
from fusion.fit import predict
from fusion.leakage import check_leakage
from fusion.looks import record_look
from fusion.metrics import (
    Calibration,
    EvalReport,
    ModalityPresence,
    report_emotion,
    report_sentiment,
)
from fusion.predictions import Predictions
from fusion.report import plot_report
from fusion.rows import Rows
from fusion.subsets import score_subsets
from pipeline.errors import MismatchError, RecipeMismatch, UsageError
from pipeline.schema import SPLITS, Split
from pipeline.whole_files import write_whole

log = logging.getLogger(__name__)


OnProgress = Callable[[int, int, int], None]  # clips done, clips in all, accidents


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """features: None takes the folder that the run was trained from; for a fine-tuned run it
    measures on raw clips, of which its own encoders make features in <run>/features.

    data: where those clips are; None takes the corpus it was fine-tuned on
    """

    run: Path
    split: Split = "test"
    features: Path | None = None
    data: Path | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")


def evaluate(
    config: EvaluateConfig, on_progress: OnProgress = lambda *_: None, *, draw: bool = True
) -> EvalReport:
    """Modalities, input kind and labels are the run's own.

    Writes `evaluation-<split>.json` and, if `draw`, plots into the run, and of test that it was
    looked at.
    Raises RecipeMismatch where the features were not made as those that the run was trained on.
    """
    report = measure_split(config, on_progress).report
    write_whole(config.run / f"evaluation-{config.split}.json", report.to_json().encode())
    if draw:
        plot_report(report, config.run)
    log.info("measured %s on %d rows of %s", report.run, report.rows, report.split)
    return report


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run on a split: what it took, what it said, and what that is worth."""

    checkpoint: Checkpoint
    data: FusionData
    predictions: Predictions
    report: EvalReport


def measure_split(
    config: EvaluateConfig, on_progress: OnProgress = lambda *_: None, *, command: str = "evaluate"
) -> Measured:
    """A look at test is written down before anything is returned.

    command: on whose behalf. Raises as `evaluate`.
    """
    checkpoint, data = open_split(config, on_progress)
    run = name_of(config.run)
    predictions = predict_rows(checkpoint, data, run=run)
    looks = record_look(config.run, command) if config.split == "test" else 0
    report = replace(
        measure(checkpoint, data, run=run),
        test_looks=looks,
        leakage=None if config.split == "train" else check_leakage(checkpoint, predictions),
        errors=analyse_errors(_calibrated(checkpoint.decoding, predictions)),
    )
    return Measured(checkpoint=checkpoint, data=data, predictions=predictions, report=report)


def open_split(
    config: EvaluateConfig, on_progress: OnProgress = lambda *_: None
) -> tuple[Checkpoint, FusionData]:
    """A run and a split's features, made as those that it was trained on."""
    checkpoint = read_checkpoint(config.run)
    dims = checkpoint.dims
    data = load_split(
        _features(config, checkpoint, on_progress),
        config.split,
        modalities=dims.names,
        input=dims.input,
    )
    _check_made_alike(config, checkpoint, data)
    return checkpoint, data


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
        return checkpoint.features
    # Only for fine-tuned runs: a plain one is measured without decoder, Ray or encoders.
    from pipeline.encoders.choice import EncoderRequest
    from pipeline.extract import ExtractConfig, extract

    features = config.run / "features"
    data = config.data or checkpoint.data
    assert data is not None
    if (
        checkpoint.data is None or data.resolve() != checkpoint.data.resolve()
    ):  # the same annotations may be of other clips
        features /= hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12]
    request = EncoderRequest(run=config.run)
    extract(
        ExtractConfig(data=data, features=features, splits=(config.split,), encoders=request),
        on_progress,
    )
    return features


def _check_made_alike(config: EvaluateConfig, checkpoint: Checkpoint, data: FusionData) -> None:
    try:
        check_recipe(checkpoint.recipe, checkpoint.projection_hash, data)
    except RecipeMismatch as error:
        if not checkpoint.finetuned:
            raise
        raise RecipeMismatch(
            f"{config.run} was fine-tuned and reads features of its own encoders alone; leave out "
            f"--features to measure it on raw clips, or make such features: meld extract --split "
            f"{config.split} --encoders {config.run} --features FOLDER ({error})"
        ) from error


def predict_rows(checkpoint: Checkpoint, data: FusionData, *, run: str) -> Predictions:
    """Raises MismatchError where the features have another shape than the model takes."""
    _check_dims(checkpoint, data)
    model = checkpoint.model
    output = predict(model, Rows.prepare(model, data, next(model.parameters()).device))
    return Predictions.of(run, data, output)


def measure(checkpoint: Checkpoint, data: FusionData, *, run: str) -> EvalReport:
    """What the run is worth on these rows, with all that it has and with modalities hidden."""

    def predict_these(rows: FusionData) -> Predictions:
        return predict_rows(checkpoint, rows, run=run)

    return replace(
        report_of(checkpoint, predict_these(data)),
        subsets=score_subsets(predict_these, data, checkpoint.decoding),
    )


def report_of(checkpoint: Checkpoint, predictions: Predictions) -> EvalReport:
    """What predictions are worth. The headline scores are those of each head's own first choice,
    decoded together or not: on MELD's transcripts neither is better (LOG.md)."""
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
            )
            for column, modality in enumerate(predictions.modalities)
        ),
        emotion=report_emotion(
            predictions.emotion,
            predictions.predicted_emotion,
            checkpoint.emotion_counts,
            dialogue=predictions.dialogue,
        ),
        sentiment=report_sentiment(
            predictions.sentiment,
            predictions.predicted_sentiment,
            checkpoint.sentiment_counts,
            dialogue=predictions.dialogue,
        ),
        test_clips=checkpoint.recipe.test_clips,
        calibration=None if decoding is None else _calibration(decoding, predictions),
        joint=None if decoding is None else score_joint(decoding, predictions),
    )


def _calibrated(decoding: Decoding | None, predictions: Predictions) -> Predictions:
    """The same first choices, with probabilities that can be believed."""
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


def _check_dims(checkpoint: Checkpoint, data: FusionData) -> None:
    for dims in checkpoint.dims.modalities:
        values = data.features.get(dims.modality)
        if values is not None and tuple(values.shape[1:]) != (dims.layers, dims.dim):
            raise MismatchError(
                f"{dims.modality} features of {data.split} are {list(values.shape[1:])} "
                f"[layers, dim], the model takes {[dims.layers, dims.dim]}"
            )
