"""A trained run with its encoders: decoded clips in, predictions out.

clips -> encode_clips -> features -> fusion model, with every subset of modalities
      -> temperatures, joint labels, Shapley values -> one Prediction a clip
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.inference.bundle import (
    FUSION_GRAPH,
    GRAPH_INDEX,
    GRAPHS,
    choose_runtime,
    read_export,
)
from fusion.inference.decoding import JointLabels, decode
from fusion.inference.description import WEIGHTS, RunDescription, read_description
from fusion.inference.prediction import Alone, HeadPrediction, Part, Prediction
from fusion.inference.predictions import Predictions
from fusion.inference.runtime import FeatureRows, Runtime, RuntimeName
from fusion.inference.shapley import ModalityShares, explain_modalities
from fusion.inference.subsets import choose_subsets
from fusion.inference.temperature import Temperature
from fusion.labels import UNLABELLED, Labels
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
from pipeline.system.extras import needs_extra

log = logging.getLogger(__name__)

_WITHOUT_TORCH = ", or name a bundle that has ONNX graphs: meld export --onnx"
# The length of MELD's longest dialogue. A model trained on those would not handle the thousand
# utterances of an hour well.
MOST_TURNS = 33
# Where windows of a dialogue are cut depends on all that was said before.
ALL_BEFORE = 10**9


class Predictor:
    """Predicts clips. `meld evaluate` gives the same probabilities for the same clips, up to the
    rounding of other batches.

    name:        of the run
    description: what it is, as its `config.json` says
    runtime:     what computes it
    fingerprint: SHA-256 (hex) of its weights
    """

    def __init__(
        self, name: str, description: RunDescription, runtime: Runtime, fingerprint: str = ""
    ) -> None:
        self.name = name
        self.description = description
        self.runtime = runtime
        self.fingerprint = fingerprint

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        weights_dir: Path | None = None,
        encoders: Path | None = None,
        device: str = "cpu",
        precision: Precision | None = None,
        runtime: RuntimeName | None = None,
    ) -> "Predictor":
        """Reads the run once, finds its encoders and loads them; arguments as in
        `find_encoders_of`.

        precision: precision of the encoders that support it; None takes that of the features which
            the run was trained on, and only that gives the probabilities of `meld evaluate`
        runtime: what computes it; None takes PyTorch where it is installed and the encoders are
            there for it, else the graphs of a bundle

        Raises:
            UsageError: none of its encoders, or not this machine, can compute in that precision;
                the run has no graphs, or an argument says nothing to them; what computes it is not
                installed.
            MismatchError: the run was trained on 128-d embeddings, whose projection lies with the
                features and not with the run; its features are of another revision; one of its
                heads never learned; or encoders other than its own.
            InputError, StorageError, WeightsMissing: the run, or something it needs, is missing.
        """
        description, exported = read_description(run), read_export(run)
        check_predicts(run, description)
        if runtime is None:
            runtime = choose_runtime(exported)
            if runtime == "onnx" and exported is not None and "torch" in exported["runtimes"]:
                log.info("PyTorch is not installed: %s is computed by its ONNX graphs", run)
        if runtime == "onnx":
            given = {"weights_dir": weights_dir, "encoders": encoders, "precision": precision}
            _check_graphs(run, exported, given, device)
            return cls._load_graphs(run, description, exported or {})
        if exported is not None and "torch" not in exported["runtimes"]:
            raise UsageError(
                f"--runtime torch: {run} holds ONNX graphs alone; leave the option out"
            )
        # PyTorch and the encoders' libraries take seconds to import.
        with needs_extra("torch", _WITHOUT_TORCH):
            from fusion.inference.pytorch import PyTorchRuntime

        computed = PyTorchRuntime.load(
            run, weights_dir=weights_dir, encoders=encoders, device=device, precision=precision
        )
        fingerprint = hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()
        return cls(run.resolve().name, computed.checkpoint, computed, fingerprint)

    @classmethod
    def _load_graphs(
        cls, run: Path, description: RunDescription, exported: Mapping[str, Any]
    ) -> "Predictor":
        with needs_extra("onnx"):
            from fusion.inference.onnx_runtime import OnnxRuntime

        files = exported.get("files")
        digest = files.get(f"{GRAPHS}/{FUSION_GRAPH}") if isinstance(files, dict) else None
        computed = OnnxRuntime.load(run / GRAPHS, description, sha256=digest)
        # Graphs in float32 are the run's weights; others are a model of their own.
        decides = WEIGHTS if set(computed.precision.values()) == {"float32"} else GRAPH_INDEX
        fingerprint = hashlib.sha256((run / decides).read_bytes()).hexdigest()
        return cls(run.resolve().name, description, computed, fingerprint)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The modalities that the run takes."""
        return self.description.dims.names

    @property
    def word_modalities(self) -> tuple[Modality, ...]:
        """Those that are not in a media file: text."""
        return tuple(name for name in self.modalities if name not in MEDIA)

    @property
    def identity(self) -> str:
        """Identifies everything that decides the probabilities: weights, encoders, what computes
        them and on what."""
        computed = f"{self.runtime.name} {self.runtime.device}"
        return f"{self.fingerprint} {self.recipe.fingerprint} {computed}"

    @property
    def recipe(self) -> FeatureRecipe:
        """How the features it understands are made."""
        return self.description.recipe

    @property
    def precision(self) -> Mapping[Modality, str]:
        """What each encoder computes in."""
        return self.runtime.precision

    @property
    def decode(self) -> DecodeConfig | None:
        """How its clips are read; None where it reads text alone."""
        return self.recipe.decode

    @property
    def context(self) -> int:
        """Number of utterances before the current one that its text encoder reads with it."""
        if any(spec.dialogue != "none" for spec in self.recipe.encoders):
            return ALL_BEFORE
        return max(spec.context for spec in self.recipe.encoders)

    @property
    def turns_before(self) -> int:
        """Number of earlier utterances that the prediction of one depends on."""
        return 0 if self.description.dims.model.context == "none" else MOST_TURNS - 1

    @property
    def turns_after(self) -> int:
        return MOST_TURNS - 1 if self.description.dims.model.future else 0

    def encode(self, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        """Features of the run's modalities, one entry per clip; a modality that a clip does not
        have, or that its encoder gives no numbers for, is absent and in `failures`."""
        return self.runtime.encode(clips)

    def predict(self, features: Sequence[ClipFeatures]) -> list[Prediction]:
        """One per clip, in order. Clips of one dialogue belong into one call where the run has
        dialogue context: their keys say which they are and in which order.

        A clip without any modality gets a prediction from nothing, as in `meld evaluate`: it has
        no parts.

        Raises ValueError where there is no clip, CacheCorrupt where the run computes no numbers.
        """
        if not features:
            raise ValueError("no clips to predict")
        keys = [clip.utterance.key for clip in features]
        return self._predict(FeatureRows.of(self.description.dims, features, keys))

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
        predicted = self._predict(FeatureRows.of(self.description.dims, seen, keys))
        return [predicted[index] for index in at]

    def _predict(self, rows: FeatureRows) -> list[Prediction]:
        by_subset = {
            subset: self._predictions(rows.hide_all_but(subset))
            for subset in choose_subsets(rows.modalities)
        }
        everything = by_subset[rows.modalities]
        labels = self._labels(everything)
        shares = explain_modalities(self.description, by_subset, labels.emotion)
        alone = {name: self._labels(by_subset[name,]) for name in rows.modalities}
        emotion, sentiment = self._temperatures
        of_emotion = np.exp(emotion.log_probabilities(everything.emotion_logits))
        of_sentiment = np.exp(sentiment.log_probabilities(everything.sentiment_logits))
        return [
            Prediction(
                emotion=_head(EMOTIONS, labels.emotion, of_emotion, row),
                sentiment=_head(SENTIMENTS, labels.sentiment, of_sentiment, row),
                parts=_parts(shares, alone, row),
            )
            for row in range(len(rows))
        ]

    @property
    def _temperatures(self) -> tuple[Temperature, Temperature]:
        decoding = self.description.decoding
        if decoding is None:
            return Temperature(), Temperature()
        return decoding.emotion, decoding.sentiment

    def _labels(self, predictions: Predictions) -> JointLabels:
        if self.description.decoding is None:
            return JointLabels(
                emotion=predictions.predicted_emotion, sentiment=predictions.predicted_sentiment
            )
        return decode(
            self.description.decoding, predictions.emotion_logits, predictions.sentiment_logits
        )

    def _predictions(self, rows: FeatureRows) -> Predictions:
        logits = self.runtime.fuse(rows)
        unlabelled = np.full(len(rows), UNLABELLED, np.int64)
        return Predictions(
            run=self.name,
            split="test",
            keys=rows.keys,
            text=rows.text,
            speaker=rows.speaker,
            modalities=rows.modalities,
            present=rows.present,
            emotion=unlabelled,
            sentiment=unlabelled,
            emotion_logits=logits.emotion,
            sentiment_logits=logits.sentiment,
        )


def _check_graphs(
    run: Path, exported: Mapping[str, Any] | None, given: Mapping[str, object], device: str
) -> None:
    """Raises UsageError where there are no graphs, or an argument has no effect on them."""
    if exported is None or "onnx" not in exported["runtimes"]:
        raise UsageError(
            f"--runtime onnx: {run} has no ONNX graphs; write them with: meld export --onnx"
        )
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"--{name.replace('_', '-')} {value}: the ONNX graphs of a bundle have their "
                "weights and precision in them; leave the option out"
            )
    if device != "cpu":
        raise UsageError(f"--device {device}: ONNX graphs are computed on the CPU")


def check_predicts(run: Path, description: RunDescription) -> None:
    """Raises MismatchError where the run cannot predict from media; the message says what can."""
    if description.dims.input != "raw":
        raise MismatchError(
            f"{run} was trained on 128-d embeddings, whose projection is no part of it; "
            "train a run on raw features: meld train-fusion --input raw"
        )
    if description.recipe.revision != REVISION:
        raise MismatchError(
            f"{run} was trained on features of revision {description.recipe.revision}, and this "
            f"program makes those of revision {REVISION}; extract and train again"
        )
    if description.untrained:
        [head] = description.untrained
        raise MismatchError(
            f"{run}: its {head} head was trained without labels, so its {head} predictions are "
            f"noise; train a run on a corpus that has {head} labels as well"
        )


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
