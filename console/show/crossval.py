"""The table of `meld crossval`."""

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from console.printing import print_json, print_rich
from fusion.evaluation.scores import describe_macro
from fusion.experiments.crossval import CrossvalReport
from pipeline.schema import EMOTIONS, SENTIMENTS


def show_crossval(report: CrossvalReport, out: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    print_rich(render_crossval(report))
    print(f"{report.seconds:.1f} s" + (f"; written: {out}" if out else ""))


def render_crossval(report: CrossvalReport) -> RenderableType:
    heads = (("emotion", report.emotion), ("sentiment", report.sentiment))
    by_speaker = report.group == "speaker"
    dealt = f"{report.groups} speakers, " if by_speaker else ""
    table = Table(
        title=f"{len(report.rows_by_fold)} folds x {report.seeds} seeds of "
        f"{' + '.join(report.modalities)}; {report.rows} rows of {' and '.join(report.splits)}, "
        f"{dealt}{report.dialogues} dialogues",
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
    lines = [
        f"{head}: not measured: no row has a label of it that a training of other rows learned from"
        for head, metrics in heads
        if not metrics
    ]
    sizes = {"emotion": len(EMOTIONS), "sentiment": len(SENTIMENTS)}
    told = (
        describe_macro(head, metric.classes, sizes[head])
        for head, metrics in heads
        for metric in metrics
    )
    lines += filter(None, told)
    lines += [f"{name}: RANDOM WEIGHTS, as requested" for name in report.random_modalities]
    lines += [f"{name}: FOREIGN features, made by {tool}" for name, tool in report.foreign.items()]
    lines += [f"test clips: {report.test_clips}"] if report.test_clips else []
    if report.settings["input"] == "embedding":
        lines.append("the 128-d embeddings are a projection fitted on all of train, without labels")
    if by_speaker:
        lines.append(
            "every row is predicted by trainings that learned from nothing its speaker says, "
            "though from what others say in the same dialogues; the interval is a bootstrap of the "
            "mean over dialogues"
        )
        if report.text_context or report.text_dialogue:
            read = (
                "whole dialogues" if report.text_dialogue else f"{report.text_context} utterances"
            )
            lines.append(
                f"the text features were made with {read} of context: "
                "what the left-out speaker says stands in those of the others"
            )
    else:
        lines.append(
            "every row is predicted by trainings that saw nothing of its dialogue; the interval is "
            "a bootstrap of the mean over dialogues"
        )
    return Group(table, *lines)
