"""The page: it runs nothing, shows few frames, and replaces no file of somebody else."""

import os
from pathlib import Path

import pytest

from console.show.doctor import render_corpus
from pipeline.doctor import page
from pipeline.doctor.examine import DoctorConfig, examine
from pipeline.doctor.findings import Finding
from pipeline.doctor.report import DoctorReport, SplitReport
from pipeline.errors import StorageError, UsageError
from pipeline.schema import ClipKey
from tests.pipeline.doctor.planted import NOWHERE, Examined, run_doctor, shown


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
        features=Path("features"),
        weights_dir=None,
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
