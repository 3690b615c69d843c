"""What `meld doctor` found, as tables for the terminal within 80 columns."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from console.printing import print_json, print_rich
from pipeline.corpus.meld_facts import PUBLISHED
from pipeline.doctor.advice import next_steps
from pipeline.doctor.findings import KINDS, Finding
from pipeline.doctor.machine import Machine, gib
from pipeline.doctor.report import Counts, DoctorReport, SplitReport
from pipeline.system.one_line import one_line
from pipeline.system.resources import Space

# Of one kind; all are in the JSON and on the page.
_SHOWN_NEW, _SHOWN_KNOWN = 5, 2
_NONE = "–"


def show_machine(machine: Machine) -> None:
    """Prints the machine before the clips are checked; in JSON it is a part of the report."""
    print_rich(render_machine(machine))


def show_checkup(report: DoctorReport, as_json: bool) -> None:
    """Prints the corpus; the machine was printed before."""
    if as_json:
        print_json(report.to_dict())
        return
    print_rich(render_corpus(report))
    print("next:")
    for line in next_steps(report):  # unbroken, to be copied
        print(f"  {one_line(line)}")


def render_machine(machine: Machine) -> RenderableType:
    table = _table("machine", "", "")
    table.add_row("CPU cores", str(machine.cores))
    table.add_row("memory", _space(machine.memory))
    table.add_row(
        "shared memory", _space(machine.shared_memory) if machine.shared_memory else "none"
    )
    for folder, space in machine.disks.items():
        table.add_row(Text(f"disk of {one_line(folder)}"), _space(space))
    table.add_row("GPU", Text("; ".join(machine.gpus) or "none that PyTorch finds"))
    for encoder in machine.encoders:
        state = f"found ({encoder.where})" if encoder.is_default else "found"
        if not encoder.is_present:
            state = "NOT FOUND" if encoder.is_default else "not found"
        if not encoder.needs_weights:
            state = encoder.where
        table.add_row(Text(f"{encoder.modality}: {encoder.name}"), Text(one_line(state)))
    for extra in machine.extras:
        lacks = f"missing: {', '.join(extra.missing)}; install it with: {extra.command}"
        table.add_row(f"extra {extra.name}", Text(lacks if extra.missing else "installed"))
    notes = [*machine.concerns]
    notes += [each.how for each in machine.encoders if not each.is_present]
    return Group(table, *(Text(f"  {one_line(note)}", style="yellow") for note in notes))


def render_corpus(report: DoctorReport) -> RenderableType:
    how = "all clips decoded" if report.deep else "headers read; --deep decodes all clips"
    count = report.clips_inspected
    what = f"{count:,} clip{'' if count == 1 else 's'} in {report.seconds:.1f} s, {how}"
    parts: list[RenderableType] = [_rows_table(report), _defects_table(report)]
    parts += [Text(what), Text(f"test clips: {report.test_clips}")]
    parts += [Text(note) for note in _notes(report)]
    new = [finding for finding in report.findings if not finding.is_known]
    known = [finding for finding in report.findings if finding.is_known]
    if new:
        parts += [Text("new:", style="bold red"), *_lines(new, _SHOWN_NEW)]
    if known:
        parts += [Text("known:", style="bold"), *_lines(known, _SHOWN_KNOWN)]
    parts.append(_verdict(report))
    return Group(*parts)


def _rows_table(report: DoctorReport) -> Table:
    splits = [split for split in report.splits if split.facts is not None]
    table = _table(f"corpus {report.data}", "", *(split.split for split in splits))
    facts = [split.facts for split in splits if split.facts is not None]
    table.add_row("annotations", *("MELD's" if each.meld else "not MELD's" for each in facts))
    for title, name in (
        ("rows", "rows"),
        ("dialogues", "dialogues"),
        ("missing utterance numbers", "gap_ids"),
        ("rows without length", "zero_windows"),
        ("rows of more than 20 s", "overlong"),
        ("rows of less than 16 frames", "too_short"),
    ):
        table.add_row(title, *(f"{getattr(each, name):,}" for each in facts))
    table.add_row("same as published", *(_as_published(split) for split in splits))
    table.add_row("clips found", *(f"{split.found:,}" for split in splits))
    table.add_row("hours of clips", *(f"{split.hours:.2f}" for split in splits))
    return table


def _as_published(split: SplitReport) -> str:
    if split.facts is None or split.facts.meld is None:
        return _NONE
    differs = split.facts.meld != split.split or split.counts("annotations_differ").new
    return "NO" if differs else "yes"


def _defects_table(report: DoctorReport) -> Table:
    table = _table("defects", "", *(split.split for split in report.splits))
    for kind, title in KINDS.items():
        counts = [split.counts(kind) for split in report.splits]
        is_usual = kind in _ALWAYS_TOLD
        if is_usual or any(each.known or each.new for each in counts):
            table.add_row(title, *map(_cell, counts))
    return table


# Told even where there are none: that is an answer too.
_ALWAYS_TOLD = frozenset(
    "missing unreadable without_sound without_picture overlong too_short length_differs "
    "unannotated".split()
)


def _cell(counts: Counts) -> Text:
    words = [Text(f"{counts.new:,} new", style="bold red")] if counts.new else []
    words += [Text(f"{counts.known:,} known")] if counts.known else []
    return Text(", ").join(words) if words else Text(_NONE, style="dim")


def _notes(report: DoctorReport) -> Iterator[str]:
    for split in report.splits:
        if split.corrected:
            of = "" if split.facts is None or split.facts.meld is None else " of 132"
            yield f"{split.split}: {split.corrected}{of} clips have a corrected cut"
        if split.apple_double:
            yield f"{split.split}: AppleDouble files (._*), never read: {split.apple_double:,}"
        if len(split.layouts) > 1:
            first, *others = split.layouts.items()
            rest = f", {sum(count for _, count in others):,} otherwise"
            yield f"{split.split}: {first[1]:,} x {first[0]}{rest}"
        if split.facts is not None and split.facts.meld is None:
            rows = PUBLISHED[split.split].rows
            yield (
                f"{split.split}: these are not the {rows:,} rows of MELD's {split.split}, so every "
                "finding counts as new"
            )


def _lines(findings: Sequence[Finding], shown: int) -> Iterator[Text]:
    for kind, title in KINDS.items():
        of_kind = [finding for finding in findings if finding.kind == kind]
        for finding in of_kind[:shown]:
            line = Text(f"  {title}: ")
            line.append(f"{one_line(finding.subject)}", style="bold")
            why = f" ({finding.known_why})" if finding.is_known else ""
            line.append(f": {one_line(finding.message)}{why}")
            yield line
        if len(of_kind) > shown:
            yield Text(f"  {title}: and {len(of_kind) - shown:,} more", style="dim")


def _verdict(report: DoctorReport) -> Text:
    new = sum(not finding.is_known for finding in report.findings)
    known = len(report.findings) - new
    page = one_line(str(report.page))
    if new:
        return Text(f"{new:,} new findings, {known:,} known: {page}", style="bold red")
    told = f"nothing new; {known:,} known findings" if known else "nothing found"
    return Text(f"{told}: {page}", style="bold green")


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=Text(one_line(title), style="table.title"),  # [ ] is no markup here
        title_justify="left",
        pad_edge=False,
        show_header=any(columns),
    )
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _space(space: Space) -> str:
    if space.total_bytes is None and space.free_bytes is None:
        return "unknown"
    return f"{gib(space.free_bytes)} free of {gib(space.total_bytes)}"
