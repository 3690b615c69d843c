"""`meld doctor`: checks a corpus and a machine without changing either.

read CSVs -> which files are there -> look at each -> judge -> the page
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.annotations import Annotations, read_annotated
from pipeline.corpus.clips import index_clips
from pipeline.decode.inspect import ClipInspection
from pipeline.doctor.annotations import count_rows
from pipeline.doctor.files import SplitFiles, find_files
from pipeline.doctor.inspection import OnProgress, inspect_clips
from pipeline.doctor.judge import Evidence, judge, without_annotations
from pipeline.doctor.machine import Machine, look_at_machine
from pipeline.doctor.page import write_page
from pipeline.doctor.report import DoctorReport, SplitReport
from pipeline.errors import UsageError
from pipeline.html.page import BEGINS
from pipeline.recipe import DecodeConfig, TestClips
from pipeline.schema import SPLITS, Split
from pipeline.system.files import check_out
from pipeline.system.resources import num_cores


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What to look at. Every default is written here and nowhere else.

    features: where caches would be written; its free disk space is checked
    deep: decode every clip instead of reading headers only
    test_clips: which cut is checked of the 132 test clips of MELD that exist twice
    html: HTML file to write
    weights_dir: folder that is searched for pretrained weights before the libraries' caches
    workers:     CPU cores; None takes all that this process may use
    """

    data: Path = Path("data")
    features: Path = Path("features")
    deep: bool = False
    test_clips: TestClips = DecodeConfig().test_clips
    html: Path = Path("doctor.html")
    weights_dir: Path | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers must be at least 1, not {self.workers}")


def look_around(config: DoctorConfig) -> Machine:
    """Checks the machine alone, which needs no corpus."""
    return look_at_machine(config.data, config.features, config.weights_dir)


def examine(
    config: DoctorConfig, machine: Machine, on_progress: OnProgress = lambda *_: None
) -> DoctorReport:
    """Looks at every clip of every split and writes the page.

    Raises:
        InputError: there is no corpus, or a CSV or a folder cannot be read.
        UsageError, StorageError: the page cannot be written; found before any work.
    """
    started_s = time.monotonic()
    check_out(config.html, begins=BEGINS, option="--html")
    corpus = read_annotated(config.data, None)
    files = {
        split: find_files(config.data, split, annotations.utterances, config.test_clips)
        for split, annotations in corpus.items()
    }
    clips = [clip for each in files.values() for clip in each.to_inspect]
    workers = config.workers if config.workers is not None else num_cores()
    inspections = inspect_clips(clips, deep=config.deep, workers=workers, on_progress=on_progress)
    splits = (
        _report(config, split, corpus[split], files[split], inspections)
        if split in corpus
        else _without_annotations(config, split)
        for split in SPLITS
    )
    report = DoctorReport(
        data=config.data,
        features=config.features,
        weights_dir=config.weights_dir,
        test_clips=config.test_clips,
        deep=config.deep,
        page=config.html,
        machine=machine,
        splits=tuple(split for split in splits if split is not None),
        clips_inspected=len(inspections),
        seconds=time.monotonic() - started_s,
    )
    write_page(report, config.html)
    return report


def _report(
    config: DoctorConfig,
    split: Split,
    annotations: Annotations,
    files: SplitFiles,
    inspections: Mapping[Path, ClipInspection],
) -> SplitReport:
    facts = count_rows(annotations.utterances)
    evidence = Evidence(
        split=split,
        facts=facts,
        files=files,
        inspections=inspections,
        test_clips=config.test_clips,
        unread_times=annotations.unread_times,
    )
    looked_at = [each for clip in files.found if (each := evidence.of(clip)) is not None]
    return SplitReport(
        split=split,
        facts=facts,
        found=len(files.found),
        corrected=len(files.corrected),
        apple_double=files.apple_double,
        hours=sum(each.length_s or 0.0 for each in looked_at) / 3600,
        layouts=_count_layouts(looked_at),
        findings=judge(evidence),
    )


def _without_annotations(config: DoctorConfig, split: Split) -> SplitReport | None:
    """None where there is nothing of the split at all: nobody misses it."""
    clips = index_clips(config.data, split)
    if not clips:
        return None
    return SplitReport(
        split=split,
        facts=None,
        found=0,
        corrected=0,
        apple_double=0,
        hours=0.0,
        layouts={},
        findings=(without_annotations(split, clips.values()),),
    )


def _count_layouts(looked_at: list[ClipInspection]) -> dict[str, int]:
    return dict(Counter(_layout(each) for each in looked_at if each.is_readable).most_common())


def _layout(inspection: ClipInspection) -> str:
    """ "h264 1280x720, aac 6 channels 48000 Hz" """
    picture, sound = inspection.picture, inspection.sound
    words = [
        f"{picture.codec} {picture.width}x{picture.height}" if picture else "no picture",
        f"{sound.codec} {sound.channels} channels {sound.rate_hz} Hz" if sound else "no sound",
    ]
    return ", ".join(words)
