"""`meld doctor` on corpora: planted defects under their names, no clip accused wrongly."""

import html
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from console.show.doctor import render_corpus
from pipeline.corpus.annotations import read_annotations
from pipeline.corpus.clips import index_clips
from pipeline.decode.inspect import ClipInspection, inspect_clip
from pipeline.doctor import inspection
from pipeline.doctor.findings import Finding
from pipeline.errors import InputError
from pipeline.sample.corpus import SampleResult, media_path
from pipeline.schema import SPLITS, LocatedClip
from tests.conftest import Meld
from tests.pipeline.doctor.planted import Examined, run_doctor, shown

# What `meld sample --corrupt` plants -> what the doctor calls it.
NAMES = {
    "truncated_file": {"unreadable"},
    "truncated_data": {"cut_off"},
    "empty_file": {"unreadable"},
    "missing_file": {"missing"},
    "no_audio": {"without_sound"},
    "no_video": {"without_picture"},
    "two_frames": {"too_short", "length_differs"},
    "overlong": {"overlong", "length_differs"},
    "apple_double": set(),
    "curly_text": set(),
}


def planted(corpus: SampleResult) -> set[tuple[str, str]]:
    return {(str(defect.key), name) for defect in corpus.defects for name in NAMES[defect.kind]}


def accused(findings: Sequence[Finding]) -> set[tuple[str, str]]:
    return {(finding.subject, finding.kind) for finding in findings}


@pytest.fixture
def data(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the intact corpus, to be damaged."""
    return Path(shutil.copytree(corpus, tmp_path / "data"))


def test_each_planted_defect_is_named_and_no_other_clip_accused(
    corrupt_corpus: SampleResult, examined: Examined
) -> None:
    report = examined.report
    assert {defect.kind for defect in corrupt_corpus.defects} == NAMES.keys()
    assert accused(report.findings) == planted(corrupt_corpus)
    assert not any(finding.is_known for finding in report.findings)
    assert not report.is_healthy
    assert {split.split: split.apple_double for split in report.splits} == {
        "train": 1,
        "dev": 0,
        "test": 1,
    }
    assert examined.page.read_bytes().startswith(b"<!doctype html>")


def test_an_intact_corpus_is_healthy(corpus: Path, tmp_path: Path) -> None:
    report = run_doctor(corpus, tmp_path)
    assert report.findings == ()
    assert report.is_healthy
    assert sum(split.found for split in report.splits) == report.clips_inspected > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_all_of_it_goes_through_ray_and_a_deadly_clip_costs_only_itself(
    corrupt_corpus: SampleResult, tmp_path: Path, meld: Meld, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corrupt_corpus.root, data)
    defects = {defect.key for defect in corrupt_corpus.defects}
    rows = read_annotations(data / "train_sent_emo.csv", "train")
    deadly, damaged = [row.key for row in rows if row.key not in defects][:2]
    content = bytearray(media_path(data, damaged).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    media_path(data, damaged).write_bytes(content)

    def look(clip: LocatedClip, **rest: Any) -> ClipInspection:
        if clip.path == media_path(data, deadly):
            os.kill(os.getpid(), 9)
        return inspect_clip(clip, **rest)

    monkeypatch.setattr(inspection, "inspect_clip", look)
    finished = meld("doctor", "--data", data, "--deep", "--html", tmp_path / "d.html", "--json")
    assert finished.status == 3, finished.err
    found = {
        (finding["clip"], finding["kind"])
        for split in finished.json["splits"]
        for finding in split["findings"]
    }
    cut = {str(each.key) for each in corrupt_corpus.defects if each.kind == "truncated_data"}
    # Decoded, a cut-off clip is as short as it is cut, and its last packet half a packet.
    consequences = {(clip, kind) for clip in cut for kind in ("damaged", "length_differs")}
    extra = {(str(deadly), "killed_worker"), (str(damaged), "damaged")}
    assert found - consequences == planted(corrupt_corpus) | extra


def test_text_alone_is_one_finding_a_split(corpus: Path, tmp_path: Path) -> None:
    for split in SPLITS:
        shutil.copy(corpus / f"{split}_sent_emo.csv", tmp_path)
    (tmp_path / "train_splits").mkdir()
    report = run_doctor(tmp_path, tmp_path)
    assert [finding.kind for finding in report.findings] == ["no_clips"] * 3
    train = report.splits[0]
    assert train.facts is not None
    assert train.counts("no_clips").new == train.facts.rows
    assert "train_splits is empty" in report.findings[0].message
    assert "no folder dev_splits_complete" in report.findings[1].message


def test_clips_without_a_csv_are_a_finding_and_an_absent_split_is_none(
    data: Path, tmp_path: Path
) -> None:
    (data / "train_sent_emo.csv").unlink()
    (data / "dev_sent_emo.csv").unlink()
    shutil.rmtree(data / "dev_splits_complete")
    report = run_doctor(data, tmp_path)
    [finding] = report.findings
    assert (finding.split, finding.kind) == ("train", "no_annotations")
    assert [split.split for split in report.splits] == ["train", "test"]


def test_strange_things_among_the_clips_are_reported_and_nothing_hangs(
    data: Path, tmp_path: Path
) -> None:
    folder = data / "output_repeated_splits_test"
    first, second, third = sorted(folder.glob("dia*.mp4"))[:3]
    shutil.copy(first, folder / "dia999_utt0.mp4")
    (folder / "dia999_utt1.mp4").write_text("<html>404")
    (folder / "<b>holiday\x1b[31m.mp4").write_bytes(b"")
    for path in (first, second, third):
        path.unlink()
    os.mkfifo(first)
    second.symlink_to(second)
    third.mkdir()
    report = run_doctor(data, tmp_path)
    kinds = [
        (finding.kind, finding.path.name if finding.path else "") for finding in report.findings
    ]
    assert kinds == [
        *(("unreadable", path.name) for path in (first, second, third)),
        ("unannotated", "dia999_utt0.mp4"),
        ("unannotated", "dia999_utt1.mp4"),
        ("unannotated", "<b>holiday\x1b[31m.mp4"),
    ]
    assert "not MP4" in report.findings[4].message  # extras are looked at too
    written = (tmp_path / "doctor.html").read_text()
    assert "<b>holiday" not in written
    assert html.escape("<b>holiday") in written
    told = "\n".join(shown(render_corpus(report)))
    assert "holiday\\x1b[31m.mp4" in told
    assert "\x1b" not in told


def test_an_extras_path_is_reported_once_and_however_many_workers_start_few_threads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(60):
        (data / "train_splits" / f"dia999_utt{n}.mp4").write_text("<html>404")
    threads = set()

    def look(clip: LocatedClip, *, deep: bool) -> ClipInspection:
        threads.add(threading.get_ident())
        time.sleep(0.3)
        return inspect_clip(clip, deep=deep)

    monkeypatch.setattr("pipeline.doctor.inspection.inspect_clip", look)
    report = run_doctor(data, tmp_path, workers=100_000)
    assert len(threads) <= 32
    assert len(report.findings) == 60
    assert not any(str(data) in finding.message for finding in report.findings)


def test_a_folder_that_cannot_be_looked_into_is_named(corpus: Path, tmp_path: Path) -> None:
    shutil.copy(corpus / "train_sent_emo.csv", tmp_path)
    (tmp_path / "MELD.Raw").symlink_to("a" * 300)
    with pytest.raises(InputError, match="File name too long"):
        run_doctor(tmp_path, tmp_path)
    with pytest.raises(InputError, match="File name too long"):
        index_clips(tmp_path, "train")
