"""Cached features -> logits. Nothing is random, and rows are independent, except that a model with
dialogue context sees the rows of a dialogue together."""

from dataclasses import replace

import torch

from fusion.data.batches import Rows, fuse_rows, prediction_batches
from fusion.data.split import FusionData
from fusion.inference.checkpoint import Checkpoint
from fusion.inference.predictions import Predictions
from fusion.inference.subsets import SubsetPredictions, choose_subsets
from fusion.labels import Head
from fusion.model.ensemble import Fusion
from fusion.model.fusion import FusionOutput
from pipeline.errors import MismatchError
from pipeline.schema import Modality


@torch.no_grad()
def predict(model: Fusion, rows: Rows, *, batch_size: int = 1024) -> FusionOutput:
    """Logits of every row, without dropout."""
    model.eval()
    batches = prediction_batches(rows.turns, batch_size, whole_dialogues=model.context is not None)
    outputs = [fuse_rows(model, rows.pick(index)) for index in batches]
    back = torch.cat(batches).argsort()
    return FusionOutput(
        torch.cat([output.emotion_logits for output in outputs])[back],
        torch.cat([output.sentiment_logits for output in outputs])[back],
    )


def predict_data(checkpoint: Checkpoint, data: FusionData) -> FusionOutput:
    """Raises MismatchError where the features have another shape than the model takes."""
    _check_dims(checkpoint, data)
    model = checkpoint.model
    return predict(model, Rows.prepare(model, data, next(model.parameters()).device))


def predict_rows(checkpoint: Checkpoint, data: FusionData, *, run: str) -> Predictions:
    """Raises MismatchError as `predict_data`, CacheCorrupt as `Predictions`."""
    output = predict_data(checkpoint, data)
    return predictions_of(run, data, output, untrained=checkpoint.untrained)


def predict_subsets(checkpoint: Checkpoint, data: FusionData, *, run: str) -> SubsetPredictions:
    """Predictions from every non-empty subset of the data's modalities: at most 7 passes.

    Raises MismatchError as `predict_rows` does.
    """
    return {
        subset: predict_rows(checkpoint, hide_all_but(subset, data), run=run)
        for subset in choose_subsets(data.modalities)
    }


def hide_all_but(visible: tuple[Modality, ...], data: FusionData) -> FusionData:
    """The same rows with every other modality absent; what was absent stays so."""
    columns = torch.tensor([modality in visible for modality in data.modalities])  # [modalities]
    return replace(data, present=data.present & columns)


def predictions_of(
    run: str, data: FusionData, output: FusionOutput, *, untrained: tuple[Head, ...] = ()
) -> Predictions:
    """The logits with the labels of `data`; untrained heads are not measured."""
    data = data.without_labels(untrained)
    return Predictions(
        run=run,
        split=data.split,
        keys=data.keys,
        text=data.text,
        speaker=data.speaker,
        modalities=data.modalities,
        present=data.present.numpy(),
        emotion=data.emotion.numpy(),
        sentiment=data.sentiment.numpy(),
        emotion_logits=output.emotion_logits.cpu().double().numpy(),
        sentiment_logits=output.sentiment_logits.cpu().double().numpy(),
        untrained=untrained,
    )


def _check_dims(checkpoint: Checkpoint, data: FusionData) -> None:
    for dims in checkpoint.dims.modalities:
        values = data.features.get(dims.modality)
        if values is not None and tuple(values.shape[1:]) != (dims.layers, dims.dim):
            raise MismatchError(
                f"{dims.modality} features of {data.split} are {list(values.shape[1:])} "
                f"[layers, dim], the model takes {[dims.layers, dims.dim]}"
            )
