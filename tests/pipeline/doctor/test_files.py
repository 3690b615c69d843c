"""Which files are read as clips, and what is said of those that are not."""

from pathlib import Path

from pipeline.doctor.annotations import count_rows
from pipeline.doctor.files import find_files
from pipeline.doctor.judge import Evidence, judge
from tests.pipeline.doctor.planted import plant_rows


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
