"""A measured run as tables for the terminal (`meld evaluate`)."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from console.printing import print_json, print_rich
from fusion.evaluation.bootstrap import Interval
from fusion.evaluation.error_analysis import ErrorAnalysis, Mistake
from fusion.evaluation.leakage import Leakage, NotChecked
from fusion.evaluation.report import (
    Calibration,
    EvalReport,
    HeadReport,
    JointScores,
    SubsetScores,
    describe_fitted,
    describe_measured,
    describe_presence,
)
from fusion.evaluation.slices import Slice
from fusion.evaluation.test_evaluations import describe_evaluations

_BOUNDS = "[low, high]: 95 % interval, bootstrap over dialogues"


def show_evaluation(report: EvalReport, run: Path, as_json: bool, *, errors: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    print_rich(render_report(report))
    if errors and report.errors is not None:
        print_rich(render_errors(report.errors))
    print(f"written: {run}/evaluation-{report.split}.json and plots beside it")


def render_report(report: EvalReport) -> RenderableType:
    """Scores of both heads beside the majority baseline, per class, and the confusion matrices."""
    head = Text(f"{report.run} on {report.split}: {report.rows} rows; {describe_presence(report)}")
    heads = [("emotion", report.emotion), ("sentiment", report.sentiment)]
    tables = [
        table
        for name, each in heads
        if each.rows
        for table in (_classes_table(name, each), _confusion_table(name, each))
    ]
    notes: list[RenderableType] = [Text(line) for line in describe_measured(report)]
    if report.test_evaluations:
        notes.append(describe_evaluations(report.test_evaluations))
    if report.leakage is not None:
        notes.append(render_leakage(report.leakage))
    return Group(head, _summary_table(report), *notes, *_trust_tables(report), *tables)


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
            _number(model.accuracy),
            _with_bounds(model.weighted_f1, head.weighted_f1_interval),
            _number(model.macro_f1),
            str(head.rows),
            style="bold",
        )
        if not head.not_measured:
            numbers = (majority.accuracy, majority.weighted_f1, majority.macro_f1)
            table.add_row(
                f"{name}: always {head.majority_label}",
                *map(_number, numbers),
                str(head.rows),
                style="dim",
            )
    return table


def _with_bounds(value: float | None, interval: Interval | None) -> Text:
    return Text(_number(value) if interval is None else str(interval))  # [ ] is no markup here


def _trust_tables(report: EvalReport) -> list[Table]:
    """Tables of calibration, of joint decoding and of the subsets of modalities; each only if it
    was measured and applies."""
    tables = []
    if report.calibration is not None and report.joint is not None:
        table = _calibration_table(report.calibration, report.joint)
        if fitted := describe_fitted(report):
            table.caption = f"{table.caption}; {fitted}"
        tables.append(table)
    if len(report.subsets) > 1:
        tables.append(_subsets_table(report.subsets))
    return tables


def _calibration_table(calibration: Calibration, joint: JointScores) -> Table:
    """Before and after: the temperature for the first two columns, joint decoding for the last."""
    table = Table(title="calibration and joint decoding", title_justify="left")
    table.caption_justify = "left"
    table.caption = (
        f"{joint.contradictions:.1%} of rows get an emotion and a sentiment that never occur "
        f"together in train; joint decoding changes {joint.rows_changed} rows, and then none does"
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
    table = Table(title="the same model, with a subset of its modalities", title_justify="left")
    table.add_column("")
    for column in ("F1 emotion", "sentiment", "ECE emotion", "sentiment", "rows"):
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
        table.add_row(scores.label, *map(_number, numbers), str(scores.support))
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


def render_leakage(leakage: Leakage | NotChecked) -> RenderableType:
    if isinstance(leakage, NotChecked):
        return Text(f"leakage: not checked which texts occur in train: {leakage.not_checked}")
    rows = leakage.everything.rows
    if not leakage.seen.rows:
        return Text(f"none of {rows} texts occurs in train")
    title = f"{leakage.seen.rows} of {rows} texts occur in train as well"
    lines = [Text(f"copied: {each} ({each.utterances} utterances)") for each in leakage.copied]
    table = render_slices(title, (leakage.everything, leakage.unseen, leakage.seen))
    return Group(table, *(lines or [Text("no whole dialogue was copied from train")]))


def render_errors(analysis: ErrorAnalysis) -> RenderableType:
    """One table of scores for each way of slicing, then the most confident mistakes."""
    parts: list[RenderableType] = []
    for each in analysis.tables:
        if not each.slices:  # no row has what it is sliced by
            continue
        parts.append(render_slices(each.title, each.slices))
        if each.note:
            parts.append(Text(each.note, style="dim"))
    if analysis.mistakes:
        parts.append(_mistakes_table(analysis.mistakes))
    return Group(*parts)


def _mistakes_table(mistakes: Sequence[Mistake]) -> Table:
    title = f"the {len(mistakes)} most confident wrong emotions"
    table = Table(title=title, title_justify="left")
    for column in ("clip", "speaker", "text", "true", "predicted"):
        table.add_column(column)
    table.add_column("probability", justify="right")
    for each in mistakes:
        texts = (str(each.key), each.speaker, each.text, each.true, each.predicted)
        table.add_row(*map(Text, texts), f"{each.probability:.2f}")  # texts hold [laughs]
    return table


def render_slices(title: str, slices: Sequence[Slice]) -> Table:
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("")
    for column in ("rows", "emotion F1", "accuracy", "sentiment F1", "accuracy"):
        table.add_column(column, justify="right")
    for each in slices:
        scores = (
            each.emotion_weighted_f1,
            each.emotion_accuracy,
            each.sentiment_weighted_f1,
            each.sentiment_accuracy,
        )
        shown = ("-" if value is None else f"{value:.3f}" for value in scores)
        table.add_row(Text(each.name), str(each.rows), *shown)  # names are data, not markup
    return table
