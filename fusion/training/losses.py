"""The training loss: cross-entropy of both heads, with class weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fusion.labels import UNLABELLED, Head
from fusion.model.fusion import FusionOutput
from pipeline.errors import UsageError
from pipeline.schema import EMOTIONS, SENTIMENTS


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The training loss: cross-entropy of both heads.

    class_weight_power: class weights are count ** -power: 0 weighs all rows alike, 1 weighs all
        classes alike
    label_smoothing: share of each target that is spread over all classes
    emotion_weight, sentiment_weight: weight of that head's loss in the sum
    teacher_weight: with a teacher (`--distil`): share of the loss that is measured against its
        probabilities, and not against the labels
    teacher_temperature: how soft they are: their logarithms and those of the model are divided by
        it
    """

    class_weight_power: float = 0.5
    label_smoothing: float = 0.1
    emotion_weight: float = 1.0
    sentiment_weight: float = 1.0
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.class_weight_power <= 2:
            raise ValueError(f"class_weight_power must be in [0, 2]: {self.class_weight_power}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if not 0 < self.teacher_weight <= 1:
            raise ValueError(f"teacher_weight must be in (0, 1], not {self.teacher_weight}")
        if not 0 < self.teacher_temperature < math.inf:
            raise ValueError(f"teacher_temperature must be above 0: {self.teacher_temperature}")
        for name in ("emotion_weight", "sentiment_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative: {getattr(self, name)}")
        if self.emotion_weight + self.sentiment_weight == 0:
            raise ValueError("one of emotion_weight and sentiment_weight must be above 0")


def count_labels(labels: Tensor, num_classes: int) -> Tensor:
    """labels int64 [rows] -> int64 [num_classes]; unlabelled rows count nowhere."""
    return torch.bincount(labels[labels != UNLABELLED], minlength=num_classes)


def class_weights(labels: Tensor, num_classes: int, power: float) -> Tensor:
    """count ** -power, scaled to a mean of 1 over the classes that occur; float32 [num_classes].

    A class without a row gets 1, which is never used and does not change the others.
    """
    counts = count_labels(labels, num_classes)
    occurs = counts > 0
    weights = counts.clamp_min(1).to(torch.float32) ** -power
    if occurs.any():
        weights = weights / weights[occurs].mean()
    return torch.where(occurs, weights, 1.0)


@dataclass(frozen=True, kw_only=True)
class MultiTaskLoss:
    """Both heads' loss, with class weights from the train split's labels."""

    config: LossConfig
    emotion_weights: Tensor  # float32 [7]
    sentiment_weights: Tensor  # float32 [3]

    @classmethod
    def from_labels(cls, config: LossConfig, emotion: Tensor, sentiment: Tensor) -> "MultiTaskLoss":
        power = config.class_weight_power
        return cls(
            config=config,
            emotion_weights=class_weights(emotion, len(EMOTIONS), power),
            sentiment_weights=class_weights(sentiment, len(SENTIMENTS), power),
        )

    def __call__(
        self,
        output: FusionOutput,
        emotion: Tensor,
        sentiment: Tensor,
        totals: tuple[Tensor, Tensor] | None = None,
        soft: Mapping[Head, Tensor] | None = None,
        num_soft: int | None = None,
    ) -> Tensor:
        """emotion, sentiment: int64 [batch], UNLABELLED where there is none -> scalar.

        totals: of the step's whole batch, where this is a part of it: parts then add up.
        soft: a teacher's probabilities, float32 [batch, classes] of each head; a row of zeros has
            none. num_soft: number of rows in the step's whole batch, as for `totals`
        """
        smoothing = self.config.label_smoothing
        of_emotion, of_sentiment = totals or self.totals(emotion, sentiment)
        emotion_loss = head_loss(
            output.emotion_logits, emotion, self.emotion_weights, smoothing, of_emotion
        )
        sentiment_loss = head_loss(
            output.sentiment_logits, sentiment, self.sentiment_weights, smoothing, of_sentiment
        )
        if soft:
            share = self.config.teacher_weight
            heat = self.config.teacher_temperature
            of_emotion = soft_loss(output.emotion_logits, soft["emotion"], heat, num_soft)
            of_sentiment = soft_loss(output.sentiment_logits, soft["sentiment"], heat, num_soft)
            emotion_loss = (1 - share) * emotion_loss + share * of_emotion
            sentiment_loss = (1 - share) * sentiment_loss + share * of_sentiment
        return (
            self.config.emotion_weight * emotion_loss
            + self.config.sentiment_weight * sentiment_loss
        )

    def totals(self, emotion: Tensor, sentiment: Tensor) -> tuple[Tensor, Tensor]:
        """The total weight of the rows, for each head, which the loss is divided by."""
        return (
            row_weights(emotion, self.emotion_weights).sum(),
            row_weights(sentiment, self.sentiment_weights).sum(),
        )


def soft_loss(
    logits: Tensor, soft: Tensor, temperature: float, num_rows: int | None = None
) -> Tensor:
    """Mean cross-entropy against a teacher's probabilities, both softened; times the temperature's
    square, so that gradients are of one size whatever it is.

    logits, soft: [batch, classes]; a row of zeros in `soft` counts for nothing
    """
    of_row = -(soft * (logits / temperature).log_softmax(dim=1)).sum(dim=1)  # [batch]
    count = soft.sum() if num_rows is None else torch.tensor(float(num_rows))
    return temperature**2 * of_row.sum() / count.clamp_min(1e-12)


def check_teacher(config: LossConfig, teacher: object, table: str) -> None:
    """Raises UsageError where a teacher's settings are given, and no teacher."""
    for name in ("teacher_weight", "teacher_temperature"):
        value = getattr(config, name)
        if teacher is None and value != getattr(LossConfig(), name):
            raise UsageError(
                f"{table}.{name} = {value}: there is no teacher; leave it out, or name one "
                "(--distil of train-fusion and finetune)"
            )


def row_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """float32 [batch]: the weight of the row's class, 0 without a label."""
    return weights[labels.clamp_min(0)] * (labels != UNLABELLED)


def head_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float, total: Tensor | None = None
) -> Tensor:
    """Mean over labelled rows, weighted by class; 0 where no row is labelled.

    `total` stands for the rows' own weight where they are a part of a larger batch. PyTorch's own
    `weight=` would also scale the smoothing, pulling every row to rare classes.
    """
    row_loss = functional.cross_entropy(
        logits, labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="none"
    )
    row_weight = row_weights(labels, weights)
    whole = row_weight.sum() if total is None else total
    return (row_loss * row_weight).sum() / whole.clamp_min(1e-12)
