"""The report as one HTML page, with a frame of each clip that has findings."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from pipeline.doctor.findings import KINDS, Finding
from pipeline.doctor.machine import gib
from pipeline.doctor.report import DoctorReport
from pipeline.html.page import page_environment
from pipeline.html.stills import each_still
from pipeline.schema import LocatedClip, Utterance
from pipeline.system.files import write_whole

MAX_STILLS = 60
# A clip that is slow to decode costs up to a minute; a page is worth no more than a few.
MAX_SECONDS_FOR_STILLS = 120.0
# A page of more is of no use to a reader; the JSON has all.
MAX_CARDS = 300
MAX_LINES = 2000
# There is nothing to see, or looking is what does harm.
_NO_PICTURE = frozenset({"missing", "unreadable", "killed_worker", "without_picture"})


def write_page(report: DoctorReport, out: Path) -> None:
    """Raises StorageError."""
    page = render_page(report, read_stills_of_odd_clips(report.findings))
    write_whole(out, page.encode("utf-8", "replace"))  # a path may hold what is no UTF-8


def render_page(report: DoctorReport, stills: Mapping[Path, bytes]) -> str:
    """stills: JPEG by the clip's path"""
    environment = page_environment("pipeline", "doctor/page")
    environment.filters.update(gib=gib)
    new = [finding for finding in report.findings if not finding.is_known]
    known = [finding for finding in report.findings if finding.is_known]
    return environment.get_template("doctor.html.jinja").render(
        report=report,
        machine=report.machine,
        kinds=KINDS,
        new=_by_kind(new),
        known=_by_kind(known),
        num_new=len(new),
        num_known=len(known),
        stills=stills,
        max_cards=MAX_CARDS,
        max_lines=MAX_LINES,
    )


def read_stills_of_odd_clips(findings: Sequence[Finding]) -> dict[Path, bytes]:
    """Of at most `MAX_STILLS` clips, and as many as can be had in `MAX_SECONDS_FOR_STILLS`."""
    stills: dict[Path, bytes] = {}
    deadline = time.monotonic() + MAX_SECONDS_FOR_STILLS
    with closing(each_still(_most_telling_first(findings))) as read:
        for clip, still in read:
            if still is not None and clip.path is not None:
                stills[clip.path] = still
            if len(stills) == MAX_STILLS or time.monotonic() > deadline:
                break
    return stills


def _most_telling_first(findings: Sequence[Finding]) -> list[LocatedClip]:
    """Each clip with a picture once: those with something new first, then one of each kind, ..."""
    unseen = {finding.path for finding in findings if finding.kind in _NO_PICTURE}
    nth: Counter[tuple[bool, str]] = Counter()
    ranked: list[tuple[bool, int, Path, LocatedClip]] = []
    for finding in findings:
        key, path = finding.key, finding.path
        if key is not None and path is not None and path not in unseen:
            nth[finding.is_known, finding.kind] += 1
            rank = nth[finding.is_known, finding.kind]
            clip = LocatedClip(utterance=Utterance(key=key, text=""), path=path)
            ranked.append((finding.is_known, rank, path, clip))
    ranked.sort(key=lambda each: each[:2])
    first: dict[Path, LocatedClip] = {}
    for _, _, path, clip in ranked:
        first.setdefault(path, clip)
    return list(first.values())


def _by_kind(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """In the order of `KINDS`."""
    grouped = {kind: [each for each in findings if each.kind == kind] for kind in KINDS}
    return {kind: each for kind, each in grouped.items() if each}
