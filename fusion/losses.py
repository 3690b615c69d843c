"""What training minimises: cross-entropy of both heads, rare classes weighing more."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fusion.model import FusionOutput
from pipeline.schema import EMOTIONS, SENTIMENTS

UNLABELLED = -100  # a row whose corpus gives no label; PyTorch's own mark for it


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """class_weight_power: 0 treats rows alike, 1 treats classes alike, between is between."""

    class_weight_power: float = 0.5
    label_smoothing: float = 0.1
    emotion_weight: float = 1.0
    sentiment_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.class_weight_power <= 2:
            raise ValueError(f"class_weight_power must be in [0, 2]: {self.class_weight_power}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")
        if min(self.emotion_weight, self.sentiment_weight) < 0:
            raise ValueError("emotion_weight and sentiment_weight must not be negative")
        if self.emotion_weight + self.sentiment_weight == 0:
            raise ValueError("one of emotion_weight and sentiment_weight must be above 0")


def count_labels(labels: Tensor, num_classes: int) -> Tensor:
    """labels int64 [rows] -> int64 [num_classes]; unlabelled rows count nowhere."""
    return torch.bincount(labels[labels != UNLABELLED], minlength=num_classes)


def class_weights(labels: Tensor, num_classes: int, power: float) -> Tensor:
    """count ** -power, scaled to a mean of 1 over the classes that occur; float32 [num_classes].

    A class without a row gets 1: it is never looked up, and must not shift the others.
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

    def __call__(self, output: FusionOutput, emotion: Tensor, sentiment: Tensor) -> Tensor:
        """emotion, sentiment: int64 [batch], UNLABELLED where there is none -> scalar."""
        smoothing = self.config.label_smoothing
        of_emotion = head_loss(output.emotion_logits, emotion, self.emotion_weights, smoothing)
        of_sentiment = head_loss(
            output.sentiment_logits, sentiment, self.sentiment_weights, smoothing
        )
        return self.config.emotion_weight * of_emotion + self.config.sentiment_weight * of_sentiment


def head_loss(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Mean over labelled rows, each weighing what its class does; 0 where no row is labelled.

    PyTorch's own `weight=` would also scale the smoothing, pulling every row to rare classes.
    """
    row_loss = functional.cross_entropy(
        logits, labels, ignore_index=UNLABELLED, label_smoothing=smoothing, reduction="none"
    )
    row_weight = weights[labels.clamp_min(0)] * (labels != UNLABELLED)
    return (row_loss * row_weight).sum() / row_weight.sum().clamp_min(1e-12)
