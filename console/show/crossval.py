"""The table of `meld crossval`."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from console.printing import print_json, print_rich
from fusion.experiments.crossval import CrossvalReport


def show_crossval(report: CrossvalReport, out: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    print_rich(render_crossval(report))
    print(f"{report.seconds:.1f} s" + (f"; written: {out}" if out else ""))


def render_crossval(report: CrossvalReport) -> RenderableType:
    heads = (("emotion", report.emotion), ("sentiment", report.sentiment))
    table = Table(
        title=f"{len(report.rows_by_fold)} folds x {report.seeds} seeds of "
        f"{' + '.join(report.modalities)}; {report.rows} rows, {report.dialogues} dialogues",
        title_justify="left",
    )
    for column in ("", "mean", "95 % interval", "± seeds", "± folds", "majority"):
        table.add_column(column, justify="right" if column else "left")
    for head, metrics in heads:
        for metric in metrics:
            bounds = metric.interval
            table.add_row(
                f"{head}: {metric.name}",
                f"{metric.mean:.3f}",
                "too few dialogues" if bounds is None else f"{bounds.low:.3f} to {bounds.high:.3f}",
                f"{metric.over_seeds:.3f}" if report.seeds > 1 else "-",
                f"{metric.over_folds:.3f}",
                f"{metric.majority:.3f}",
                style="bold" if metric.name == "weighted F1" else "",
            )
    lines = [f"{name}: RANDOM WEIGHTS, asked for by name" for name in report.random_modalities]
    lines += [f"test clips: {report.test_clips}"] if report.test_clips else []
    if report.settings["input"] == "embedding":
        lines.append("the 128-d embeddings are a projection fitted on all of train, without labels")
    lines.append(
        "every row is predicted by trainings that saw nothing of its dialogue; the interval says "
        "how far other dialogues would move the mean"
    )
    return Group(table, *lines)
