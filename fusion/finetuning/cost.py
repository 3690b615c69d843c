"""Estimates the cost of a fine-tuning before it starts."""

from dataclasses import dataclass

from fusion.finetuning.endtoend import EndToEnd, count_parameters
from fusion.finetuning.loop import TuneConfig, micro_batch_size
from fusion.finetuning.setup import LiveData

_GIB = 2**30
# Weights, gradients and AdamW's two moments, float32.
_BYTES_TRAINED, _BYTES_FROZEN = 16, 4


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
    rows, longest = micro_batch_size(config, live.train), max(live.train.lengths)
    value_bytes = 2 if model.precision == "bfloat16" else 4
    return sum(
        model.encoders[name].activation_bytes(rows, longest, value_bytes) for name in live.unfrozen
    )
