"""Computes a run by PyTorch: the encoders as they extracted, the fusion model as it was trained."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fusion.data.split import FusionData
from fusion.inference.checkpoint import Checkpoint, read_checkpoint
from fusion.inference.encoders import find_encoders_of
from fusion.inference.predict import predict_data
from fusion.inference.runtime import FeatureRows, HeadLogits, RuntimeName
from fusion.labels import UNLABELLED
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import compute_in
from pipeline.encoders.encoder import EncoderChoice
from pipeline.errors import UsageError
from pipeline.recipe import FeatureRecipe, Precision
from pipeline.schema import ClipFeatures, DecodedClip, Modality

log = logging.getLogger(__name__)


class PyTorchRuntime:
    """`checkpoint.recipe` has the encoders in the precision that they compute in."""

    name: RuntimeName = "torch"

    def __init__(self, checkpoint: Checkpoint, encoders: Encoders, device: str) -> None:
        self.checkpoint = checkpoint
        self.encoders = encoders
        self.device = device

    @classmethod
    def load(
        cls,
        run: Path,
        *,
        weights_dir: Path | None = None,
        encoders: Path | None = None,
        device: str = "cpu",
        precision: Precision | None = None,
    ) -> "PyTorchRuntime":
        """Arguments and errors as in `Predictor.load`."""
        checkpoint = read_checkpoint(run)
        choices = find_encoders_of(run, checkpoint, weights_dir=weights_dir, encoders=encoders)
        if precision is not None:
            _check_precision(precision, device)
            choices = compute_in(choices, precision)
            checkpoint = replace(checkpoint, recipe=_recipe_of(checkpoint.recipe, choices))
        checkpoint.model.to(device)
        loaded = Encoders(choices, checkpoint.recipe.decode).to(device)
        told = (
            f"{each.spec.modality} by {each.spec.name} in {each.spec.precision}" for each in choices
        )
        log.info("model %s (%s) on %s", run.resolve(), ", ".join(told), device)
        return cls(checkpoint, loaded, device)

    @property
    def precision(self) -> Mapping[Modality, Precision]:
        specs = {spec.modality: spec for spec in self.checkpoint.recipe.encoders}
        return {name: specs[name].precision for name in self.checkpoint.dims.names}

    def describe(self) -> Mapping[str, str]:
        return {
            "threads": str(torch.get_num_threads()),
            "kernels": torch.backends.cpu.get_cpu_capability(),
        }

    def encode(self, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        return encode_clips(self.encoders, clips)

    def fuse(self, rows: FeatureRows) -> HeadLogits:
        output = predict_data(self.checkpoint, self._to_data(rows))
        return HeadLogits(
            output.emotion_logits.cpu().double().numpy(),
            output.sentiment_logits.cpu().double().numpy(),
        )

    def _to_data(self, rows: FeatureRows) -> FusionData:
        """The same values that a cache would hold, without labels."""
        unlabelled = torch.full((len(rows),), UNLABELLED, dtype=torch.int64)
        return FusionData(
            split="test",
            recipe=self.checkpoint.recipe,
            input="raw",
            modalities=rows.modalities,
            features={name: torch.from_numpy(values) for name, values in rows.features.items()},
            present=torch.from_numpy(rows.present),
            emotion=unlabelled,
            sentiment=unlabelled,
            keys=rows.keys,
            text=rows.text,
            speaker=rows.speaker,
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
