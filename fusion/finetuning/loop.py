"""The fine-tuning loop: one step after another, in one process or in several workers.

Everything random in a step is drawn from (seed, epoch, step), so a killed run that is resumed at
its last checkpoint takes the same steps as an unbroken one. The batch of a step is the same however
it is divided among workers: the loss is divided by the weight of the whole batch, and gradients are
summed (all-reduce).
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fusion.evaluation.scores import selection_score, weighted_f1
from fusion.finetuning.averaging import MovingAverage
from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.clips import (
    ClipDataset,
    Collate,
    RawBatch,
    pack,
    seed_of,
    shuffled_batches,
    sorted_batches,
)
from fusion.finetuning.endtoend import EndToEnd, LearningRates, parameter_groups
from fusion.finetuning.workers import Worker
from fusion.model.fusion import FusionOutput
from fusion.training.distil import SoftTargets
from fusion.training.fit import drop_modalities, seeded, warm_up_then_fall
from fusion.training.history import EpochResult
from fusion.training.losses import LossConfig, MultiTaskLoss
from pipeline.encoders.augment import AugmentConfig
from pipeline.errors import LossNotFinite, MeldError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """How to fine-tune. Defaults were chosen on MELD's dev split, see LOG.md.

    epochs:           maximum number of epochs
    batch_size:       rows per step, over all workers
    micro_batch_size: rows in memory at once (gradient accumulation); None takes the whole step, or
                      8 with video
    head_epochs:      number of epochs that train the heads alone before the encoders are unfrozen
                      (staged unfreezing)
    weight_decay:     weight decay of AdamW
    warmup:           share of all steps in which the learning rates rise linearly; after that they
                      fall by a cosine
    clip_norm:        largest gradient norm; larger gradients are scaled down to it
    modality_dropout: probability that a present modality of a row is treated as absent, so that the
                      model learns to do without it; at least one modality of a row is kept
    patience:         number of epochs without a better dev score after which training stops
    ema:              decay of an exponential moving average of the weights: epochs are measured
                      with it, and the run gets it, not the weights of the last step; 0 takes these
    train_batchnorm:  update the running statistics of BatchNorm; with a single worker only
    gradient_checkpointing: recompute intermediate values in the backward pass instead of keeping
                      them: slower, with much less memory
    checkpoint_every_s: seconds between checkpoints, so the work that a kill can cost; 0 saves after
                      every step
    loader_workers:   processes that read clips ahead; 0 reads in the training process, which costs
                      nothing on a CPU; None takes 4 if a GPU would wait for clips, else 0
    """

    epochs: int = 3
    batch_size: int = 32
    micro_batch_size: int | None = None
    head_epochs: int = 0
    learning_rates: LearningRates = field(default_factory=LearningRates)
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0
    modality_dropout: float = 0.1
    patience: int = 3
    ema: float = 0.0
    train_batchnorm: bool = False
    gradient_checkpointing: bool = False
    checkpoint_every_s: float = 120.0
    loader_workers: int | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.head_epochs < 0 or self.head_epochs >= self.epochs:
            raise ValueError(
                f"head_epochs must be in [0, epochs), not {self.head_epochs} of {self.epochs}"
            )
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size must be at most batch_size, the {self.batch_size} rows of a "
                f"step, not {self.micro_batch_size}"
            )
        for name in ("warmup", "modality_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not 0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm must be finite and above 0, not {self.clip_norm}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay must be finite and not negative, not {self.weight_decay}"
            )
        if not 0 <= self.checkpoint_every_s < math.inf:
            raise ValueError(
                f"checkpoint_every_s must be finite and not negative, not {self.checkpoint_every_s}"
            )
        if self.loader_workers is not None and self.loader_workers < 0:
            raise ValueError(f"loader_workers must be 0 or more, not {self.loader_workers}")

    def steps(self, num_rows: int) -> int:
        """In one epoch."""
        return math.ceil(num_rows / self.batch_size)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The state after a step, for a progress bar. rows: trained on so far, over all epochs."""

    epoch: int
    rows: int
    rows_in_all: int
    rows_per_s: float
    loss: float


class Tuning:
    """The state of one training, and the steps that move it.

    Resumes the training in `progress` if that holds an unfinished one.
    """

    def __init__(
        self,
        model: EndToEnd,
        train: ClipDataset,
        dev: ClipDataset,
        config: TuneConfig,
        seed: int,
        worker: Worker,
        progress: ProgressFolder,
        soft: SoftTargets | None = None,
    ) -> None:
        """soft: a teacher's probabilities, of all rows of train"""
        self.model, self.train, self.dev = model, train, dev
        self.config, self.seed = config, seed
        self.worker, self.progress, self.soft = worker, progress, soft
        data = train.data
        self.loss = MultiTaskLoss.from_labels(config.loss, data.emotion, data.sentiment)
        groups = parameter_groups(model, config.learning_rates, config.weight_decay)
        for group in groups:
            group["highest_lr"] = group["lr"]
        self.optimiser = torch.optim.AdamW(groups, fused=True)
        self.num_steps = config.steps(len(train))
        self.factor = warm_up_then_fall(config.epochs * self.num_steps, config.warmup)
        self.epoch, self.step = 1, 0
        self.losses: list[float] = []
        self.history: list[EpochResult] = []
        self.rows_per_s = 0.0
        self.average = MovingAverage(model, config.ema)
        self._restore()

    # ------------------------------------------------------------------------------ epochs

    def to_the_end(self, on_step: Callable[[StepResult], None]) -> None:
        """Trains the model in place and leaves it with the best epoch's weights.

        Raises LossNotFinite as soon as the loss is no longer a number.
        """
        with seeded(self.seed):
            self._train(on_step)
        self.worker.gather([])  # nobody looks for the best weights before they are written
        self.progress.load_best(self.model)
        self.model.eval()

    def _train(self, on_step: Callable[[StepResult], None]) -> None:
        if not self.history:
            self._keep(self._measure(epoch=0, seconds=0.0))  # what any epoch has to beat
        while not self._is_done():
            started = time.perf_counter()
            self._train_epoch(on_step)
            with self.average.in_place():
                self._keep(self._measure(epoch=self.epoch, seconds=time.perf_counter() - started))
            self.epoch, self.step, self.losses = self.epoch + 1, 0, []
            self._save()

    def _keep(self, result: EpochResult) -> None:
        self.history.append(result)
        if result is self.best:
            self.progress.save_best(self.model, self.worker)
        self.progress.write_history(self.history, self.worker)

    @property
    def best(self) -> EpochResult:
        return max(self.history, key=lambda result: result.score)  # the first of equals

    def _is_done(self) -> bool:
        done = self.epoch - 1
        # The heads' own epochs are a preparation: nobody's patience is tried by them.
        waited = done - max(self.best.epoch, self.config.head_epochs)
        return done == self.config.epochs or waited >= self.config.patience

    def _train_epoch(self, on_step: Callable[[StepResult], None]) -> None:
        self.model.let_encoders_learn(self.epoch > self.config.head_epochs)
        self.model.train()
        saved_s = time.monotonic()
        batches = shuffled_batches(
            self.train.lengths,
            self.config.batch_size,
            seed=self.seed,
            epoch=self.epoch,
            groups=self.train.groups,
        )
        todo = batches[self.step :]
        ready = self.load(self.train, [part for rows in todo for part in self.parts(rows)])
        for rows in todo:
            step_s = time.monotonic()
            loss = self.do_step(rows, ready)
            self.losses.append(loss * len(rows))
            self.step += 1
            on_step(self._tell(loss, num_rows=len(rows), seconds=time.monotonic() - step_s))
            if time.monotonic() - saved_s >= self.config.checkpoint_every_s:
                self._save()
                saved_s = time.monotonic()

    def _tell(self, loss: float, *, num_rows: int, seconds: float) -> StepResult:
        now = num_rows / seconds
        self.rows_per_s = 0.95 * self.rows_per_s + 0.05 * now if self.rows_per_s else now
        seen = min(self.step * self.config.batch_size, len(self.train))
        return StepResult(
            epoch=self.epoch,
            rows=(self.epoch - 1) * len(self.train) + seen,
            rows_in_all=self.config.epochs * len(self.train),
            rows_per_s=self.rows_per_s,
            loss=loss,
        )

    # ------------------------------------------------------------------------------- steps

    def do_step(self, rows: list[int], ready: Iterator[RawBatch]) -> float:
        """One step on the batch `rows`; this worker computes its share."""
        data, device = self.train.data, self.worker.device
        index = torch.tensor(rows)
        totals = self.loss.totals(data.emotion[index], data.sentiment[index])
        torch.manual_seed(seed_of(self.seed, "absent", self.epoch, self.step))
        visible = dict(
            zip(
                rows,
                drop_modalities(data.present[index], self.config.modality_dropout),
                strict=True,
            )
        )
        torch.manual_seed(seed_of(self.seed, "step", self.epoch, self.step, self.worker.rank))
        self.optimiser.zero_grad()
        loss = torch.zeros((), device=device)
        for _ in self.parts(rows):
            batch = next(ready).to(device)
            present = torch.stack([visible[row] for row in batch.rows.tolist()]).to(device)
            output = self.model(batch, present)
            value = self.loss_of(output, batch.rows, totals, num_rows=len(rows))
            value.backward()
            loss += value.detach()
        loss_value = self._sum_over_workers(loss)
        self._update()
        return loss_value

    def parts(self, rows: list[int]) -> list[list[int]]:
        """This worker's share of a batch, in parts that fit in memory."""
        mine = self._share_of(rows)
        size = micro_batch_size(self.config, self.train)
        return pack(mine, size, self.train.groups)

    def _share_of(self, rows: list[int]) -> list[int]:
        """Groups stay together. Without any, neighbours are of like length, and each worker has
        short ones and long ones."""
        rank, world = self.worker.rank, self.worker.world
        groups = list(dict.fromkeys(self.train.groups[row] for row in rows))
        mine = set(groups[rank::world])
        return [row for row in rows if self.train.groups[row] in mine]

    def loss_of(
        self,
        output: FusionOutput,
        rows: Tensor,
        totals: tuple[Tensor, Tensor] | None,
        *,
        num_rows: int | None = None,
    ) -> Tensor:
        """Computed on the CPU, where labels and class weights are; it is a few numbers.

        totals, num_rows: of the whole batch, of which `rows` may be a part
        """
        data = self.train.data
        logits = FusionOutput(output.emotion_logits.cpu(), output.sentiment_logits.cpu())
        soft = {head: values[rows] for head, values in (self.soft or {}).items()}
        loss = self.loss(
            logits,
            data.emotion[rows],
            data.sentiment[rows],
            totals,
            soft=soft,
            num_soft=num_rows,
        )
        return loss.to(output.emotion_logits.device)

    def _sum_over_workers(self, loss: Tensor) -> float:
        """Adds up every worker's loss and gradients; a worker without rows adds zeros.

        Not DistributedDataParallel: it takes the mean over workers, which is another loss where
        their rows weigh differently, and hangs where one of them has no row of a modality.
        """
        learning = [p for p in self.model.parameters() if p.requires_grad]
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in learning if p.grad is not None]
        self.worker.add_up([loss, *gradients])
        value = float(loss)
        if not math.isfinite(value):
            raise LossNotFinite(
                f"the loss became {value} in epoch {self.epoch}; fine-tune with lower "
                "learning_rates"
            )
        return value

    def _update(self) -> None:
        done = (self.epoch - 1) * self.num_steps + self.step
        for group in self.optimiser.param_groups:
            group["lr"] = group["highest_lr"] * self.factor(done)
        learning = [p for p in self.model.parameters() if p.requires_grad]
        torch.nn.utils.clip_grad_norm_(learning, self.config.clip_norm)
        self.optimiser.step()
        self.average.update()

    # ----------------------------------------------------------------------------- reading

    def load(self, clips: ClipDataset, parts: list[list[int]]) -> Iterator[RawBatch]:
        return load(clips, parts, self.worker, epoch=self.epoch, ahead=self.config.loader_workers)

    # --------------------------------------------------------------------------- measuring

    def _measure(self, *, epoch: int, seconds: float) -> EpochResult:
        output = predict_raw(
            self.model,
            self.dev,
            self.worker,
            batch_size=micro_batch_size(self.config, self.train),
            ahead=self.config.loader_workers,
        )
        data = self.dev.data
        emotion = _f1(data.emotion, output.emotion_logits)
        sentiment = _f1(data.sentiment, output.sentiment_logits)
        return EpochResult(
            epoch=epoch,
            train_loss=sum(self.losses) / len(self.train) if epoch else None,
            dev_loss=float(self.loss(output, data.emotion, data.sentiment)),
            dev_emotion_f1=emotion,
            dev_sentiment_f1=sentiment,
            score=selection_score([f1 for f1 in (emotion, sentiment) if f1 is not None]),
            learning_rate=max(group["lr"] for group in self.optimiser.param_groups),
            seconds=seconds,
        )

    # ---------------------------------------------------------------------- checkpoints

    def _save(self) -> None:
        state = {
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "history": [asdict(result) for result in self.history],
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.state(),
        }
        self.progress.save_last(state, self.worker)

    def _restore(self) -> None:
        state = self.progress.load_last()
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average.restore(state["average"])
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
        self.history = [EpochResult(**result) for result in state["history"]]


def micro_batch_size(config: TuneConfig, clips: ClipDataset) -> int:
    if config.micro_batch_size is not None:
        return config.micro_batch_size
    limits = [each.most_rows for each in clips.preparations.values() if each.most_rows is not None]
    return min([config.batch_size, *limits])


def load(
    clips: ClipDataset, parts: list[list[int]], worker: Worker, *, epoch: int, ahead: int | None
) -> Iterator[RawBatch]:
    """Batches in the order of `parts`; `ahead` processes read them, None takes 4 beside a GPU.

    Raises what reading a clip raises.
    """
    if ahead is None:
        ahead = 4 if worker.device.type == "cuda" and clips.reads_media else 0
    loader = DataLoader(
        clips,
        batch_sampler=[[(epoch, row) for row in part] for part in parts],
        collate_fn=Collate(clips.preparations),
        num_workers=ahead,
        pin_memory=worker.device.type == "cuda",
    )
    try:
        yield from loader
    except MeldError as error:
        if not ahead:
            raise
        # From another process its message is a traceback that ends with ours.
        last = str(error).rstrip().splitlines()[-1]
        kind = type(error)
        raise kind(last.removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")) from error


@torch.no_grad()
def predict_raw(
    model: EndToEnd,
    clips: ClipDataset,
    worker: Worker,
    *,
    batch_size: int,
    ahead: int | None = None,
) -> FusionOutput:
    """Logits of every row, on the CPU, in the split's order; the workers share the batches."""
    model.eval()
    parts = sorted_batches(clips.lengths, batch_size, clips.groups)
    done = []
    for batch in load(clips, parts[worker.rank :: worker.world], worker, epoch=0, ahead=ahead):
        output = model(batch.to(worker.device))
        done.append((batch.rows, output.emotion_logits.cpu(), output.sentiment_logits.cpu()))
    rows, emotion, sentiment = (
        torch.cat(values) for values in zip(*worker.gather(done), strict=True)
    )
    order = rows.argsort()
    return FusionOutput(emotion[order], sentiment[order])


def _f1(labels: Tensor, logits: Tensor) -> float | None:
    return weighted_f1(labels.numpy(), logits.argmax(dim=1).numpy())
