"""Plots of measured runs and of experiments.

They are drawn without pyplot, so there is no global state and no display is needed.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fusion.evaluation.report import EvalReport, HeadReport, describe_presence
from fusion.evaluation.scores import ClassScores
from pipeline.system.files import write_whole
from pipeline.system.one_line import one_line

MODEL_COLOUR, _MAJORITY = "#2f6fab", "#c3c8cf"

Bar = tuple[float, float, float]  # a value and its bounds


def plot_report(report: EvalReport, folder: Path) -> list[Path]:
    """Writes `<split>-confusion.png` and `<split>-classes.png`. Raises StorageError."""
    confusion, classes = Figure(figsize=(13, 6)), Figure(figsize=(12, 4.8))
    heads = [("emotion", report.emotion, 7), ("sentiment", report.sentiment, 3)]
    for figure, draw in ((confusion, _draw_confusion), (classes, _draw_classes)):
        axes = figure.subplots(1, 2, width_ratios=[each[2] + 2 for each in heads])
        for axis, (name, head, _) in zip(axes, heads, strict=True):
            if head.not_measured:
                _draw_nothing(axis, name, head)
            else:
                draw(axis, name, head)
        title = one_line(f"{report.run} on {report.split} ({describe_presence(report)})")
        figure.suptitle(title, size=11, parse_math=False)  # a folder's name may hold $
    paths = [folder / f"{report.split}-confusion.png", folder / f"{report.split}-classes.png"]
    for figure, path in zip((confusion, classes), paths, strict=True):
        save_figure(figure, path)
    return paths


def plot_bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Bar | None]],
    path: Path,
    *,
    title: str,
    measured: str,
) -> None:
    """A group of bars per name, one bar per series; whiskers are the bounds. Raises StorageError.

    series: for each name in the legend a bar for each group, None where there is none
    measured: what a bar's height is
    """
    figure = Figure(figsize=(2.5 + 1.6 * len(groups), 4.6))
    axis = figure.subplots()
    width = 0.8 / len(series)
    for place, (name, bars) in enumerate(series.items()):
        drawn = [(number, bar) for number, bar in enumerate(bars) if bar is not None]
        values = np.array([bar for _, bar in drawn]).reshape(-1, 3)  # [bars, (value, low, high)]
        axis.bar(
            [number + (place - (len(series) - 1) / 2) * width for number, _ in drawn],
            values[:, 0],
            width,
            yerr=np.maximum([values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]], 0),
            capsize=2,
            label=name,
        )
    axis.set_xticks(range(len(groups)), groups, rotation=20, ha="right")
    axis.set_ylabel(measured)
    axis.set_title(title)
    tidy(axis)
    axis.legend(frameon=False, ncols=len(series), loc="lower center", bbox_to_anchor=(0.5, 1.08))
    save_figure(figure, path)


def plot_gain(
    names: Sequence[str],
    means: Sequence[float],
    spreads: Sequence[float],
    majority: float,
    path: Path,
) -> None:
    """Single models beside the fused one, which comes last; the line is the majority class.
    Raises StorageError."""
    figure = Figure(figsize=(7, 3.2))
    axis = figure.subplots()
    colours = ["#8da9c4"] * (len(names) - 1) + ["#e4572e"]
    bars = axis.bar(list(names), means, yerr=spreads, color=colours, capsize=4)
    axis.bar_label(bars, labels=[f"{mean:.2f}" for mean in means], padding=3)
    axis.axhline(majority, color="#444444", linestyle="--", linewidth=1)
    axis.annotate(
        "majority class",
        (-0.58, majority),
        va="bottom",
        fontsize="small",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8},
    )
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_ylim(0, 1)
    axis.set_ylabel("emotion weighted F1, test")
    axis.set_title("Generated corpus: what each modality knows, and all three together")
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def _draw_nothing(axis: Axes, name: str, head: HeadReport) -> None:
    """Marks missing values; bars of height 0 would be read as scores."""
    axis.axis("off")
    axis.set_title(f"{name}: not measured")
    axis.text(0.5, 0.5, head.not_measured, ha="center", va="center", wrap=True, size=9)


def _draw_confusion(axis: Axes, name: str, head: HeadReport) -> None:
    """Shade: share of the true class. Number: rows."""
    counts = np.array(head.model.confusion)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(counts):
        for predicted, count in enumerate(row):
            color = "white" if share[true, predicted] > 0.55 else "#222222"
            axis.text(predicted, true, str(count), ha="center", va="center", color=color, size=9)
    axis.set_xticks(range(len(head.labels)), head.labels, rotation=40, ha="right")
    axis.set_yticks(range(len(head.labels)), head.labels)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(
        f"{name}: accuracy {_number(head.model.accuracy)}, "
        f"majority {_number(head.majority.accuracy)}"
    )
    axis.spines[:].set_visible(False)


def _draw_classes(axis: Axes, name: str, head: HeadReport) -> None:
    positions = np.arange(len(head.labels))
    places, heights = _known(head.model.classes)
    bars = axis.bar(places - 0.2, heights, 0.4, label="model", color=MODEL_COLOUR)
    axis.bar_label(bars, fmt="%.2f", size=8, padding=2)
    places, heights = _known(head.majority.classes)
    axis.bar(places + 0.2, heights, 0.4, label=f"always {head.majority_label}", color=_MAJORITY)
    names = [f"{each.label}\n({each.support})" for each in head.model.classes]
    axis.set_xticks(positions, names, size=9)
    axis.set_ylim(0, 1.2)  # room for the legend above the tallest bar
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.set_xlabel("class (rows)")
    axis.set_ylabel("F1")
    axis.set_title(
        f"{name}: weighted F1 {_number(head.model.weighted_f1)}, "
        f"majority {_number(head.majority.weighted_f1)}"
    )
    tidy(axis)
    axis.legend(frameon=False, loc="upper left", ncols=2)


def _known(classes: Sequence[ClassScores]) -> tuple[NDArray[np.int64], list[float]]:
    """Where the classes that occur stand, and their F1."""
    known = [(place, each.f1) for place, each in enumerate(classes) if each.f1 is not None]
    return np.array([place for place, _ in known], dtype=np.int64), [f1 for _, f1 in known]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def tidy(axis: Axes) -> None:
    axis.grid(axis="y", color="#e4e6ea", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> None:
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A folder's name in letters that the font lacks: boxes, and nothing to be told of.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(content, format="png", dpi=130)
    write_whole(path, content.getvalue())
