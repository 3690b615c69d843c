"""The training loop on features: one model, or many of one shape as one batched model. It works on
tensors in memory.

Batches are taken from whole tensors by a permutation, after they were standardised once: a
DataLoader over the same tensors takes nearly twice as long, one over cache rows 20 times.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from threading import Event, Lock

import torch
from torch import Tensor

from fusion.data.batches import Rows, SideBySide, epoch_batches, fuse_rows
from fusion.data.split import FusionData
from fusion.evaluation.scores import selection_score, weighted_f1
from fusion.inference.predict import predict
from fusion.model.dropout import MaskSource
from fusion.model.fusion import FusionModel
from fusion.training.batched import Together, Weights
from fusion.training.history import EpochResult
from fusion.training.losses import LossConfig, MultiTaskLoss
from fusion.training.optimiser import AdamW
from pipeline.errors import LossNotFinite

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train. The defaults were chosen on MELD's dev split and on a small generated corpus.

    epochs:           maximum number of epochs
    batch_size:       rows per step; None takes 256, or less where that would leave an epoch under
                      32 steps
    learning_rate:    peak learning rate of AdamW; 3e-4 with a warm start
    weight_decay:     weight decay of AdamW
    warmup:           share of all steps in which the learning rate rises linearly; after that it
                      falls by a cosine
    clip_norm:        largest gradient norm; larger gradients are scaled down to it
    modality_dropout: probability that a present modality of a row is treated as absent, so that the
                      model learns to do without it; at least one modality of a row is kept
    patience:         number of epochs without a better dev score after which training stops
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

    def steps(self, num_rows: int) -> int:
        """Number of steps in one epoch. A few hundred rows in batches of 256 would give too few."""
        return math.ceil(num_rows / (self.batch_size or min(256, max(16, num_rows // 32))))


@dataclass(frozen=True, kw_only=True)
class FitResult:
    history: tuple[EpochResult, ...]
    best: EpochResult


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `fit_together` needs of one training.

    model: fitted to train's features (`fit_standardisation`), on the device of both rows
    seed:  random seed of everything after the initial weights
    is_trained: the model is trained already (warm start): it is measured as epoch 0, and kept
        unless an epoch is better
    chooses_epoch: False runs all epochs and keeps the last, whatever dev says
    """

    model: FusionModel
    train: Rows
    dev: Rows
    seed: int
    is_trained: bool = False
    chooses_epoch: bool = True


def fit(
    model: FusionModel,
    train: FusionData,
    dev: FusionData,
    config: FitConfig,
    *,
    seed: int,
    is_trained: bool = False,
    on_epoch: Callable[[EpochResult], None] = lambda result: None,
) -> FitResult:
    """Trains `model` in place, on its device, and leaves it with the best epoch's weights.

    `model` and `is_trained` as in `Training`. `seed` decides everything random; on one machine's
    CPU the same seed gives the same bits.
    Raises LossNotFinite as soon as the loss is no longer a number.
    """
    device = next(model.parameters()).device
    training = Training(
        model=model,
        train=Rows.prepare(model, train, device),
        dev=Rows.prepare(model, dev, device),
        seed=seed,
        is_trained=is_trained,
    )
    return fit_together([training], config, lambda _, result: on_epoch(result))[0]


def fit_together(
    trainings: Sequence[Training],
    config: FitConfig,
    on_epoch: Callable[[int, EpochResult], None] = lambda number, result: None,
    *,
    cores: int = 1,
) -> list[FitResult]:
    """Trains models of one shape as one batched model, each as `fit` would; `on_epoch` gets the
    number of the training, one call at a time.

    Raises LossNotFinite where a loss is no longer a number.

    cores: so many threads, each with batched models of its own. Two threads on one batched model
        would wait for each other after every small kernel, on a busy machine for most of the time.
        Which trainings share a batched model decides the last bits.
    """
    groups = _group(trainings, config, cores)
    stop, one_at_a_time = Event(), Lock()
    # Made one after another: drawing the masks' shapes borrows the process's random generator.
    loops = [_Loop([trainings[number] for number in group], config, stop) for group in groups]
    waiting = iter(list(zip(groups, loops, strict=True)))  # a list's iterator: threads may share it

    def run_those_waiting() -> None:
        torch.set_num_threads(1)  # holds for the calling thread
        try:
            for group, loop in waiting:
                for number, result in loop.run():
                    with one_at_a_time:
                        on_epoch(group[number], result)
        except Exception:  # raised by the thread that waits for this one
            stop.set()
            raise

    with one_thread(), ThreadPoolExecutor(cores) as pool:
        try:
            others = [pool.submit(run_those_waiting) for _ in groups[1:cores]]
            run_those_waiting()  # here, where Ctrl-C arrives
            for other in others:
                other.result()
        finally:
            stop.set()  # the pool waits for what still runs
    results: dict[int, FitResult] = {}
    for group, loop in zip(groups, loops, strict=True):
        results |= zip(group, loop.finish(), strict=True)
    return [results[number] for number in range(len(trainings))]


def _group(trainings: Sequence[Training], config: FitConfig, cores: int) -> list[list[int]]:
    """Which trainings share a batched model, by their numbers, the largest groups first.

    Only those that take equally many steps may: the optimiser counts its steps, and the learning
    rate follows them, for all of a batched model at once.
    """
    alike: dict[int, list[int]] = {}
    for number, training in enumerate(trainings):
        alike.setdefault(config.steps(len(training.train)), []).append(number)
    groups = [
        group[start::cores] for group in alike.values() for start in range(min(cores, len(group)))
    ]
    return sorted(groups, key=len, reverse=True)


class _Log:
    """One training's epochs, and the weights of its best."""

    history: list[EpochResult]
    best: EpochResult
    best_weights: Weights

    def __init__(self, *, chooses: bool) -> None:
        self.history = []
        self.stopped = False
        self.chooses = chooses

    def add(self, result: EpochResult, weights: Callable[[], Weights], patience: int) -> None:
        if not self.chooses or not self.history or result.score > self.best.score:
            self.best, self.best_weights = result, weights()
        elif result.epoch - self.best.epoch >= patience:
            log.info("stopped after epoch %d, the best was %d", result.epoch, self.best.epoch)
            self.stopped = True
        self.history.append(result)


class _Loop:
    """Some trainings, of equally many steps an epoch, as one batched model."""

    def __init__(self, trainings: Sequence[Training], config: FitConfig, stop: Event) -> None:
        self.trainings, self.config, self.stop = trainings, config, stop
        self.steps = config.steps(len(trainings[0].train))
        self.logs = [_Log(chooses=training.chooses_epoch) for training in trainings]
        model, rows = trainings[0].model, trainings[0].train
        self.device = rows.present.device
        self.with_context = model.context is not None
        self.side_by_side = SideBySide([training.train for training in trainings])
        self.together = Together([training.model for training in trainings])
        self.generators = [torch.Generator().manual_seed(t.seed) for t in trainings]
        one_row = rows.pick(torch.zeros(1, dtype=torch.int64))
        self.masks = MaskSource.of(model, lambda: fuse_rows(model, one_row))
        self.losses = [
            MultiTaskLoss.from_labels(config.loss, each.train.emotion, each.train.sentiment)
            for each in trainings
        ]
        self.optimiser = _build_optimiser(self.together.weights, config)
        self.factor = warm_up_then_fall(config.epochs * self.steps, config.warmup)
        self.epoch = self.steps_done = 0

    def run(self) -> Iterator[tuple[int, EpochResult]]:
        """Yields (training, result) for each start that counts, then for each epoch."""
        for number, training in enumerate(self.trainings):
            if training.is_trained:
                yield number, self._keep(number, None, time.perf_counter())
        while not self._is_done():
            yield from self._run_epoch()

    def _is_done(self) -> bool:
        return (
            self.stop.is_set()
            or self.epoch == self.config.epochs
            or all(each.stopped for each in self.logs)
        )

    def _run_epoch(self) -> Iterator[tuple[int, EpochResult]]:
        """Yields (training, result) for each that has not stopped."""
        self.epoch += 1
        started = time.perf_counter()
        each_ones = [
            epoch_batches(
                training.train.turns, self.steps, generator, whole_dialogues=self.with_context
            )
            for training, generator in zip(self.trainings, self.generators, strict=True)
        ]
        total = torch.zeros(len(self.trainings))
        for indices in zip(*each_ones, strict=True):
            if self.stop.is_set():
                return
            total += self._step(indices) * torch.tensor([len(index) for index in indices])
        for number, (training, log_of) in enumerate(zip(self.trainings, self.logs, strict=True)):
            if not log_of.stopped:
                train_loss = float(total[number]) / len(training.train)
                yield number, self._keep(number, train_loss, started)

    def finish(self) -> list[FitResult]:
        """Gives each model its best epoch's weights."""
        for log_of, training in zip(self.logs, self.trainings, strict=True):
            training.model.load_state_dict(log_of.best_weights, strict=False)
            training.model.eval()
        return [FitResult(history=tuple(each.history), best=each.best) for each in self.logs]

    def _step(self, indices: Sequence[Tensor]) -> Tensor:
        """indices: each training's rows -> float32 [trainings], the losses, on the CPU"""
        batch = self.side_by_side.pick([index.to(self.device) for index in indices])
        counts = [len(index) for index in indices]
        masks = self.masks.draw(counts, len(batch), self.generators)
        batch = replace(batch, present=self._hide_modalities(batch.present, counts))
        losses = self.together.losses(
            batch, {name: mask.to(self.device) for name, mask in masks.items()}, self.losses
        )
        self.optimiser.zero_grad()
        losses.sum().backward()
        self.together.clip_gradients(self.config.clip_norm)
        self.optimiser.step(self.learning_rate)
        self.steps_done += 1
        return self._check_numbers(losses.detach().cpu())

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.config.learning_rate * self.factor(self.steps_done)

    def _hide_modalities(self, present: Tensor, counts: Sequence[int]) -> Tensor:
        """Modality dropout, each training's own."""
        chance = self.config.modality_dropout
        hidden = present.clone()
        for own, count, generator in zip(hidden, counts, self.generators, strict=True):
            own[:count] = drop_modalities(own[:count], chance, generator)
        return hidden

    def _check_numbers(self, losses: Tensor) -> Tensor:
        if not torch.isfinite(losses).all():
            odd = losses[~torch.isfinite(losses)][0]
            raise LossNotFinite(
                f"the loss became {float(odd)} in epoch {self.epoch}; train with a lower "
                f"learning_rate than {self.config.learning_rate:g}"
            )
        return losses

    def _keep(self, number: int, train_loss: float | None, started: float) -> EpochResult:
        result = self._measure(number, train_loss, started)
        weights = partial(self.together.weights_of, number)
        self.logs[number].add(result, weights, self.config.patience)
        return result

    def _measure(self, number: int, train_loss: float | None, started: float) -> EpochResult:
        training = self.trainings[number]
        training.model.load_state_dict(self.together.weights_of(number), strict=False)
        dev = training.dev
        output = predict(training.model, dev)
        emotion = _f1(dev.emotion, output.emotion_logits)
        sentiment = _f1(dev.sentiment, output.sentiment_logits)
        return EpochResult(
            epoch=self.epoch,
            train_loss=train_loss,
            dev_loss=self.losses[number](output, dev.emotion, dev.sentiment).item(),
            dev_emotion_f1=emotion,
            dev_sentiment_f1=sentiment,
            score=selection_score([f1 for f1 in (emotion, sentiment) if f1 is not None]),
            learning_rate=self.learning_rate,
            seconds=time.perf_counter() - started,
        )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds all random numbers inside the block; the caller's generators are restored."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs PyTorch on one CPU core. With batches this small, more cores mostly wait for each other
    (on a busy machine many times as long), and the result would depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def drop_modalities(
    present: Tensor, chance: float, generator: torch.Generator | None = None
) -> Tensor:
    """present bool [batch, modalities] -> the same with some taken away, never a row's last.

    A row that would lose all that it has keeps all of it. `generator` is one of the CPU.
    """
    if chance == 0 or present.shape[1] == 1:
        return present
    kept = present & (torch.rand(present.shape, generator=generator) >= chance).to(present.device)
    return torch.where(kept.any(dim=1, keepdim=True), kept, present)


def _build_optimiser(weights: Weights, config: FitConfig) -> AdamW:
    """Only matrices decay: shrinking biases, norms, the layer mix or `absent` has no meaning."""
    matrices = [value for value in weights.values() if value.ndim > 2]  # [trainings, out, in]
    others = [value for value in weights.values() if value.ndim <= 2]
    return AdamW([(matrices, config.weight_decay), (others, 0.0)])


def warm_up_then_fall(steps: int, warmup: float) -> Callable[[int], float]:
    """Step -> factor on the learning rate: linear from near 0 to 1 during the share `warmup` of
    all steps, then half a cosine down to 0."""
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor


def _f1(labels: Tensor, logits: Tensor) -> float | None:
    return weighted_f1(labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy())
