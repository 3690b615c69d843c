"""Cached features -> logits. Nothing is random, and rows are independent, except that a model with
dialogue context sees the rows of a dialogue together."""

import torch

from fusion.data.batches import Rows, fuse_rows, prediction_batches
from fusion.data.split import FusionData
from fusion.inference.checkpoint import Checkpoint
from fusion.inference.predictions import Predictions
from fusion.model.fusion import FusionModel, FusionOutput
from pipeline.errors import MismatchError


@torch.no_grad()
def predict(model: FusionModel, rows: Rows, *, batch_size: int = 1024) -> FusionOutput:
    """Logits of every row, without dropout."""
    model.eval()
    batches = prediction_batches(rows.turns, batch_size, whole_dialogues=model.context is not None)
    outputs = [fuse_rows(model, rows.pick(index)) for index in batches]
    back = torch.cat(batches).argsort()
    return FusionOutput(
        torch.cat([output.emotion_logits for output in outputs])[back],
        torch.cat([output.sentiment_logits for output in outputs])[back],
    )


def predict_rows(checkpoint: Checkpoint, data: FusionData, *, run: str) -> Predictions:
    """Raises MismatchError where the features have another shape than the model takes."""
    _check_dims(checkpoint, data)
    model = checkpoint.model
    output = predict(model, Rows.prepare(model, data, next(model.parameters()).device))
    return Predictions.of(run, data, output, untrained=checkpoint.untrained)


def _check_dims(checkpoint: Checkpoint, data: FusionData) -> None:
    for dims in checkpoint.dims.modalities:
        values = data.features.get(dims.modality)
        if values is not None and tuple(values.shape[1:]) != (dims.layers, dims.dim):
            raise MismatchError(
                f"{dims.modality} features of {data.split} are {list(values.shape[1:])} "
                f"[layers, dim], the model takes {[dims.layers, dims.dim]}"
            )
