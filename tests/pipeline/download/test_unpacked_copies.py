"""`meld download --from` a copy that is unpacked, wholly or in part: it is used in place."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.corpus.layout import MEDIA_FOLDERS
from pipeline.errors import InputError, UsageError
from pipeline.schema import SPLITS
from tests.pipeline.download.imitation import Packed, get, tree, unpack_outer, write_tree


def kaggle_names(files: Mapping[str, bytes]) -> dict[str, bytes]:
    moved = {}
    for name, content in files.items():
        split = next(s for s in SPLITS if name.startswith((MEDIA_FOLDERS[s], f"{s}_sent")))
        deeper = name.endswith(".mp4") or split == "train"
        moved[f"MELD-RAW/MELD.Raw/{f'{split}/' if deeper else ''}{name}"] = content
    return moved


def test_an_unpacked_tree_is_used_in_place(packed: Packed, out: Path, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "mine", packed.files)
    report = get(out, source)
    assert report.linked == SPLITS
    assert (out / "train_splits").resolve() == source / "train_splits"
    assert (out / "train_sent_emo.csv").read_bytes() == packed.files["train_sent_emo.csv"]
    assert report.clips == {"train": 120, "dev": 12, "test": 37}
    assert get(out, source).linked == SPLITS
    assert get(out).linked == SPLITS


@pytest.mark.parametrize("begin", ["", "MELD-RAW", "MELD-RAW/MELD.Raw"])
def test_the_kaggle_layout_is_recognised_wherever_one_points(
    packed: Packed, out: Path, tmp_path: Path, begin: str
) -> None:
    source = write_tree(tmp_path / "kaggle", kaggle_names(packed.files))
    report = get(out, source / begin)
    assert report.linked == SPLITS
    assert report.clips == {"train": 120, "dev": 12, "test": 37}
    assert (out / "dev_splits_complete/dia0_utt0.mp4").is_file()


def test_a_half_unpacked_archive_is_unpacked_the_rest_of_the_way(
    packed: Packed, out: Path, tmp_path: Path
) -> None:
    get(out, unpack_outer(packed, tmp_path))
    assert tree(out) == packed.files


def test_a_folder_with_the_archive_in_it_is_as_good_as_the_archive(
    packed: Packed, out: Path, tmp_path: Path
) -> None:
    shutil.copy(packed.path, tmp_path / "MELD.Raw.tar.gz")
    get(out, tmp_path)
    assert tree(out) == packed.files


def test_splits_may_come_in_different_shapes(packed: Packed, out: Path, tmp_path: Path) -> None:
    source = unpack_outer(packed, tmp_path)
    write_tree(source, packed.of("dev"))
    report = get(out, source)
    assert report.linked == ("dev",)
    assert report.found is not None
    assert report.found.clips == {"train": 120, "test": 37}


def test_a_folder_without_a_split_is_refused_with_what_was_looked_for(
    packed: Packed, out: Path, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "mine", packed.of("dev", "test"))
    with pytest.raises(InputError, match=r"for train there is neither .* train\.tar\.gz"):
        get(out, source)
    assert get(out, source, splits=("dev", "test")).linked == ("dev", "test")


def test_an_option_that_would_not_count_is_refused(
    packed: Packed, out: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--keep-archive: nothing is fetched with --from"):
        get(out, packed.path, keep_archive=True)
    source = write_tree(tmp_path / "unpacked", packed.files)
    with pytest.raises(UsageError, match=r"--sha256: .*unpacked is unpacked, and no archive is"):
        get(out, source, sha256=packed.sha256)
    assert not (out / "train_splits").exists()


def test_a_folder_used_in_place_may_be_out_itself(packed: Packed, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "data", packed.files)
    report = get(source, source)
    assert report.linked == SPLITS
    assert tree(source) == packed.files


def test_clips_that_are_there_are_no_reason_to_fetch_ten_gigabytes(
    packed: Packed, out: Path
) -> None:
    write_tree(out, packed.files)
    with pytest.raises(InputError, match=r"has clips of train already.*--from"):
        get(out)


def test_a_file_in_the_place_of_a_link_is_refused(
    packed: Packed, out: Path, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "mine", packed.files)
    write_tree(out, {"train_sent_emo.csv": b"mine"})
    with pytest.raises(InputError, match=r"train_sent_emo\.csv: already exists"):
        get(out, source)
    assert (out / "train_sent_emo.csv").read_bytes() == b"mine"


def test_a_zip_as_kaggle_packs_it_is_to_be_unpacked_first(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(b"PK\x03\x04" + bytes(600))
    with pytest.raises(InputError, match="a zip; unpack it, and pass the folder"):
        get(out, path)


def test_what_is_not_there_is_an_input_error(out: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        get(out, tmp_path / "nothing")


@pytest.mark.parametrize("shape", ["empty", "half there", "of other files"])
def test_of_two_copies_of_a_split_the_fuller_one_is_used(
    packed: Packed, out: Path, tmp_path: Path, shape: str
) -> None:
    source = write_tree(tmp_path / "kaggle", kaggle_names(packed.files))
    flat = source / "MELD-RAW/MELD.Raw/train_splits"
    flat.mkdir()
    if shape != "empty":
        name = "dia0_utt0.mp4" if shape == "half there" else "readme.txt"
        (flat / name).write_bytes(b"x")
    assert get(out, source).clips == {"train": 120, "dev": 12, "test": 37}


def test_a_folder_without_clips_is_no_unpacked_split(
    packed: Packed, out: Path, tmp_path: Path
) -> None:
    source = write_tree(tmp_path / "mine", packed.of("dev"))
    shutil.rmtree(source / "dev_splits_complete")
    (source / "dev_splits_complete").mkdir()
    with pytest.raises(InputError, match="for dev there is neither"):
        get(out, source, splits=("dev",))


def test_where_one_link_cannot_be_made_none_is(packed: Packed, out: Path, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "mine", packed.files)
    write_tree(out, {"test_sent_emo.csv": b"mine"})
    with pytest.raises(InputError, match=r"test_sent_emo\.csv: already exists"):
        get(out, source)
    assert tree(out) == {"test_sent_emo.csv": b"mine"}
    assert not (out / "train_splits").is_symlink()
