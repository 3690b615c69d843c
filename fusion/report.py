"""A measured run as tables for the terminal and as plots.

Plots are drawn on figures of their own (no pyplot), so nothing global is touched and no display
is needed.
"""

import dataclasses
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fusion.bootstrap import Interval
from fusion.fit import EpochResult
from fusion.leakage import render_leakage
from fusion.looks import describe_looks
from fusion.metrics import Calibration, EvalReport, HeadReport, JointScores, SubsetScores
from pipeline.errors import CacheCorrupt, StorageError
from pipeline.recipe import TestClips
from pipeline.whole_files import write_whole

_MODEL, _MAJORITY = "#2f6fab", "#c3c8cf"
_BOUNDS = "[low, high]: 95 % interval, dialogues redrawn"


def render_report(report: EvalReport) -> RenderableType:
    """Both heads beside the majority baseline, their classes, and where they are confused."""
    head = Text(f"{report.run} on {report.split}: {report.rows} rows; {describe_presence(report)}")
    heads = [("emotion", report.emotion), ("sentiment", report.sentiment)]
    tables = [
        table
        for name, each in heads
        if each.rows
        for table in (_classes_table(name, each), _confusion_table(name, each))
    ]
    notes: list[RenderableType] = []
    if report.test_looks:
        notes.append(describe_looks(report.test_looks))
    if report.leakage is not None:
        notes.append(render_leakage(report.leakage))
    return Group(head, _summary_table(report), *notes, *_trust_tables(report), *tables)


def describe_presence(report: EvalReport) -> str:
    """ "text 100%, video 98% (video: RANDOM WEIGHTS); test clips fixed" """
    shares = [
        f"{each.modality} {each.rows / max(report.rows, 1):.0%}"
        + (f" ({each.modality}: RANDOM WEIGHTS)" if each.random_weights else "")
        for each in report.presence
    ]
    return ", ".join(shares) + describe_test_clips(report.test_clips)


def describe_test_clips(test_clips: TestClips | None) -> str:
    """ "; test clips fixed", or nothing where no clip was read."""
    return "" if test_clips is None else f"; test clips {test_clips}"


def _summary_table(report: EvalReport) -> Table:
    heads = {"emotion": report.emotion, "sentiment": report.sentiment}
    table = Table(
        title=Text(f"{report.run}, {report.split}", style="table.title"),  # [ ] is no markup here
        title_justify="left",
        caption_justify="left",
        pad_edge=False,  # so that it fits into 80 columns
    )
    if any(head.weighted_f1_interval for head in heads.values()):
        table.caption = Text(_BOUNDS, style="table.caption")
    for column in ("", "accuracy", "weighted F1", "macro F1", "rows"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, head in heads.items():
        model, majority = head.model, head.majority
        table.add_row(
            f"{name}: model",
            f"{model.accuracy:.3f}",
            _with_bounds(model.weighted_f1, head.weighted_f1_interval),
            f"{model.macro_f1:.3f}",
            str(head.rows),
            style="bold",
        )
        numbers = (majority.accuracy, majority.weighted_f1, majority.macro_f1)
        table.add_row(
            f"{name}: always {head.majority_label}",
            *(f"{number:.3f}" for number in numbers),
            str(head.rows),
            style="dim",
        )
    return table


def _with_bounds(value: float, interval: Interval | None) -> Text:
    return Text(f"{value:.3f}" if interval is None else str(interval))  # [ ] is no markup here


def _trust_tables(report: EvalReport) -> list[Table]:
    """How far probabilities can be believed, what decoding together changes, what is left when
    modalities are missing; each only where it was measured and has something to say."""
    tables = []
    if report.calibration is not None and report.joint is not None:
        table = _calibration_table(report.calibration, report.joint)
        if report.split == "dev":
            table.caption = f"{table.caption}; both were fitted on these rows, which flatters them"
        tables.append(table)
    if len(report.subsets) > 1:
        tables.append(_subsets_table(report.subsets))
    return tables


def _calibration_table(calibration: Calibration, joint: JointScores) -> Table:
    """Before and after: the temperature for the first two columns, joint decoding for the last."""
    table = Table(title="probabilities, and both heads decoded together", title_justify="left")
    table.caption_justify = "left"
    table.caption = (
        f"{joint.contradictions:.1%} of rows: emotion and sentiment never meet in train; "
        f"decoded together: none, {joint.rows_changed} rows change"
    )
    table.add_column("")
    for column in ("ECE", "NLL", "temperature", "weighted F1"):
        table.add_column(column, justify="right")
    heads = (
        ("emotion", calibration.emotion, joint.emotion_f1, joint.emotion_f1_joint),
        ("sentiment", calibration.sentiment, joint.sentiment_f1, joint.sentiment_f1_joint),
    )
    for name, head, apart, together in heads:
        if head is not None:
            fitted = f"{head.temperature.value:.2f}" if head.temperature.fitted else "1, not fitted"
            table.add_row(
                name,
                f"{head.before.ece:.3f} → {head.after.ece:.3f}",
                f"{head.before.nll:.3f} → {head.after.nll:.3f}",
                fitted,
                f"{_number(apart)} → {_number(together)}",
            )
    return table


def _subsets_table(subsets: Sequence[SubsetScores]) -> Table:
    table = Table(title="when only these are there", title_justify="left")
    table.add_column("")
    for column in ("F1 emotion", "sentiment", "ECE emotion", "sentiment", "rows seen"):
        table.add_column(column, justify="right")
    for each in subsets:
        numbers = (each.emotion_f1, each.sentiment_f1, each.emotion_ece, each.sentiment_ece)
        table.add_row("+".join(each.modalities), *map(_number, numbers), str(each.rows_seen))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _classes_table(name: str, head: HeadReport) -> Table:
    table = Table(title=f"{name}, per class", title_justify="left")
    table.add_column("")
    for column in ("precision", "recall", "F1", "F1 of majority", "rows"):
        table.add_column(column, justify="right")
    for scores, baseline in zip(head.model.classes, head.majority.classes, strict=True):
        numbers = (scores.precision, scores.recall, scores.f1, baseline.f1)
        table.add_row(scores.label, *(f"{number:.3f}" for number in numbers), str(scores.support))
    return table


def _confusion_table(name: str, head: HeadReport) -> Table:
    table = Table(title=f"{name}, rows by true (down) and predicted (across)", title_justify="left")
    table.add_column("")
    for label in head.labels:
        table.add_column(label, justify="right")
    for index, (label, counts) in enumerate(zip(head.labels, head.model.confusion, strict=True)):
        cells = [
            Text(str(count), style="bold" if column == index else "")
            for column, count in enumerate(counts)
        ]
        table.add_row(label, *cells)
    return table


def plot_report(report: EvalReport, folder: Path) -> list[Path]:
    """Writes `<split>-confusion.png` and `<split>-classes.png`. Raises StorageError."""
    confusion, classes = Figure(figsize=(13, 6)), Figure(figsize=(12, 4.8))
    heads = [("emotion", report.emotion, 7), ("sentiment", report.sentiment, 3)]
    for figure, draw in ((confusion, _draw_confusion), (classes, _draw_classes)):
        axes = figure.subplots(1, 2, width_ratios=[each[2] + 2 for each in heads])
        for axis, (name, head, _) in zip(axes, heads, strict=True):
            draw(axis, name, head)
        title = f"{report.run} on {report.split} ({describe_presence(report)})"
        figure.suptitle(title, size=11, parse_math=False)  # a folder's name may hold $
    paths = [folder / f"{report.split}-confusion.png", folder / f"{report.split}-classes.png"]
    for figure, path in zip((confusion, classes), paths, strict=True):
        save_figure(figure, path)
    return paths


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
        color=_MODEL,
    )
    losses.plot(epochs, [each.dev_loss for each in history], label="dev", color="#d1783c")
    losses.set_ylabel("loss (both heads)")
    for name, color in (("emotion", _MODEL), ("sentiment", "#4d9a5b")):
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
    figure.suptitle(title, size=11, parse_math=False)
    save_figure(figure, path)


def read_history(path: Path) -> list[EpochResult]:
    """`history.jsonl` of a run. Raises CacheCorrupt or StorageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        history = [EpochResult(**json.loads(line)) for line in lines]
        for value in (value for each in history for value in dataclasses.astuple(each)):
            if value is not None and type(value) not in (int, float):
                raise TypeError(f"{value!r} is no number")
        return history
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: not a training history ({error})") from error


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
        f"{name}: accuracy {head.model.accuracy:.3f}, majority {head.majority.accuracy:.3f}"
    )
    axis.spines[:].set_visible(False)


def _draw_classes(axis: Axes, name: str, head: HeadReport) -> None:
    positions = np.arange(len(head.labels))
    bars = axis.bar(
        positions - 0.2, [each.f1 for each in head.model.classes], 0.4, label="model", color=_MODEL
    )
    axis.bar_label(bars, fmt="%.2f", size=8, padding=2)
    axis.bar(
        positions + 0.2,
        [each.f1 for each in head.majority.classes],
        0.4,
        label=f"always {head.majority_label}",
        color=_MAJORITY,
    )
    names = [f"{each.label}\n({each.support})" for each in head.model.classes]
    axis.set_xticks(positions, names, size=9)
    axis.set_ylim(0, 1.2)  # room for the legend above the tallest bar
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.set_xlabel("class (rows)")
    axis.set_ylabel("F1")
    axis.set_title(
        f"{name}: weighted F1 {head.model.weighted_f1:.3f}, "
        f"majority {head.majority.weighted_f1:.3f}"
    )
    tidy(axis)
    axis.legend(frameon=False, loc="upper left", ncols=2)


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
