"""What `meld demo` found, in one table."""

from collections.abc import Sequence

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from console.printing import print_json, print_rich
from fusion.experiments.demo import FUSED, DemoReport


def show_demo(report: DemoReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    print_rich(render_demo(report))


def render_demo(report: DemoReport) -> RenderableType:
    """The demo's one table, and where everything lies."""
    table = Table(title=f"weighted F1 on test, {len(report.rows[0].emotion_f1)} seeds (mean ± std)")
    table.add_column("model sees")
    table.add_column("emotion", justify="right")
    table.add_column("sentiment", justify="right")
    table.add_row(
        "nothing (majority class)",
        f"{report.majority_emotion_f1:.3f}",
        f"{report.majority_sentiment_f1:.3f}",
    )
    for row in report.rows:
        table.add_row(
            " + ".join(report.names(row)), _spread(row.emotion_f1), _spread(row.sentiment_f1)
        )
    gained = "gains" if report.gain >= 0 else "loses"
    lines = [
        f"Fusion {gained} {100 * abs(report.gain):.1f} points of emotion weighted F1 against the "
        f"best single modality ({report.best_single.name}); the fusion type is {FUSED.fusion}.",
        f"{report.clips} generated clips in {report.out / 'data'}, features in "
        f"{report.out / 'features'}, models in {report.out / 'runs'}, plot: {report.plot}",
        f"One clip of test as `meld predict` sees it: {report.prediction.emotion.label} "
        f"({report.prediction.emotion.confidence:.0%}), generated to show "
        f"{report.prediction.label}. Open it in a browser: {report.prediction.page}",
        "seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in report.seconds.items()),
    ]
    return Group(table, *lines)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"
