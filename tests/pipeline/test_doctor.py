"""`meld doctor`: planted defects under their names, no clip accused wrongly, what is known."""

import dataclasses
import html
import importlib.metadata
import io
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from rich.console import Console

from console.show.doctor import render_corpus, render_machine, show_checkup
from pipeline.corpus.annotations import UnreadTimes, read_annotations
from pipeline.corpus.clips import index_clips
from pipeline.corpus.layout import find_annotations
from pipeline.corpus.meld_facts import FRAME_RATE, PUBLISHED, PublishedSplit, hash_keys
from pipeline.decode.inspect import ClipInspection, Picture, Sound, inspect_clip
from pipeline.doctor import inspection, page
from pipeline.doctor.advice import next_steps
from pipeline.doctor.annotations import count_rows, window_s
from pipeline.doctor.examine import DoctorConfig, examine, look_around
from pipeline.doctor.files import SplitFiles, find_files
from pipeline.doctor.findings import Finding
from pipeline.doctor.judge import Evidence, judge
from pipeline.doctor.machine import EncoderState, Machine, look_at_machine
from pipeline.doctor.report import DoctorReport, SplitReport
from pipeline.encoders import weights
from pipeline.errors import InputError, StorageError, UsageError
from pipeline.sample.corpus import SampleResult, media_path
from pipeline.schema import SPLITS, ClipKey, LocatedClip, Split, Utterance
from pipeline.system import resources

Meld = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared" / "meld"
needs_meld = pytest.mark.skipif(
    not (REAL / "train_sent_emo.csv").is_file(), reason="the real MELD annotations are not here"
)

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


def accused(findings: Sequence[Finding]) -> set[tuple[str, str]]:
    return {(finding.subject, finding.kind) for finding in findings}


def shown(*renderables: Any) -> list[str]:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(*renderables)
    return console.export_text().splitlines()


@dataclasses.dataclass(frozen=True)
class Examined:
    report: DoctorReport
    page: Path


@pytest.fixture(scope="module")
def examined(corrupt_corpus: SampleResult, tmp_path_factory: pytest.TempPathFactory) -> Examined:
    """The corpus with every defect, looked at once."""
    folder = tmp_path_factory.mktemp("examined")
    return Examined(run_doctor(corrupt_corpus.root, folder), folder / "doctor.html")


# --- generated corpora


def test_each_planted_defect_is_named_and_no_other_clip_accused(
    corrupt_corpus: SampleResult, examined: Examined
) -> None:
    report = examined.report
    assert {defect.kind for defect in corrupt_corpus.defects} == NAMES.keys()
    planted = {
        (str(defect.key), name) for defect in corrupt_corpus.defects for name in NAMES[defect.kind]
    }
    assert accused(report.findings) == planted
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
    planted = {
        (str(defect.key), name) for defect in corrupt_corpus.defects for name in NAMES[defect.kind]
    }
    cut = {str(each.key) for each in corrupt_corpus.defects if each.kind == "truncated_data"}
    # Decoded, a cut-off clip is as short as it is cut, and its last packet half a packet.
    consequences = {(clip, kind) for clip in cut for kind in ("damaged", "length_differs")}
    extra = {(str(deadly), "killed_worker"), (str(damaged), "damaged")}
    assert found - consequences == planted | extra


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
    corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus, tmp_path / "data")
    (tmp_path / "data" / "train_sent_emo.csv").unlink()
    (tmp_path / "data" / "dev_sent_emo.csv").unlink()
    shutil.rmtree(tmp_path / "data" / "dev_splits_complete")
    report = run_doctor(tmp_path / "data", tmp_path)
    [finding] = report.findings
    assert (finding.split, finding.kind) == ("train", "no_annotations")
    assert [split.split for split in report.splits] == ["train", "test"]


def test_strange_things_among_the_clips_are_reported_and_nothing_hangs(
    corpus: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
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
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
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


# --- known and new: rows that are MELD's, as far as the planted publication goes


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


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """publish(rows, missing=...): the world knows these rows as MELD's, and that about them."""

    def publish_rows(rows: Sequence[Utterance], **known: Any) -> None:
        facts = count_rows(rows)
        nothing: frozenset[tuple[int, int]] = frozenset()
        values: dict[str, Any] = {
            **dict.fromkeys(("missing", "unreadable", "unannotated"), nothing),
            "zero_windows": nothing,
            "num_overlong": facts.overlong,
            "num_too_short": facts.too_short,
            "num_length_differs": 0,
            **{name: getattr(facts, name) for name in ("rows", "dialogues", "emotions")},
            **{name: getattr(facts, name) for name in ("gap_dialogues", "gap_ids", "sentiments")},
            "keys_hash": hash_keys(row.key for row in rows),
            **known,
        }
        monkeypatch.setitem(PUBLISHED, rows[0].key.split, PublishedSplit(**values))

    return publish_rows


def new_and_known(evidence: Evidence) -> tuple[list[str], list[str]]:
    findings = judge(evidence)
    new = [f"{each.subject} {each.kind}" for each in findings if not each.is_known]
    return new, [f"{each.subject} {each.kind}" for each in findings if each.is_known]


def test_times_that_were_not_read_are_one_finding_with_their_rows() -> None:
    rows = plant_rows("dev", [2.0] * 3)
    unread = (
        UnreadTimes(column="StartTime", rows=(2, 3), first="soon"),
        UnreadTimes(column="EndTime", rows=(3,), first="later"),
    )
    evidence = dataclasses.replace(plant_evidence(rows), unread_times=unread)
    (finding,) = judge(evidence)
    assert (finding.kind, finding.count, finding.is_known) == ("unread_times", 2, False)
    for part in ("StartTime, rows 2, 3", "'soon'", "EndTime, row 3", "'later'"):
        assert part in finding.message


def test_a_start_without_an_end_tells_no_length() -> None:
    row = Utterance(key=ClipKey("train", 20240101120000, 0), text="Hi", start_s=5.0)
    facts = count_rows([row])
    assert (facts.zero_windows, facts.too_short, facts.overlong) == (0, 0, 0)


def test_a_published_defect_is_known_and_another_of_its_kind_is_new(publish) -> None:
    rows = plant_rows("dev", [2.0] * 4)
    publish(rows, missing=frozenset({(7, 1)}))
    new, known = new_and_known(plant_evidence(rows, {1: None, 2: None}))
    assert (new, known) == (["dev dia7_utt2 missing"], ["dev dia7_utt1 missing"])


def test_to_rows_that_are_not_exactly_melds_nothing_published_applies(publish) -> None:
    rows = plant_rows("dev", [2.0] * 4)
    publish(rows, missing=frozenset({(7, 1)}))
    new, known = new_and_known(plant_evidence(rows[:3], {1: None}))
    assert (new, known) == (["dev dia7_utt1 missing"], [])


def test_a_clip_is_long_or_short_as_annotated_or_it_is_a_finding() -> None:
    rows = plant_rows("train", [25.0, 2.0, 0.3, 2.0])
    new, known = new_and_known(plant_evidence(rows, {1: 25.0, 3: 0.1}))
    assert known == ["train dia7_utt0 overlong", "train dia7_utt2 too_short"]
    assert new == [
        "train dia7_utt1 overlong",
        "train dia7_utt3 too_short",
        "train dia7_utt1 length_differs",
        "train dia7_utt3 length_differs",
    ]


def test_so_many_lengths_may_differ_as_are_published_and_no_more(publish) -> None:
    rows = plant_rows("train", [2.0, 3.0, 4.0, 0.0])
    publish(rows, num_length_differs=2, zero_windows=frozenset({(7, 3)}))
    new, known = new_and_known(plant_evidence(rows, {0: 3.0, 1: 2.0, 3: 9.0}))
    assert (new, known) == (
        [],
        ["train dia7_utt0 length_differs", "train dia7_utt1 length_differs"],
    )
    new, known = new_and_known(plant_evidence(rows, {0: 3.0, 1: 2.0, 2: 5.0}))
    assert (len(new), known) == (3, [])


def test_legacy_reads_the_mis_cut_test_clips_on_purpose(publish, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.doctor.judge.NUM_CORRECTED_CUTS", 2)
    rows = plant_rows("test", [2.0] * 4)
    publish(rows, num_length_differs=2)
    twins_s = {0: 4.0, 1: 5.0}
    legacy = plant_evidence(rows, twins_s=twins_s, test_clips="legacy")
    differing = ["test dia7_utt0 length_differs", "test dia7_utt1 length_differs"]
    assert new_and_known(legacy) == ([], differing)
    assert new_and_known(plant_evidence(rows, twins_s=twins_s)) == ([], [])
    # Both that are published are accounted for by their twins: a third is new.
    new, _ = new_and_known(plant_evidence(rows, {3: 4.0}, twins_s=twins_s))
    assert new == ["test dia7_utt3 length_differs"]
    # A corrected cut that is not what its row says corrects nothing.
    new, _ = new_and_known(plant_evidence(rows, {0: 4.0}, twins_s=twins_s))
    assert new == ["test dia7_utt0 length_differs"]


def test_a_lacking_corrected_cut_would_be_replaced_silently_and_is_reported(
    publish, monkeypatch
) -> None:
    monkeypatch.setattr("pipeline.doctor.judge.NUM_CORRECTED_CUTS", 3)
    rows = plant_rows("test", [2.0] * 4)
    publish(rows)
    [finding] = judge(plant_evidence(rows, twins_s={0: 2.0}))
    assert (finding.kind, finding.count, finding.is_known) == ("corrected_cuts", 2, False)
    [finding] = judge(plant_evidence(rows, twins_s={0: 2.0}, test_clips="legacy"))
    assert finding.is_known


def test_labels_that_are_not_as_published_are_reported(publish) -> None:
    rows = plant_rows("dev", [2.0] * 3)
    publish(rows)
    relabelled = [dataclasses.replace(rows[0], emotion="joy"), *rows[1:]]
    [finding] = judge(plant_evidence(relabelled))
    assert finding.kind == "annotations_differ"
    assert "joy 1" in finding.message


def test_the_csv_of_another_split_is_reported(publish) -> None:
    publish(plant_rows("train", [2.0] * 3))
    [finding] = judge(plant_evidence(plant_rows("dev", [2.0] * 3)))
    assert (finding.kind, finding.split) == ("other_split", "dev")


def test_both_cuts_of_a_clip_are_found_and_the_chosen_one_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "output_repeated_splits_test"
    folder.mkdir()
    plain, corrected = folder / "dia7_utt0.mp4", folder / "final_videos_testdia7_utt0.mp4"
    for path in (plain, corrected, folder / "._dia7_utt0.mp4"):
        path.touch()
    rows = plant_rows("test", [2.0])
    for test_clips, read, other in (("fixed", corrected, plain), ("legacy", plain, corrected)):
        files = find_files(tmp_path, "test", rows, test_clips)
        assert [clip.path for clip in files.clips] == [read]
        assert [clip.path for clip in files.twins] == [other]
        assert (files.unannotated, files.foreign, files.apple_double) == ((), (), 1)


def test_files_that_are_not_read_are_reported_with_what_is_read_in_their_place(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "dev_splits_complete"
    folder.mkdir()
    names = "dia7_utt0.mp4 DIA7_UTT0.mp4 dia7_utt0.wav dia7_utt0.srt dia7_utt1.3gpx dia9_utt9.xyz"
    for name in [*names.split(), "dia7_utt2 (1).mp4", "dia8_utt0.mp4", "dia8_utt0.mp3"]:
        (folder / name).touch()
    rows = plant_rows("dev", [2.0] * 3)
    files = find_files(tmp_path, "dev", rows, "fixed")
    assert [clip.path is not None for clip in files.clips] == [True, False, False]
    evidence = Evidence(
        split="dev", facts=count_rows(rows), files=files, inspections={}, test_clips="fixed"
    )
    told = {
        (finding.kind, finding.path.name if finding.path else "", finding.message.split(";")[0])
        for finding in judge(evidence)
        if finding.kind != "annotations_differ"
    }
    not_named_like = "not named like a clip (dia1_utt2.mp4)"
    unknown = "is no extension that is read"
    assert told >= {
        ("second_file", "DIA7_UTT0.mp4", "dia7_utt0.mp4 is read in its place"),
        ("second_file", "dia7_utt0.wav", "dia7_utt0.mp4 is read in its place"),
        ("second_file", "dia8_utt0.mp3", "dia8_utt0.mp4 is read in its place"),
        ("missing", "", f"dia7_utt1.3gpx: .3gpx {unknown}"),
        ("missing", "", "dia7_utt2 (1).mp4: not named like a clip"),
        ("unannotated", "dia7_utt2 (1).mp4", not_named_like),
        ("unannotated", "dia8_utt0.mp4", "no row tells of it"),
        ("unannotated", "dia9_utt9.xyz", f"dia9_utt9.xyz: .xyz {unknown}"),
    }
    assert not any("srt" in name for _, name, _ in told)


def test_where_no_clip_is_read_each_row_tells_why(tmp_path: Path) -> None:
    (tmp_path / "dev_splits_complete").mkdir()
    (tmp_path / "dev_splits_complete" / "dia7_utt0.3gpx").touch()
    files = find_files(tmp_path, "dev", plant_rows("dev", [2.0]), "fixed")
    assert not files.is_empty


def test_rows_without_time_stamps_have_no_length_to_be_judged() -> None:
    rows = [
        Utterance(key=ClipKey("train", 0, number), text="Hi", start_s=start_s, end_s=end_s)
        for number, (start_s, end_s) in enumerate([(0, 0), (5, 5), (5, 5.1), (5, 30)])
    ]
    facts = count_rows(rows)
    assert (facts.zero_windows, facts.too_short, facts.overlong) == (1, 2, 1)


# --- the real CSVs


@pytest.mark.heavy
@needs_meld
@pytest.mark.parametrize(
    ("split", "overlong", "too_short"), [("train", 7, 467), ("dev", 2, 50), ("test", 2, 148)]
)
def test_the_real_csvs_have_the_published_counts(
    split: Split, overlong: int, too_short: int
) -> None:
    rows = read_annotations(REAL / f"{split}_sent_emo.csv", split)
    facts = count_rows(rows)
    published = PUBLISHED[split]
    assert facts.meld == split
    assert (facts.overlong, facts.too_short) == (overlong, too_short)
    assert (facts.rows, facts.dialogues) == (published.rows, published.dialogues)
    assert (facts.gap_dialogues, facts.gap_ids) == (published.gap_dialogues, published.gap_ids)
    assert facts.zero_windows == len(published.zero_windows)
    assert (facts.emotions, facts.sentiments) == (published.emotions, published.sentiments)


@pytest.mark.heavy
@needs_meld
@pytest.mark.parametrize("split", SPLITS)
def test_melds_own_clips_with_all_that_is_published_are_healthy_and_one_more_is_reported(
    split: Split,
) -> None:
    rows = read_annotations(REAL / f"{split}_sent_emo.csv", split)
    row_of = {row.key[1:]: n for n, row in enumerate(rows)}
    gone: dict[int, float | None] = {row_of[key]: None for key in PUBLISHED[split].missing}
    twins_s = dict.fromkeys(range(132), 99.0) if split == "test" else {}
    new, known = new_and_known(plant_evidence(rows, gone, twins_s=twins_s))
    assert new == []
    kinds = [line.rpartition(" ")[2] for line in known]
    assert kinds.count("overlong") == PUBLISHED[split].num_overlong
    assert kinds.count("missing") == len(gone)
    # A clip has whole pictures, its row's time stamps do not.
    assert abs(kinds.count("too_short") - PUBLISHED[split].num_too_short) <= 10
    healthy = next(n for n in range(200, len(rows)) if rows[n].end_s - rows[n].start_s > 2)
    new, _ = new_and_known(plant_evidence(rows, {**gone, healthy: None}, twins_s=twins_s))
    assert new == [f"{rows[healthy].key} missing"]


# --- the machine


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> None:
        raise AssertionError(f"{url} was asked")

    monkeypatch.setattr(weights, "_check_answers", refuse)


def test_missing_weights_are_named_with_the_ways_to_get_them_and_nothing_is_downloaded(
    no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    machine = look_at_machine(tmp_path, tmp_path, tmp_path / "weights")
    states = {each.name: each for each in machine.encoders}
    assert [name for name, each in states.items() if not each.is_present] == [
        "bert-base-uncased",
        "r3d_18",
    ]
    assert "--text minilm" in states["bert-base-uncased"].how
    assert "r3d_18-b3b3357e.pth" in states["r3d_18"].how
    lines = shown(render_machine(machine))
    assert any("NOT FOUND" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_weights_that_are_there_are_found_and_a_broken_off_download_is_not_taken_for_them(
    no_network: None, tmp_path: Path
) -> None:
    bert = tmp_path / "bert-base-uncased"
    bert.mkdir()
    (bert / "config.json").write_text("{}")
    (tmp_path / "r3d_18-b3b3357e.pth").write_bytes(b"weights")

    def present() -> dict[str, bool]:
        machine = look_at_machine(tmp_path, tmp_path, tmp_path)
        return {each.name: each.is_present for each in machine.encoders}

    assert present()["r3d_18"]
    assert not present()["bert-base-uncased"]
    (bert / "model.safetensors").write_bytes(b"weights")
    assert present()["bert-base-uncased"]


def test_weights_in_torch_hubs_folder_are_found_beside_a_weights_folder(
    no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "r3d_18-b3b3357e.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"weights")
    machine = look_at_machine(tmp_path, tmp_path, tmp_path / "texts")
    states = {each.name: each for each in machine.encoders}
    assert states["r3d_18"].where == str(cached)


def test_missing_system_information_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_MEMORY_INFO", "_MEMORY_LIMIT", "_SHARED_MEMORY"):
        monkeypatch.setattr(resources, name, tmp_path / "none")
    monkeypatch.setattr(os, "sysconf_names", {})
    assert resources.memory() == resources.Space(total_bytes=None, free_bytes=None)
    assert resources.shared_memory() is None
    told = "\n".join(shown(render_machine(NOWHERE)))
    assert "unknown" in told
    assert re.search(r"shared memory.*none", told)


def test_a_containers_limit_is_the_memory_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "info").write_text("MemTotal: 8000 kB\nMemAvailable: 6000 kB\nHugePages_Free: 0\n")
    (tmp_path / "limit").write_text("2048000\n")
    monkeypatch.setattr(resources, "_MEMORY_INFO", tmp_path / "info")
    monkeypatch.setattr(resources, "_MEMORY_LIMIT", tmp_path / "limit")
    assert resources.memory() == resources.Space(total_bytes=2_048_000, free_bytes=2_048_000)
    (tmp_path / "limit").write_text("max\n")
    assert resources.memory() == resources.Space(total_bytes=8_192_000, free_bytes=6_144_000)


def test_too_little_shared_memory_is_a_concern() -> None:
    small = resources.Space(total_bytes=2**26, free_bytes=2**26)
    [line] = dataclasses.replace(NOWHERE, shared_memory=small).concerns
    assert "0.1 GiB free of the 0.5 GiB that Ray wants" in line


def test_an_extra_that_is_not_installed_is_reported_with_its_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = ["torch>=2", "no-such-voice==1 ; extra == 'sample'", 'pytest>=9; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: told)
    [extra] = look_at_machine(tmp_path, tmp_path, None).extras
    assert (extra.missing, extra.command) == (("no-such-voice",), "pip install 'meld[sample]'")


# --- the page, the tables, the command


def test_the_page_loads_and_runs_nothing_and_shows_frames_of_the_odd_clips(
    examined: Examined,
) -> None:
    written = examined.page.read_text()
    assert "default-src 'none'" in written
    assert "<script" not in written
    assert "http://" not in written
    # Silent, overlong, of two frames and cut off; the last but one and the second have two cards.
    assert written.count("data:image/jpeg;base64,") == 6
    assert "10 findings are new" in written


def test_what_is_known_is_listed_and_markup_from_outside_is_text() -> None:
    path = Path("/corpus/<img src=x onerror=y>.mp4")
    findings = tuple(
        Finding(
            split="dev",
            kind="too_short",
            message="</li><script>1</script>",
            known_why="as annotated",
            key=ClipKey("dev", 0, n),
            path=path if n == 0 else None,
        )
        for n in range(page.MAX_LINES + 5)
    )
    split = SplitReport(
        split="dev",
        facts=None,
        found=0,
        corrected=0,
        apple_double=0,
        hours=0.0,
        layouts={"<b>h264": 1},
        findings=findings,
    )
    report = DoctorReport(
        data=Path("<i>data"),
        test_clips="fixed",
        deep=True,
        page=Path("doctor.html"),
        machine=NOWHERE,
        splits=(split,),
        clips_inspected=0,
        seconds=0.0,
    )
    written = page.render_page(report, {path: b"picture"})
    assert "Nothing new is wrong" in written
    assert "dev dia0_utt1999" in written
    assert "and 5 more: meld doctor --json has all" in written
    assert written.count("data:image/jpeg") == 1
    assert not any(tag in written for tag in ("<script", "<img src=x", "<b>h264", "<i>data"))


def test_frames_are_few_and_begin_with_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_STILLS", 3)
    monkeypatch.setattr(page, "each_still", lambda clips: ((clip, b"picture") for clip in clips))

    def finding(n: int, kind: str, why: str) -> Finding:
        key = ClipKey("train", 0, n)
        return Finding(
            split="train", kind=kind, message="", known_why=why, key=key, path=Path(f"{n}")
        )

    findings = [
        *(finding(n, "too_short", "published") for n in range(5)),
        finding(5, "overlong", ""),
        finding(6, "overlong", "published"),
        finding(7, "killed_worker", ""),
    ]
    assert set(page.read_stills_of_odd_clips(findings)) == {Path("5"), Path("0"), Path("6")}


def test_another_file_in_the_place_of_the_page_stays(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "doctor.html").write_text("my notes")
    with pytest.raises(UsageError, match="name another --html"):
        run_doctor(corpus, tmp_path)
    assert (tmp_path / "doctor.html").read_text() == "my notes"
    with pytest.raises(StorageError, match="--html takes a file"):
        examine(DoctorConfig(data=corpus, html=tmp_path), NOWHERE)


def test_what_is_no_regular_file_is_never_the_page_and_nothing_hangs(
    corpus: Path, tmp_path: Path
) -> None:
    """A page put in the place of a device such as /dev/null would harm the machine."""
    pipe = tmp_path / "pipe.html"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="not a regular file"):
        examine(DoctorConfig(data=corpus, html=pipe), NOWHERE)
    assert pipe.is_fifo()
    with pytest.raises(StorageError, match="File name too long"):
        examine(DoctorConfig(data=corpus, html=tmp_path / f"{'a' * 300}.html"), NOWHERE)


def test_the_name_of_the_page_moves_no_cursor(corpus: Path, tmp_path: Path) -> None:
    page_path = tmp_path / os.fsdecode(b"\xff\x1b[31m.html")
    report = examine(DoctorConfig(data=corpus, html=page_path), NOWHERE)
    told = "\n".join(shown(render_corpus(report)))
    assert "\x1b" not in told
    told.encode()  # a terminal takes all of it


def test_tables_fit_eighty_columns_and_long_lists_say_how_many_more(
    examined: Examined,
) -> None:
    report = examined.report
    many = tuple(
        Finding(split="dev", kind="missing", message="gone", key=ClipKey("dev", 0, n))
        for n in range(1200)
    )
    splits = (*report.splits[:1], dataclasses.replace(report.splits[1], findings=many))
    lines = shown(render_corpus(dataclasses.replace(report, splits=splits)))
    assert max(map(len, lines)) <= 80
    assert any("1,200 new" in line for line in lines)
    assert "  missing: and 1,195 more" in [line.rstrip() for line in lines]


def test_the_command_tells_machine_and_corpus_in_one_json_object(
    meld: Meld, corpus: Path, tmp_path: Path
) -> None:
    finished = meld("doctor", "--data", corpus, "--html", tmp_path / "doctor.html", "--json")
    assert finished.status == 0, finished.err
    told = finished.json
    assert told["healthy"]
    assert told["test_clips"] == "fixed"
    assert told["machine"]["cores"] >= 1
    assert [split["split"] for split in told["splits"]] == list(SPLITS)
    assert json.loads((corpus / "sample.json").read_text())["complete"]  # nothing was changed


def test_without_a_corpus_the_machine_is_reported_and_then_what_is_wrong(
    meld: Meld, tmp_path: Path
) -> None:
    options = ("doctor", "--data", tmp_path / "none", "--html", tmp_path / "doctor.html")
    finished = meld(*options)
    assert finished.status == 4, finished.err
    assert "CPU cores" in finished.out
    assert len(finished.err.splitlines()) == 1
    assert "no such folder" in finished.err
    finished = meld(*options, "--json")
    assert finished.status == 4
    assert finished.json["machine"]["cores"] >= 1
    assert "no such folder" in finished.json["error"]
    with pytest.raises(InputError):
        examine(DoctorConfig(data=tmp_path / "none", html=tmp_path / "doctor.html"), NOWHERE)
    assert not (tmp_path / "doctor.html").exists()


@pytest.mark.parametrize("data", [Path("not/yet"), Path("a" * 300)])
def test_the_machine_is_looked_at_without_a_corpus(tmp_path: Path, data: Path) -> None:
    machine = look_around(DoctorConfig(data=tmp_path / data))
    assert machine.cores >= 1
    assert all(space.free_bytes for space in machine.disks.values())


# --- what comes next


def machine_with(**present: bool) -> Machine:
    """A machine on which these encoders' weights are, or are not."""
    encoders = tuple(
        EncoderState(
            modality="text" if name == "minilm" else name,
            name=name,
            is_default=name != "minilm",
            is_present=is_present,
        )
        for name, is_present in present.items()
    )
    return dataclasses.replace(NOWHERE, encoders=encoders)


def test_the_next_command_is_one_that_can_run_here(
    examined: Examined, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = machine_with(text=True, video=True, minilm=True)
    report = dataclasses.replace(examined.report, data=Path("my data"), machine=whole)
    dry, real, training = next_steps(report)
    assert real == "meld extract --split all --data 'my data'"
    assert (dry, training) == (f"{real} --dry-run", "meld train-fusion")
    bare = dataclasses.replace(report, machine=machine_with(text=False, video=False, minilm=True))
    assert next_steps(bare)[1] == f"{real} --modalities text,audio --text minilm"
    show_checkup(bare, as_json=False)
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "next:",
        *(f"  {line}" for line in next_steps(bare)),
    ]


def test_text_alone_is_extracted_where_there_are_no_clips(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = find_annotations(corpus, "train")
    assert table is not None
    shutil.copy(table, tmp_path / "data")
    report = run_doctor(tmp_path / "data", tmp_path)
    assert next_steps(report)[1].endswith("--modalities text")
    [finding] = report.findings
    assert "no folder train_splits or train, for clips such as dia0_utt0.mp4" in finding.message


@pytest.mark.parametrize(
    ("name", "labels", "told"),
    [
        ("dev_sent_emo.csv", "joy,positive", "train_sent_emo.csv is what a model learns from"),
        ("train_sent_emo.csv", ",", "no row of train has an emotion or a sentiment"),
    ],
)
def test_what_training_waits_for_is_reported(
    tmp_path: Path, name: str, labels: str, told: str
) -> None:
    header = "Dialogue_ID,Utterance_ID,Utterance,Emotion,Sentiment"
    (tmp_path / name).write_text(f"{header}\n0,0,Hello,{labels}\n")
    first, second = next_steps(run_doctor(tmp_path, tmp_path))
    assert told in first
    assert second == "meld predict FILE"
