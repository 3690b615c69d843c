"""The plot of a training: losses and dev scores over its epochs."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fusion.evaluation.plots import MODEL_COLOUR, save_figure, tidy
from fusion.training.history import EpochResult
from pipeline.system.one_line import one_line


def plot_history(history: Sequence[EpochResult], path: Path, *, title: str) -> None:
    """Losses and dev scores over the epochs, the chosen epoch marked. Raises StorageError."""
    figure = Figure(figsize=(11, 4.2))
    losses, scores = figure.subplots(1, 2)
    epochs = [each.epoch for each in history]
    best = max(history, key=lambda each: each.score)
    trained = [each for each in history if each.train_loss is not None]
    losses.plot(
        [each.epoch for each in trained],
        [each.train_loss for each in trained],
        label="train",
        color=MODEL_COLOUR,
    )
    losses.plot(epochs, [each.dev_loss for each in history], label="dev", color="#d1783c")
    losses.set_ylabel("loss (both heads)")
    for name, color in (("emotion", MODEL_COLOUR), ("sentiment", "#4d9a5b")):
        values = [getattr(each, f"dev_{name}_f1") for each in history]
        if None not in values:
            scores.plot(epochs, values, label=f"dev {name}", color=color)
    scores.set_ylabel("weighted F1")
    for axis in (losses, scores):
        axis.axvline(best.epoch, color="#888888", linestyle=":", label=f"kept: epoch {best.epoch}")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axis)
        axis.legend(frameon=False)
    figure.suptitle(one_line(title), size=11, parse_math=False)
    save_figure(figure, path)
