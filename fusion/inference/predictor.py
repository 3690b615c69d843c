"""A trained run with its encoders: decoded clips in, probabilities out.

clips -> encode_clips -> features -> fusion model -> logits -> temperatures, joint labels
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.data.split import FusionData
from fusion.inference.checkpoint import Checkpoint, read_checkpoint
from fusion.inference.decoding import JointLabels, decode
from fusion.inference.encoders import find_encoders_of
from fusion.inference.predict import predict_rows
from fusion.inference.predictions import Predictions
from fusion.inference.temperature import Temperature
from fusion.labels import UNLABELLED
from pipeline.encode import Encoders, encode_clips
from pipeline.errors import MismatchError
from pipeline.schema import ClipFailure, ClipFeatures, DecodedClip


@dataclass(frozen=True, kw_only=True)
class Probabilities:
    """One row per clip, in order.

    emotion, sentiment: float64 [rows, 7] and [rows, 3], calibrated, each row adds up to 1; None
              where the run's head never learned
    labels:   both heads' labels chosen together; without a fitted `Decoding` each head's first;
              UNLABELLED of a head that never learned
    present:  bool [rows, modalities], columns as in the run's modalities
    failures: why a modality is not there, in the clips' order
    """

    emotion: NDArray[np.float64] | None
    sentiment: NDArray[np.float64] | None
    labels: JointLabels
    present: NDArray[np.bool_]
    failures: tuple[ClipFailure, ...]


class Predictor:
    """`meld evaluate` of the same clips gives the same probabilities, up to the rounding of other
    batches."""

    def __init__(self, name: str, checkpoint: Checkpoint, encoders: Encoders) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self._encoders = encoders

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        weights_dir: Path | None = None,
        encoders: Path | None = None,
        device: str = "cpu",
    ) -> "Predictor":
        """Reads the run once, finds its encoders and loads them; arguments as in
        `find_encoders_of`.

        Raises:
            MismatchError: the run was trained on 128-d embeddings, whose projection lies with the
                features and not with the run; or encoders other than its own.
            InputError, StorageError, WeightsMissing: the run, or what it needs, is not there.
        """
        checkpoint = read_checkpoint(run)
        if checkpoint.dims.input != "raw":
            raise MismatchError(
                f"{run} was trained on 128-d embeddings, whose projection is no part of it; "
                "train a run on raw features: meld train-fusion --input raw"
            )
        choices = find_encoders_of(run, checkpoint, weights_dir=weights_dir, encoders=encoders)
        checkpoint.model.to(device)
        loaded = Encoders(choices, checkpoint.recipe.decode).to(device)
        return cls(run.resolve().name, checkpoint, loaded)

    def predict(self, clips: Sequence[DecodedClip]) -> Probabilities:
        """Clips of one dialogue belong into one call where the run has dialogue context: their keys
        say which they are and in which order.

        A modality that a clip does not have, or that its encoder gives no numbers for, is absent.

        Raises ValueError where there is no clip.
        """
        if not clips:
            raise ValueError("no clips to predict")
        encoded = encode_clips(self._encoders, clips)
        data = self._to_data(encoded)
        predictions = predict_rows(self.checkpoint, data, run=self.name)
        emotion, sentiment = self._temperatures
        untrained = self.checkpoint.untrained
        return Probabilities(
            emotion=None
            if "emotion" in untrained
            else np.exp(emotion.log_probabilities(predictions.emotion_logits)),
            sentiment=None
            if "sentiment" in untrained
            else np.exp(sentiment.log_probabilities(predictions.sentiment_logits)),
            labels=self._labels(predictions),
            present=predictions.present,
            failures=tuple(failure for clip in encoded for failure in clip.failures),
        )

    @property
    def _temperatures(self) -> tuple[Temperature, Temperature]:
        decoding = self.checkpoint.decoding
        if decoding is None:
            return Temperature(), Temperature()
        return decoding.emotion, decoding.sentiment

    def _labels(self, predictions: Predictions) -> JointLabels:
        if self.checkpoint.decoding is None:
            labels = JointLabels(
                emotion=predictions.predicted_emotion, sentiment=predictions.predicted_sentiment
            )
        else:
            labels = decode(
                self.checkpoint.decoding, predictions.emotion_logits, predictions.sentiment_logits
            )
        none = np.full(len(predictions), UNLABELLED, dtype=np.int64)
        return replace(labels, **dict.fromkeys(self.checkpoint.untrained, none))

    def _to_data(self, clips: Sequence[ClipFeatures]) -> FusionData:
        """The same values that a cache would hold; labels are nobody's business here."""
        names = self.checkpoint.dims.names
        features = {}
        for dims in self.checkpoint.dims.modalities:
            empty = np.zeros((dims.layers, dims.dim), np.float32)  # masked: it means nothing
            rows = [clip.raw.get(dims.modality, empty) for clip in clips]
            features[dims.modality] = torch.from_numpy(np.stack(rows))  # [rows, layers, dim]
        unlabelled = torch.full((len(clips),), UNLABELLED, dtype=torch.int64)
        return FusionData(
            split="test",
            recipe=self.checkpoint.recipe,
            input="raw",
            modalities=names,
            features=features,
            present=torch.tensor([[name in clip.raw for name in names] for clip in clips]),
            emotion=unlabelled,
            sentiment=unlabelled,
            keys=tuple(clip.utterance.key for clip in clips),
            text=tuple(clip.utterance.text for clip in clips),
            speaker=tuple(clip.utterance.speaker for clip in clips),
        )
