"""A trained run with its encoders: decoded clips in, predictions out.

clips -> encode_clips -> features -> fusion model, with every subset of modalities
      -> temperatures, joint labels, Shapley values -> one Prediction a clip
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fusion.data.split import FusionData
from fusion.inference.checkpoint import WEIGHTS, Checkpoint, read_checkpoint
from fusion.inference.decoding import JointLabels, decode
from fusion.inference.encoders import find_encoders_of
from fusion.inference.prediction import Alone, HeadPrediction, Part, Prediction
from fusion.inference.predictions import Predictions
from fusion.inference.shapley import ModalityShares, explain_modalities
from fusion.inference.subsets import predict_subsets
from fusion.inference.temperature import Temperature
from fusion.labels import UNLABELLED, Labels
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import compute_in
from pipeline.encoders.encoder import EncoderChoice
from pipeline.errors import MismatchError, UsageError
from pipeline.recipe import REVISION, DecodeConfig, FeatureRecipe, Precision
from pipeline.schema import (
    EMOTIONS,
    MEDIA,
    SENTIMENTS,
    ClipFeatures,
    ClipKey,
    DecodedClip,
    Modality,
)

log = logging.getLogger(__name__)

# The length of MELD's longest dialogue. A model trained on those would not handle the thousand
# utterances of an hour well.
MOST_TURNS = 33


class Predictor:
    """Predicts clips. `meld evaluate` gives the same probabilities for the same clips, up to the
    rounding of other batches.

    name:        of the run
    fingerprint: SHA-256 (hex) of its weights
    """

    def __init__(
        self, name: str, checkpoint: Checkpoint, encoders: Encoders, fingerprint: str = ""
    ) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.fingerprint = fingerprint
        self._encoders = encoders

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        weights_dir: Path | None = None,
        encoders: Path | None = None,
        device: str = "cpu",
        precision: Precision | None = None,
    ) -> "Predictor":
        """Reads the run once, finds its encoders and loads them; arguments as in
        `find_encoders_of`.

        precision: precision of the encoders that support it; None takes that of the features which
            the run was trained on, and only that gives the probabilities of `meld evaluate`

        Raises:
            UsageError: none of its encoders, or not this machine, can compute in that precision.
            MismatchError: the run was trained on 128-d embeddings, whose projection lies with the
                features and not with the run; its features are of another revision; one of its
                heads never learned; or encoders other than its own.
            InputError, StorageError, WeightsMissing: the run, or something it needs, is missing.
        """
        checkpoint = read_checkpoint(run)
        if checkpoint.dims.input != "raw":
            raise MismatchError(
                f"{run} was trained on 128-d embeddings, whose projection is no part of it; "
                "train a run on raw features: meld train-fusion --input raw"
            )
        if checkpoint.recipe.revision != REVISION:
            raise MismatchError(
                f"{run} was trained on features of revision {checkpoint.recipe.revision}, and this "
                f"program makes those of revision {REVISION}; extract and train again"
            )
        if checkpoint.untrained:
            [head] = checkpoint.untrained
            raise MismatchError(
                f"{run}: its {head} head was trained without labels, so its {head} predictions are "
                f"noise; train a run on a corpus that has {head} labels as well"
            )
        choices = find_encoders_of(run, checkpoint, weights_dir=weights_dir, encoders=encoders)
        if precision is not None:
            _check_precision(precision, device)
            choices = compute_in(choices, precision)
            checkpoint = replace(checkpoint, recipe=_recipe_of(checkpoint.recipe, choices))
        checkpoint.model.to(device)
        loaded = Encoders(choices, checkpoint.recipe.decode).to(device)
        fingerprint = hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()
        told = (
            f"{each.spec.modality} by {each.spec.name} in {each.spec.precision}" for each in choices
        )
        log.info("model %s (%s) on %s", run.resolve(), ", ".join(told), device)
        return cls(run.resolve().name, checkpoint, loaded, fingerprint)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that the run takes."""
        return self.checkpoint.dims.names

    @property
    def word_modalities(self) -> tuple[Modality, ...]:
        """Those that are not in a media file: text."""
        return tuple(name for name in self.modalities if name not in MEDIA)

    @property
    def identity(self) -> str:
        """Identifies everything that decides the probabilities: weights, encoders and device."""
        device = next(self.checkpoint.model.parameters()).device.type
        return f"{self.fingerprint} {self.checkpoint.recipe.fingerprint} {device}"

    @property
    def precision(self) -> dict[Modality, Precision]:
        """What each encoder computes in."""
        specs = {spec.modality: spec for spec in self.checkpoint.recipe.encoders}
        return {name: specs[name].precision for name in self.modalities}

    @property
    def decode(self) -> DecodeConfig | None:
        """How its clips are read; None where it reads text alone."""
        return self.checkpoint.recipe.decode

    @property
    def context(self) -> int:
        """Number of utterances before the current one that its text encoder reads with it."""
        return max(spec.context for spec in self.checkpoint.recipe.encoders)

    @property
    def turns_before(self) -> int:
        """Number of earlier utterances that the prediction of one depends on."""
        return 0 if self.checkpoint.model.context is None else MOST_TURNS - 1

    @property
    def turns_after(self) -> int:
        context = self.checkpoint.model.context
        return MOST_TURNS - 1 if context is not None and context.future else 0

    def encode(self, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        """Features of the run's modalities, one entry per clip; a modality that a clip does not
        have, or that its encoder gives no numbers for, is absent and in `failures`."""
        return encode_clips(self._encoders, clips)

    def predict(self, features: Sequence[ClipFeatures]) -> list[Prediction]:
        """One per clip, in order. Clips of one dialogue belong into one call where the run has
        dialogue context: their keys say which they are and in which order.

        A clip without any modality gets a prediction from nothing, as in `meld evaluate`: it has
        no parts.

        Raises ValueError where there is no clip.
        """
        if not features:
            raise ValueError("no clips to predict")
        data = self._to_data(features, [clip.utterance.key for clip in features])
        return self._predict(data)

    def predict_turns(
        self, features: Sequence[ClipFeatures], rows: Sequence[int]
    ) -> list[Prediction]:
        """Predicts some rows of one long dialogue, whose utterances `features` holds in order. Each
        sees
        `turns_before` before it and `turns_after` after it, if they exist, however long the
        dialogue is."""
        if not rows:
            return []
        windows = [
            range(max(row - self.turns_before, 0), min(row + self.turns_after + 1, len(features)))
            for row in rows
        ]
        seen = [features[turn] for window in windows for turn in window]
        keys = [
            ClipKey("test", number, turn)
            for number, window in enumerate(windows)
            for turn in window
        ]
        lengths = np.cumsum([0, *map(len, windows)])[:-1]
        at = [
            int(first) + row - window[0]
            for first, row, window in zip(lengths, rows, windows, strict=True)
        ]
        predicted = self._predict(self._to_data(seen, keys))
        return [predicted[index] for index in at]

    def _predict(self, data: FusionData) -> list[Prediction]:
        by_subset = predict_subsets(self.checkpoint, data, run=self.name)
        everything = by_subset[data.modalities]
        labels = self._labels(everything)
        shares = explain_modalities(self.checkpoint, by_subset, labels.emotion)
        alone = {name: self._labels(by_subset[name,]) for name in data.modalities}
        emotion, sentiment = self._temperatures
        of_emotion = np.exp(emotion.log_probabilities(everything.emotion_logits))
        of_sentiment = np.exp(sentiment.log_probabilities(everything.sentiment_logits))
        return [
            Prediction(
                emotion=_head(EMOTIONS, labels.emotion, of_emotion, row),
                sentiment=_head(SENTIMENTS, labels.sentiment, of_sentiment, row),
                parts=_parts(shares, alone, row),
            )
            for row in range(len(data))
        ]

    @property
    def _temperatures(self) -> tuple[Temperature, Temperature]:
        decoding = self.checkpoint.decoding
        if decoding is None:
            return Temperature(), Temperature()
        return decoding.emotion, decoding.sentiment

    def _labels(self, predictions: Predictions) -> JointLabels:
        if self.checkpoint.decoding is None:
            return JointLabels(
                emotion=predictions.predicted_emotion, sentiment=predictions.predicted_sentiment
            )
        return decode(
            self.checkpoint.decoding, predictions.emotion_logits, predictions.sentiment_logits
        )

    def _to_data(self, clips: Sequence[ClipFeatures], keys: Sequence[ClipKey]) -> FusionData:
        """The same values that a cache would hold, without labels."""
        names = self.modalities
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
            keys=tuple(keys),
            text=tuple(clip.utterance.text for clip in clips),
            speaker=tuple(clip.utterance.speaker for clip in clips),
        )


def _check_precision(precision: Precision, device: str) -> None:
    """A CPU computes in any precision, if slowly."""
    if precision == "bfloat16" and device == "cuda" and not torch.cuda.is_bf16_supported():
        raise UsageError(
            "--precision bfloat16: this GPU does not support it; use --precision float32"
        )


def _recipe_of(recipe: FeatureRecipe, choices: Sequence[EncoderChoice]) -> FeatureRecipe:
    """With the encoders as they compute now."""
    specs = {choice.spec.modality: choice.spec for choice in choices}
    encoders = tuple(specs.get(spec.modality, spec) for spec in recipe.encoders)
    return replace(recipe, encoders=encoders)


def _head(
    names: Sequence[str], labels: Labels, probabilities: NDArray[np.float64], row: int
) -> HeadPrediction:
    """probabilities: float64 [rows, classes]"""
    return HeadPrediction(
        label=names[labels[row]],
        probabilities=dict(zip(names, probabilities[row].tolist(), strict=True)),
    )


def _parts(
    shares: ModalityShares, alone: Mapping[Modality, JointLabels], row: int
) -> tuple[Part, ...]:
    strength = np.abs(shares.values[row])  # [modalities]; 0 where one is absent
    total = float(strength.sum())
    return tuple(
        Part(
            modality=modality,
            support=float(shares.values[row, column]),
            share=float(strength[column]) / total if total else 0.0,
            alone=Alone(
                emotion=EMOTIONS[alone[modality].emotion[row]],
                sentiment=SENTIMENTS[alone[modality].sentiment[row]],
            ),
        )
        for column, modality in enumerate(shares.modalities)
        if shares.present[row, column]
    )
