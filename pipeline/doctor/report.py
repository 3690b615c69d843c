"""The report of `meld doctor` as one value."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.doctor.annotations import AnnotationFacts
from pipeline.doctor.findings import KINDS, Finding
from pipeline.doctor.machine import Machine
from pipeline.recipe import TestClips
from pipeline.schema import Split


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Clips (or for findings about a split, that) that have one kind of defect."""

    known: int
    new: int


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """One split. Without a CSV there are no facts.

    found:        rows that have a clip
    corrected:    rows that have a corrected cut
    apple_double: files that macOS left; never read, and no defect
    hours:        of all clips that are read
    layouts:      clips by what their picture and sound are, the commonest first
    """

    split: Split
    facts: AnnotationFacts | None
    found: int
    corrected: int
    apple_double: int
    hours: float
    layouts: dict[str, int]
    findings: tuple[Finding, ...]

    def counts(self, kind: str) -> Counts:
        """Clips with this kind of defect; a clip that has it twice counts once."""
        of_kind = [each for each in self.findings if each.kind == kind]
        new = {each.subject: each.count for each in of_kind if not each.is_known}
        known = {each.subject: each.count for each in of_kind if each.is_known}
        return Counts(known=sum(known.values()), new=sum(new.values()))

    def to_dict(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "annotations": None if self.facts is None else self.facts.to_dict(),
            "found": self.found,
            "corrected_cuts": self.corrected,
            "apple_double_files": self.apple_double,
            "hours": self.hours,
            "layouts": self.layouts,
            "counts": {kind: asdict(self.counts(kind)) for kind in KINDS},
            "findings": [each.to_dict() for each in self.findings],
        }


@dataclass(frozen=True, kw_only=True)
class DoctorReport:
    """features: where caches would be written; weights_dir: where weights were searched for first
    deep: all was decoded, not the headers alone
    clips_inspected, seconds: how many media files were opened, and how long that took
    """

    data: Path
    features: Path
    weights_dir: Path | None
    test_clips: TestClips
    deep: bool
    page: Path
    machine: Machine
    splits: tuple[SplitReport, ...]
    clips_inspected: int
    seconds: float

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for split in self.splits for finding in split.findings)

    @property
    def is_healthy(self) -> bool:
        """Whether there are no new findings."""
        return all(finding.is_known for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "data": str(self.data),
            "healthy": self.is_healthy,
            "test_clips": self.test_clips,
            "deep": self.deep,
            "clips_inspected": self.clips_inspected,
            "seconds": self.seconds,
            "page": str(self.page),
            "splits": [split.to_dict() for split in self.splits],
            "machine": self.machine.to_dict(),
        }
