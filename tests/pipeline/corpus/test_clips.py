"""Utterances to media files: MELD's layouts, its corrected test clips, its litter."""

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.clips import index_clips, locate_clips, look_for_clips
from pipeline.errors import InputError
from pipeline.recipe import TestClips
from pipeline.schema import ClipKey, Split, Utterance


def utterance(split: Split, dialogue: int = 0, number: int = 0) -> Utterance:
    return Utterance(key=ClipKey(split, dialogue, number), text="Hi")


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def locate_one(data: Path, split: Split, test_clips: TestClips = "fixed") -> Path | None:
    [clip] = locate_clips(data, split, [utterance(split)], test_clips)
    return clip.path


@pytest.mark.parametrize("root", ["", "MELD.Raw", "MELD-RAW/MELD.Raw"])
@pytest.mark.parametrize(
    ("split", "folder"),
    [
        ("train", "train_splits"),
        ("train", "train/train_splits"),
        ("train", "train"),
        ("dev", "dev_splits_complete"),
        ("dev", "dev/dev_splits_complete"),
        ("dev", "dev"),
        ("test", "output_repeated_splits_test"),
        ("test", "test/output_repeated_splits_test"),
        ("test", "test"),
    ],
)
def test_clips_are_found_in_every_layout(
    tmp_path: Path, root: str, split: Split, folder: str
) -> None:
    path = touch(tmp_path / root / folder / "dia0_utt0.mp4")
    assert locate_one(tmp_path, split) == path


def test_the_corrected_cut_is_taken_for_test_clips_only(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        touch(tmp_path / split / "dia0_utt0.mp4")
        touch(tmp_path / split / "final_videos_testdia0_utt0.mp4")
    assert locate_one(tmp_path, "train") == tmp_path / "train/dia0_utt0.mp4"
    assert locate_one(tmp_path, "dev") == tmp_path / "dev/dia0_utt0.mp4"
    assert locate_one(tmp_path, "test") == tmp_path / "test/final_videos_testdia0_utt0.mp4"


def test_legacy_takes_the_plain_name_even_beside_a_corrected_cut(tmp_path: Path) -> None:
    plain = touch(tmp_path / "test/dia0_utt0.mp4")
    touch(tmp_path / "test/final_videos_testdia0_utt0.mp4")
    assert locate_one(tmp_path, "test", "legacy") == plain


def test_legacy_does_not_fall_back_to_the_corrected_cut(tmp_path: Path) -> None:
    touch(tmp_path / "test/final_videos_testdia0_utt0.mp4")
    assert locate_one(tmp_path, "test", "legacy") is None


def test_a_test_clip_without_corrected_cut_is_the_plain_one(tmp_path: Path) -> None:
    touch(tmp_path / "test/final_videos_testdia1_utt0.mp4")
    assert locate_one(tmp_path, "test") is None
    plain = touch(tmp_path / "test/dia0_utt0.mp4")
    assert locate_one(tmp_path, "test") == plain


def test_apple_double_files_are_no_clips(tmp_path: Path) -> None:
    touch(tmp_path / "train_splits/._dia0_utt0.mp4")
    touch(tmp_path / "._train_splits/dia0_utt0.mp4")
    touch(tmp_path / ".train/dia0_utt0.mp4")
    assert locate_one(tmp_path, "train") is None


def test_a_missing_clip_says_where_it_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "dev_splits_complete").mkdir()
    [clip] = locate_clips(tmp_path, "dev", [utterance("dev", 110, 7)], "fixed")
    assert clip.path is None
    for part in ("dia110_utt7.mp4", "dev_splits_complete"):
        assert part in clip.missing
    assert str(tmp_path) not in clip.missing  # it is kept in caches, which travel


def test_a_corpus_without_any_folder_is_all_absences(tmp_path: Path) -> None:
    clips = locate_clips(tmp_path, "train", [utterance("train", 0, i) for i in range(3)], "fixed")
    assert [clip.path for clip in clips] == [None] * 3


def test_video_is_preferred_to_sound_of_the_same_name(tmp_path: Path) -> None:
    wave = touch(tmp_path / "train/dia0_utt0.wav")
    assert locate_one(tmp_path, "train") == wave
    movie = touch(tmp_path / "train/dia0_utt0.mkv")
    assert locate_one(tmp_path, "train") == movie
    preferred = touch(tmp_path / "train/dia0_utt0.MP4")
    assert locate_one(tmp_path, "train") == preferred


@pytest.mark.parametrize(
    "name",
    [
        "dia0_utt0.mp4.part",
        "dia0_utt0.txt",
        "dia10_utt0.mp4",
        "dia0_utt0 (1).mp4",
        "dia0_utt0",
        " dia0_utt0.mp4",
        "dia0_utt0\n.mp4",
        "dia0_utt\u0660.mp4",
    ],
)
def test_names_that_only_resemble_a_clip_are_none(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "train" / name)
    assert locate_one(tmp_path, "train") is None


@pytest.mark.parametrize(
    "name",
    [
        *("Dia0_Utt0.mp4", "DIA0_UTT0.MP4", "dia00_utt000.mp4", "Dia00_utt0.3gp", "dia0_utt0.Opus"),
        *(
            f"dia0_utt0.{extension}"
            for extension in "3gp 3g2 ts mts m2ts mpg mpeg m4a aac opus flv wmv mov m4v webm mkv "
            "avi wav flac mp3 ogg f4v ogv mka amr caf aiff au w64".split()
        ),
    ],
)
def test_a_clip_may_have_any_extension_letter_case_and_zeros(tmp_path: Path, name: str) -> None:
    assert locate_one(tmp_path, "train") is None
    path = touch(tmp_path / "train" / name)
    assert locate_one(tmp_path, "train") == path


def test_the_corrected_cut_may_be_spelled_otherwise_too(tmp_path: Path) -> None:
    touch(tmp_path / "test/dia0_utt0.mp4")
    corrected = touch(tmp_path / "test/Final_Videos_TestDia00_utt0.MP4")
    assert locate_one(tmp_path, "test") == corrected


def test_ids_as_long_as_a_time_stamp_name_a_clip(tmp_path: Path) -> None:
    path = touch(tmp_path / "train/dia20260101120000_utt1.mp4")
    row = utterance("train", 20260101120000, 1)
    assert locate_clips(tmp_path, "train", [row], "fixed")[0].path == path


def test_of_several_files_of_a_clip_one_is_read_and_the_others_are_known(tmp_path: Path) -> None:
    """Pictures before sound, then the extension, MELD's spelling, the alphabet."""
    names = [
        "dia0_utt0.mp4",
        "DIA0_UTT0.mp4",
        "Dia0_utt0.mp4",
        "DIA0_UTT0.MKV",
        "dia0_utt0.wav",
        "dia0_utt0.mxf",
    ]
    for name in reversed(names):
        touch(tmp_path / "train" / name)
    index = look_for_clips(tmp_path, "train")
    assert index.read["dia0_utt0"].name == names[0]
    assert [path.name for path in index.spare["dia0_utt0"]] == names[1:]
    # A whole second copy of the corpus is not told file by file.
    touch(tmp_path / "train_splits/dia0_utt0.mp4")
    index = look_for_clips(tmp_path, "train")
    assert index.read["dia0_utt0"] == tmp_path / "train_splits/dia0_utt0.mp4"
    assert dict(index.spare) == {}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "dia0_utt0.3gpx",
            "dia0_utt0.3gpx: .3gpx is no extension that is read; rename it to dia0_utt0 with the "
            "extension of its format, or convert it: ffmpeg -i dia0_utt0.3gpx dia0_utt0.mp4",
        ),
        ("Dia00 Utt0.xyz", "convert it: ffmpeg -i 'Dia00 Utt0.xyz' dia0_utt0.mp4"),
        ("dia0_utt0", "dia0_utt0: it has no extension; rename it"),
        ("dia0_utt0.mp4.part", "dia0_utt0.mp4.part: an unfinished download"),
        (
            "dia0_utt0 (1).mp4",
            "dia0_utt0 (1).mp4: not named like a clip; rename it to dia0_utt0.mp4",
        ),
        ("dia0-utt0.MOV", "dia0-utt0.MOV: not named like a clip; rename it to dia0_utt0.mov"),
        ("copy of dia0_utt0.mp4", "copy of dia0_utt0.mp4: not named like a clip"),
        # Neither another clip nor notes beside one are meant.
        ("dia10_utt0.mp4", "no dia0_utt0.mp4, or of another format"),
        ("dia0_utt01.xyz", "no dia0_utt0.mp4, or of another format"),
        ("dia0_utt0.srt", "no dia0_utt0.mp4, or of another format"),
        ("india0_utt0.xyz", "no dia0_utt0.mp4, or of another format"),
    ],
)
def test_a_file_that_is_not_taken_is_named_with_the_reason(
    tmp_path: Path, name: str, told: str
) -> None:
    touch(tmp_path / "train" / name)
    [clip] = locate_clips(tmp_path, "train", [utterance("train")], "fixed")
    assert clip.path is None
    assert told in clip.missing
    assert str(tmp_path) not in clip.missing


def test_a_name_that_is_not_utf8_disturbs_nobody(tmp_path: Path) -> None:
    clip = touch(tmp_path / "train/dia0_utt0.mp4")
    (tmp_path / "train" / os.fsdecode(b"dia\xff.mp4")).write_bytes(b"x")
    assert locate_one(tmp_path, "train") == clip


def test_clips_come_in_the_order_of_utterances_and_paths_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        touch(tmp_path / f"train/dia2_utt{number}.mp4")
    monkeypatch.chdir(tmp_path)
    wanted = [utterance("train", 2, number) for number in (3, 0, 2, 1)]
    clips = locate_clips(Path(), "train", wanted, "fixed")
    assert [clip.utterance for clip in clips] == wanted
    assert [clip.path for clip in clips] == [
        tmp_path / f"train/dia2_utt{number}.mp4" for number in (3, 0, 2, 1)
    ]


def test_a_folder_that_cannot_be_listed_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train").mkdir()

    def refuse(folder: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("pipeline.corpus.clips.os.scandir", refuse)
    with pytest.raises(InputError, match="cannot be listed: Permission denied"):
        locate_one(tmp_path, "train")


def test_a_folder_with_a_clips_name_hides_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "dev_splits_complete"
    for name in ("dia0_utt0.mp4", "dia0_utt1.mp4"):
        (folder / name).mkdir(parents=True)
    (folder / "dia0_utt0.mkv").write_bytes(b"a clip")
    found = index_clips(tmp_path, "dev")
    assert found["dia0_utt0"].name == "dia0_utt0.mkv"
    assert found["dia0_utt1"].name == "dia0_utt1.mp4"  # alone: decoding says that it is no file
