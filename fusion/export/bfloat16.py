"""A run whose encoders compute in bfloat16: half of the bytes, and twice the speed where the
processor or the GPU has instructions for it."""

from dataclasses import replace
from pathlib import Path

from fusion.inference.predictor import Predictor
from fusion.inference.pytorch import PyTorchRuntime
from pipeline.encode import Encoders
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.registry import find_entry
from pipeline.errors import UsageError


def check_bfloat16(run: Path, predictor: Predictor) -> None:
    """Raises UsageError where no encoder would change."""
    for spec in predictor.recipe.encoders:
        changes = spec.precision != "bfloat16" and find_entry(spec.modality, spec.name).autocast
        if spec.modality in predictor.modalities and changes:
            return
    told = ", ".join(
        f"{spec.modality} by {spec.name} in {spec.precision}" for spec in predictor.recipe.encoders
    )
    raise UsageError(
        f"--quantise bfloat16: no encoder of {run} would change ({told}); leave it out"
    )


def in_bfloat16(predictor: Predictor) -> Predictor:
    """The same run with the encoders that can compute in bfloat16 doing so, fine-tuned ones too;
    an encoder that computes in float32 alone keeps to it.

    predictor: by PyTorch
    """
    runtime = predictor.runtime
    assert isinstance(runtime, PyTorchRuntime)
    checkpoint = runtime.checkpoint
    choices = tuple(_rounded(choice) for choice in runtime.encoders.choices)
    specs = {choice.spec.modality: choice.spec for choice in choices}
    recipe = replace(
        checkpoint.recipe,
        encoders=tuple(specs.get(spec.modality, spec) for spec in checkpoint.recipe.encoders),
    )
    checkpoint = replace(checkpoint, recipe=recipe)
    rounded = PyTorchRuntime(checkpoint, Encoders(choices, recipe.decode), runtime.device)
    return Predictor(predictor.name, checkpoint, rounded, predictor.fingerprint)


def _rounded(choice: EncoderChoice) -> EncoderChoice:
    if not find_entry(choice.spec.modality, choice.spec.name).autocast:
        return choice
    return replace(choice, spec=replace(choice.spec, precision="bfloat16"))
