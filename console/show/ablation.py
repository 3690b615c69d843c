"""The table of `meld ablate`."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from console.printing import print_json, print_rich
from fusion.evaluation.bootstrap import Interval
from fusion.evaluation.test_evaluations import describe_evaluations
from fusion.experiments.ablation import AblationReport
from fusion.labels import HEADS


def show_ablation(result: AblationReport, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    print_rich(render_ablation(result))
    print(f"{result.out}: ablation.json and ablation.png; {result.reused} cells were reused")


def render_ablation(report: AblationReport) -> RenderableType:
    table = Table(
        title=f"weighted F1 on {report.split}, {report.seeds} seeds: "
        "mean [95 % interval] ± std over seeds",
        title_justify="left",
    )
    for column in ("modalities", "fusion", "emotion", "sentiment"):
        table.add_column(column)
    for number, cell in enumerate(report.cells):
        first = number == 0 or report.cells[number - 1].modalities != cell.modalities
        table.add_row(
            cell.name if first else "",
            cell.fusion,
            _told(cell.emotion_f1, cell.emotion_interval),
            _told(cell.sentiment_f1, None),  # its interval is in the JSON: 80 columns
            style="bold" if cell is report.best else "",
        )
    lines = [
        f"{head}: not measured: no row has a label of it, in train or in {report.split}"
        for head in HEADS
        if all(getattr(cell, f"{head}_mean") is None for cell in report.cells)
    ]
    lines += [f"{name}: RANDOM WEIGHTS, as requested" for name in report.random_modalities]
    lines += [f"{name}: FOREIGN features, made by {tool}" for name, tool in report.foreign.items()]
    lines += [f"test clips: {report.test_clips}"] if report.test_clips else []
    if report.set_aside is not None:
        lines.append(str(report.set_aside))
    if report.split == "dev":
        lines.append("the epochs were chosen on dev too, so all these scores are optimistic")
    else:
        lines.append(describe_evaluations(report.test_evaluations, f"{report.out}"))
    return Group(table, *map(Text, lines))  # a path may hold [brackets], which are no markup


def _told(scores: Sequence[float], bounds: Interval | None) -> str:
    if not scores:
        return "-"
    between = "" if bounds is None else f" [{bounds.low:.3f}, {bounds.high:.3f}]"
    spread = f" ± {np.std(scores):.3f}" if len(scores) > 1 else ""
    return f"{np.mean(scores):.3f}{between}{spread}"
