"""The training loss: cross-entropy of both heads, with class weights."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fusion.labels import UNLABELLED
from fusion.model.fusion import FusionOutput
from pipeline.schema import EMOTIONS, SENTIMENTS


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The training loss: cross-entropy of both heads.

    class_weight_power: class weights are count ** -power: 0 weighs all rows alike, 1 weighs all
        classes alike
    label_smoothing: share of each target that is spread over all classes
    emotion_weight, sentiment_weight: weight of that head's loss in the sum
    """

    class_weight_power: float = 0.5
    label_smoothing: float = 0.1
    emotion_weight: float = 1.0
    sentiment_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.class_weight_power <= 2:
            raise ValueError(f"class_weight_power must be in [0, 2]: {self.class_weight_power}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
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
    ) -> Tensor:
        """emotion, sentiment: int64 [batch], UNLABELLED where there is none -> scalar.

        totals: of the step's whole batch, where this is a part of it: parts then add up.
        """
        smoothing = self.config.label_smoothing
        of_emotion, of_sentiment = totals or self.totals(emotion, sentiment)
        emotion_loss = head_loss(
            output.emotion_logits, emotion, self.emotion_weights, smoothing, of_emotion
        )
        sentiment_loss = head_loss(
            output.sentiment_logits, sentiment, self.sentiment_weights, smoothing, of_sentiment
        )
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
