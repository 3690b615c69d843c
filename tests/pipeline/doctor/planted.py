"""A machine of which nothing is known, and rows and clips whose defects are planted."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.corpus.meld_facts import FRAME_RATE
from pipeline.decode.inspect import ClipInspection, Picture, Sound
from pipeline.doctor.annotations import count_rows, window_s
from pipeline.doctor.examine import DoctorConfig, examine
from pipeline.doctor.files import SplitFiles
from pipeline.doctor.judge import Evidence, judge
from pipeline.doctor.machine import Machine
from pipeline.doctor.report import DoctorReport
from pipeline.schema import ClipKey, LocatedClip, Split, Utterance
from pipeline.system import resources

NOWHERE = Machine(
    cores=1,
    memory=resources.Space(total_bytes=None, free_bytes=None),
    shared_memory=None,
    disks={},
    gpus=(),
    encoders=(),
    extras=(),
)


def run_doctor(data: Path, folder: Path, **settings: Any) -> DoctorReport:
    return examine(DoctorConfig(data=data, html=folder / "doctor.html", **settings), NOWHERE)


@dataclasses.dataclass(frozen=True)
class Examined:
    report: DoctorReport
    page: Path


def shown(*renderables: Any) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*renderables)
    return console.export_text().splitlines()


def plant_rows(split: Split, lengths_s: Sequence[float]) -> list[Utterance]:
    return [
        Utterance(key=ClipKey(split, 7, n), text="", start_s=10.0, end_s=10.0 + length_s)
        for n, length_s in enumerate(lengths_s)
    ]


def healthy_look(key: ClipKey, path: Path, length_s: float) -> ClipInspection:
    frames = max(round(length_s * FRAME_RATE), 1)
    picture = Picture(codec="h264", length_s=length_s, num_frames=frames, width=1280, height=720)
    sound = Sound(codec="aac", length_s=length_s, channels=6, rate_hz=48_000)
    return ClipInspection(key=key, path=path, deep=False, picture=picture, sound=sound)


def plant_evidence(
    rows: Sequence[Utterance],
    lengths_s: dict[int, float | None] | None = None,
    *,
    twins_s: dict[int, float] | None = None,
    test_clips: Any = "fixed",
) -> Evidence:
    """Clips as long as their rows say, but those of `lengths_s` (row -> s, None: no file).

    twins_s: rows that have a corrected cut -> how long their plain one is
    """
    split = rows[0].key.split
    lengths_s, twins_s = lengths_s or {}, twins_s or {}
    clips, twins, inspections = [], [], {}
    for n, row in enumerate(rows):
        length_s = lengths_s.get(n, window_s(row) or 1.0)
        path = Path(f"/corpus/{split}{n}.mp4")
        if length_s is None:
            clips.append(LocatedClip(utterance=row, missing="no such file"))
            continue
        if n in twins_s:
            plain = Path(f"/corpus/plain{n}.mp4")
            twin = LocatedClip(utterance=row, path=plain)
            inspections[plain] = healthy_look(row.key, plain, twins_s[n])
            read, other = (twin, path) if test_clips == "legacy" else (None, None)
            if read is not None and other is not None:
                twin = LocatedClip(utterance=row, path=other)
                clips.append(read)
            twins.append(twin)
        if n not in twins_s or test_clips != "legacy":
            clips.append(LocatedClip(utterance=row, path=path))
        inspections[path] = healthy_look(row.key, path, length_s)
    files = SplitFiles(
        split=split,
        folders=(Path("/corpus"),),
        clips=tuple(clips),
        twins=tuple(twins),
        corrected=frozenset(twin.utterance.key for twin in twins),
        unannotated=(),
        spare=(),
        foreign=(),
        misnamed=frozenset(),
        apple_double=0,
    )
    return Evidence(
        split=split,
        facts=count_rows(rows),
        files=files,
        inspections=inspections,
        test_clips=test_clips,
    )


def new_and_known(evidence: Evidence) -> tuple[list[str], list[str]]:
    findings = judge(evidence)
    new = [f"{each.subject} {each.kind}" for each in findings if not each.is_known]
    return new, [f"{each.subject} {each.kind}" for each in findings if each.is_known]
