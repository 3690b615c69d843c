"""The one training loop. It knows neither caches nor clips, only tensors in memory.

Rows are picked by a permutation of whole tensors, standardised once before the first epoch: a
DataLoader over the same tensors takes nearly twice as long, one over cache rows 20 times.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fusion.data import FusionData
from fusion.losses import LossConfig, MultiTaskLoss
from fusion.metrics import selection_score, weighted_f1
from fusion.model import FusionOutput, LateFusion
from pipeline.errors import UsageError
from pipeline.schema import Modality

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train. The defaults were chosen on MELD's dev split and on a small made corpus.

    batch_size:       None takes 256, or less where that would leave an epoch under 32 steps
    warmup:           share of all steps in which the learning rate rises; then it falls (cosine)
    modality_dropout: chance that a present modality of a row is taken for absent, which teaches
                      the model to do without it; a row never loses all
    patience:         epochs without a better dev score before training stops
    """

    epochs: int = 20
    batch_size: int | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0
    modality_dropout: float = 0.1
    patience: int = 8
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("warmup", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must not be negative, but is {self.weight_decay}")

    def rows_per_step(self, num_rows: int) -> int:
        """A few hundred rows in batches of 256 would be too few steps to learn anything."""
        return self.batch_size or min(256, max(16, num_rows // 32))


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One epoch, counted from 1. The F1s are weighted, and None where dev has no labels.

    score: their mean, by which the best epoch is chosen
    """

    epoch: int
    train_loss: float
    dev_loss: float
    dev_emotion_f1: float | None
    dev_sentiment_f1: float | None
    score: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class FitResult:
    history: tuple[EpochResult, ...]
    best: EpochResult


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows ready for `LateFusion.fuse`: features standardised, shapes as in `FusionData`."""

    features: dict[Modality, Tensor]
    present: Tensor
    emotion: Tensor
    sentiment: Tensor

    @classmethod
    def prepare(cls, model: LateFusion, data: FusionData, device: torch.device) -> "Rows":
        features = {name: values.to(device) for name, values in data.features.items()}
        present = data.present.to(device)
        with torch.no_grad():
            standardised = model.standardise(features, present)
        return cls(
            features=standardised,
            present=present,
            emotion=data.emotion.to(device),
            sentiment=data.sentiment.to(device),
        )

    def __len__(self) -> int:
        return len(self.present)

    def pick(self, index: Tensor) -> "Rows":
        return Rows(
            features={name: values[index] for name, values in self.features.items()},
            present=self.present[index],
            emotion=self.emotion[index],
            sentiment=self.sentiment[index],
        )


def fit(
    model: LateFusion,
    train: FusionData,
    dev: FusionData,
    config: FitConfig,
    *,
    seed: int,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> FitResult:
    """Trains `model` in place, on its device, and leaves it with the best epoch's weights.

    `model` must have been fitted to train's features (`fit_standardisation`). `seed` decides
    everything random; on one machine's CPU the same seed gives the same bits.
    Raises UsageError as soon as the loss is no longer a number.
    """
    device = next(model.parameters()).device
    train_rows, dev_rows = Rows.prepare(model, train, device), Rows.prepare(model, dev, device)
    loss = MultiTaskLoss.from_labels(config.loss, train_rows.emotion, train_rows.sentiment)
    optimiser = _build_optimiser(model, config)
    schedule = _build_schedule(optimiser, config, num_rows=len(train))
    batch_size = config.rows_per_step(len(train))
    history: list[EpochResult] = []
    best: EpochResult | None = None
    with seeded(seed), one_thread():
        for epoch in range(1, config.epochs + 1):
            started = time.perf_counter()
            model.train()
            losses = []
            for index in torch.randperm(len(train)).to(device).split(batch_size):
                batch = train_rows.pick(index)
                output = model.fuse(
                    batch.features, drop_modalities(batch.present, config.modality_dropout)
                )
                value = loss(output, batch.emotion, batch.sentiment)
                losses.append(_check_number(value, epoch, config) * len(index))
                optimiser.zero_grad()
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                optimiser.step()
                schedule.step()
            result = _measure(
                model,
                dev_rows,
                loss,
                epoch=epoch,
                train_loss=sum(losses) / len(train),
                learning_rate=float(schedule.get_last_lr()[0]),
                started=started,
            )
            history.append(result)
            on_epoch(result)
            if best is None or result.score > best.score:
                best, best_weights = result, copy.deepcopy(model.state_dict())
            elif epoch - best.epoch >= config.patience:
                log.info("stopped after epoch %d, the best was epoch %d", epoch, best.epoch)
                break
    assert best is not None  # there is at least one epoch
    model.load_state_dict(best_weights)
    model.eval()
    return FitResult(history=tuple(history), best=best)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Everything random inside follows `seed`; the caller's generators stay as they were."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one CPU core. Batches this small keep more cores waiting on each other (on a
    busy machine for many times the work), and bits then do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def drop_modalities(present: Tensor, chance: float) -> Tensor:
    """present bool [batch, modalities] -> the same with some taken away, never a row's last.

    A row that would lose all that it has keeps all of it.
    """
    if chance == 0 or present.shape[1] == 1:
        return present
    kept = present & (torch.rand(present.shape, device=present.device) >= chance)
    return torch.where(kept.any(dim=1, keepdim=True), kept, present)


@torch.no_grad()
def predict(model: LateFusion, rows: Rows, *, batch_size: int = 4096) -> FusionOutput:
    """Logits of every row, without dropout."""
    model.eval()
    outputs = [
        model.fuse(batch.features, batch.present)
        for batch in map(rows.pick, torch.arange(len(rows)).split(batch_size))
    ]
    return FusionOutput(
        torch.cat([output.emotion_logits for output in outputs]),
        torch.cat([output.sentiment_logits for output in outputs]),
    )


def _build_optimiser(model: LateFusion, config: FitConfig) -> torch.optim.Optimizer:
    """Only matrices decay: shrinking biases, norms, the layer mix or `absent` has no meaning."""
    matrices = [weights for weights in model.parameters() if weights.ndim > 1]
    others = [weights for weights in model.parameters() if weights.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _build_schedule(
    optimiser: torch.optim.Optimizer, config: FitConfig, *, num_rows: int
) -> torch.optim.lr_scheduler.LambdaLR:
    steps = config.epochs * math.ceil(num_rows / config.rows_per_step(num_rows))
    return torch.optim.lr_scheduler.LambdaLR(optimiser, warm_up_then_fall(steps, config.warmup))


def warm_up_then_fall(steps: int, warmup: float) -> Callable[[int], float]:
    """Step -> factor on the learning rate: linear from near 0 to 1 during the share `warmup` of
    all steps, then half a cosine down to 0."""
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor


def _check_number(loss: Tensor, epoch: int, config: FitConfig) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise UsageError(
            f"the loss became {value} in epoch {epoch}; train with a lower learning_rate than "
            f"{config.learning_rate:g}"
        )
    return value


def _measure(
    model: LateFusion,
    dev: Rows,
    loss: MultiTaskLoss,
    *,
    epoch: int,
    train_loss: float,
    learning_rate: float,
    started: float,
) -> EpochResult:
    output = predict(model, dev)
    emotion = _f1(dev.emotion, output.emotion_logits)
    sentiment = _f1(dev.sentiment, output.sentiment_logits)
    return EpochResult(
        epoch=epoch,
        train_loss=train_loss,
        dev_loss=loss(output, dev.emotion, dev.sentiment).item(),
        dev_emotion_f1=emotion,
        dev_sentiment_f1=sentiment,
        score=selection_score([f1 for f1 in (emotion, sentiment) if f1 is not None]),
        learning_rate=learning_rate,
        seconds=time.perf_counter() - started,
    )


def _f1(labels: Tensor, logits: Tensor) -> float | None:
    return weighted_f1(labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy())
