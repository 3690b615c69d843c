"""A bundle that was written (`meld export`), and whether it can be trusted here (`meld verify`)."""

from rich.table import Table

from console.printing import print_json, print_rich
from fusion.export.export import ExportResult
from fusion.export.golden import StageDifference, Verification


def show_export(result: ExportResult, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    for name, size in result.files.items():
        print(f"  {size:>13,} B  {name}")
    print(f"{result.bundle}: {result.num_bytes:,} B in {len(result.files)} files")
    print(f"check it on another machine: meld verify {result.bundle}")


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
    for name in sorted(verification.machine.keys() | verification.made_on.keys()):
        here, there = verification.machine.get(name), verification.made_on.get(name)
        if here != there:
            print(f"  {name}: {here or 'none'} here, {there or 'none'} where it was exported")
    if verification.trusted:
        print("trusted: this machine gives what it gave where it was exported")


def _difference(stage: StageDifference) -> str:
    if stage.largest is None:
        return "-"
    return "equal" if stage.largest == 0 else f"{stage.largest:.1e}"
