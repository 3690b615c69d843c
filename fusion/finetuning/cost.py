"""What a fine-tuning will cost, said before it is spent."""

from dataclasses import dataclass
from typing import Any, cast

from fusion.finetuning.endtoend import EndToEnd, count_parameters
from fusion.finetuning.loop import TuneConfig, micro_batch_size
from fusion.finetuning.setup import LiveData
from pipeline.recipe import DecodeConfig

_GIB = 2**30
# Weights, gradients and AdamW's two moments, float32.
_BYTES_TRAINED, _BYTES_FROZEN = 16, 4
# What a backward pass keeps, measured on the CPU (LOG.md); autocast keeps much of a transformer in
# float32, so there both precisions are alike.
_TEXT_BYTES_PER_HIDDEN = 100  # of each token and layer
_TEXT_BYTES_PER_ATTENTION = 16  # of each pair of tokens, head and layer
_VIDEO_VALUES_PER_PIXEL = 450  # of frames x height x width of the crop


@dataclass(frozen=True, kw_only=True)
class FinetunePlan:
    """memory_gib: weights, optimiser and one micro-batch, in each worker; an estimate."""

    clips: int
    steps_per_epoch: int
    epochs: int
    trainable: int
    frozen: int
    memory_gib: float
    checkpoint_gib: float
    precision: str

    def __str__(self) -> str:
        return (
            f"plan: {self.clips:,} clips, {self.steps_per_epoch:,} steps x {self.epochs} epochs in "
            f"{self.precision}; parameters {self.trainable / 1e6:.1f} M trainable, "
            f"{self.frozen / 1e6:.1f} M frozen; about {self.memory_gib:.1f} GiB of memory beside "
            f"the program's own, {self.checkpoint_gib:.1f} GiB of disk for checkpoints"
        )


def make_plan(model: EndToEnd, live: LiveData, config: TuneConfig) -> FinetunePlan:
    trainable, frozen = count_parameters(model)
    weights = _BYTES_TRAINED * trainable + _BYTES_FROZEN * frozen
    return FinetunePlan(
        clips=len(live.train),
        steps_per_epoch=config.steps(len(live.train)),
        epochs=config.epochs,
        trainable=trainable,
        frozen=frozen,
        memory_gib=(weights + _activation_bytes(model, live, config)) / _GIB,
        checkpoint_gib=(12 * trainable + 4 * frozen + 4 * (trainable + frozen)) / _GIB,
        precision=model.precision,
    )


def _activation_bytes(model: EndToEnd, live: LiveData, config: TuneConfig) -> float:
    rows = micro_batch_size(config, live.train)
    total = 0.0
    if "text" in live.unfrozen:
        text = cast(Any, model.encoders.by_modality["text"]).model.config
        longest = max(live.train.lengths)
        total += (
            rows
            * longest
            * text.num_hidden_layers
            * (
                _TEXT_BYTES_PER_HIDDEN * text.hidden_size
                + _TEXT_BYTES_PER_ATTENTION * longest * text.num_attention_heads
            )
        )
    if "video" in live.unfrozen:
        decode = live.recipe.decode
        assert decode is not None
        value_bytes = 2 if model.precision == "bfloat16" else 4
        total += value_bytes * _VIDEO_VALUES_PER_PIXEL * rows * _pixels(decode, live)
    return total


def _pixels(decode: DecodeConfig, live: LiveData) -> int:
    height, width = live.train.crop
    return decode.num_frames * height * width
