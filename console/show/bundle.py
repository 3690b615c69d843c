"""A bundle that was written (`meld export`), and whether it can be trusted here (`meld verify`)."""

from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from console.printing import print_json, print_rich
from fusion.export.golden import StageDifference, Verification
from fusion.labels import HEADS

if TYPE_CHECKING:  # exporting needs PyTorch, and verifying need not
    from fusion.export.export import ExportResult
    from fusion.export.gate import GateReport, HeadCost


def show_export(result: "ExportResult", as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    for name, size in result.files.items():
        print(f"  {size:>13,} B  {name}")
    if result.gate is not None:
        _print_gate(result.gate)
    print(f"{result.bundle}: {result.num_bytes:,} B in {len(result.files)} files")
    if result.work is not None:
        print(f"the smaller run, fine-tuned: {result.work / 'tuned'}")
    print(f"check it on another machine: meld verify {quote(str(result.bundle))}")


def show_gate(report: "GateReport", as_json: bool) -> None:
    """Of an export that was refused."""
    if as_json:
        print_json({"gate": report.to_dict()})
        return
    _print_gate(report)


def _print_gate(report: "GateReport") -> None:
    print(
        f"{report.split}: {report.rows} rows, {report.dialogues} dialogues; milliseconds per "
        f"utterance and speed relative to {report.variants[0].name}, on one core and on "
        f"{report.cores}"
    )
    _print_table(
        ("", "MB", "ms, 1 core", f"ms, {report.cores}", "x, 1 core", f"x, {report.cores}"),
        [
            (
                each.name,
                f"{each.num_bytes / 1e6:.1f}",
                f"{each.ms_one_core:.1f}",
                f"{each.ms_all_cores:.1f}",
                f"{each.speed_one_core:.2f}",
                f"{each.speed_all_cores:.2f}",
            )
            for each in report.variants
        ],
    )
    print(
        "weighted F1, its change in points (95 % interval), share of equal predictions, and "
        "largest difference of logits"
    )
    for head in HEADS:
        _print_table(
            (head, "F1", "change", "agree", "logits"),
            [(each.name, *_cost(getattr(each, head))) for each in report.variants],
        )
    if report.float_layers:
        print(f"  layers that compute in float: {', '.join(report.float_layers)}")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    print_rich(table)


def _cost(cost: "HeadCost") -> tuple[str, str, str, str]:
    change = "-"
    if cost.change is not None:
        points = (cost.change.value, cost.change.low, cost.change.high)
        value, low, high = (100 * each for each in points)
        change = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
    score = "-" if cost.f1 is None else f"{cost.f1.value:.3f}"
    return score, change, f"{cost.agreement:.1%}", f"{cost.largest_logit_error:.1e}"


def show_verification(verification: Verification, as_json: bool) -> None:
    if as_json:
        print_json(verification.to_dict())
        return
    table = Table(title=f"{verification.bundle} by {verification.runtime}")
    for column in ("stage", "largest difference", ""):
        table.add_column(column)
    for stage in verification.stages:
        table.add_row(stage.stage, _difference(stage), stage.remark)
    print_rich(table)
    names = verification.machine.keys() | verification.made_on.keys()
    if verification.runtime.startswith("onnx"):
        names -= {"kernels"}  # PyTorch tells which it takes, and ONNX Runtime does not
    for name in sorted(names):
        here, there = verification.machine.get(name), verification.made_on.get(name)
        if here != there:
            print(f"  {name}: {here or 'none'} here, {there or 'none'} where it was exported")
    if verification.trusted:
        print("trusted: this machine gives the same results as the one that exported it")


def _difference(stage: StageDifference) -> str:
    if stage.largest is None:
        return "-"
    return "equal" if stage.largest == 0 else f"{stage.largest:.1e}"
