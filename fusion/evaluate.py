"""`meld evaluate`: a trained run measured on one split; nothing is chosen here."""

import logging
from dataclasses import dataclass
from pathlib import Path

from fusion.checkpoint import Checkpoint, read_checkpoint, write_whole
from fusion.data import FusionData, check_recipe, load_split
from fusion.fit import Rows, predict
from fusion.metrics import (
    EvalReport,
    ModalityPresence,
    report_emotion,
    report_sentiment,
)
from fusion.report import plot_report
from pipeline.errors import MismatchError
from pipeline.schema import SPLITS, Split

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """features: None takes the folder that the run was trained from."""

    run: Path
    split: Split = "test"
    features: Path | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")


def evaluate(config: EvaluateConfig) -> EvalReport:
    """Modalities, input kind and labels are the run's own.

    Writes `evaluation-<split>.json` and plots into the run. Raises RecipeMismatch where the
    features were not made as those that the run was trained on.
    """
    checkpoint = read_checkpoint(config.run)
    dims = checkpoint.dims
    data = load_split(
        config.features or checkpoint.features,
        config.split,
        modalities=dims.names,
        input=dims.input,
    )
    check_recipe(checkpoint.recipe, checkpoint.projection_hash, data)
    report = evaluate_model(checkpoint, data, run=config.run.resolve().name)
    write_whole(config.run / f"evaluation-{config.split}.json", report.to_json().encode())
    plot_report(report, config.run)
    log.info("measured %s on %d rows of %s", report.run, report.rows, report.split)
    return report


def evaluate_model(checkpoint: Checkpoint, data: FusionData, *, run: str) -> EvalReport:
    _check_dims(checkpoint, data)
    model = checkpoint.model
    output = predict(model, Rows.prepare(model, data, next(model.parameters()).device))
    return EvalReport(
        run=run,
        split=data.split,
        fingerprint=data.recipe.fingerprint,
        rows=len(data),
        presence=tuple(
            ModalityPresence(
                modality=modality,
                rows=int(data.present[:, column].sum()),
                random_weights=modality in data.recipe.random_modalities,
            )
            for column, modality in enumerate(data.modalities)
        ),
        emotion=report_emotion(
            data.emotion.numpy(),
            output.emotion_logits.argmax(dim=1).cpu().numpy(),
            checkpoint.emotion_counts,
        ),
        sentiment=report_sentiment(
            data.sentiment.numpy(),
            output.sentiment_logits.argmax(dim=1).cpu().numpy(),
            checkpoint.sentiment_counts,
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
