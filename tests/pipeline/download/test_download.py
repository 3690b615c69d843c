"""`meld download` from an archive: unpacked whole, repaired, resumed, or refused."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from pipeline.download.config import DownloadConfig
from pipeline.download.download import download
from pipeline.errors import CacheBusy, InputError, StorageError, UsageError
from pipeline.schema import SPLITS
from pipeline.system import locks
from tests.conftest import Meld
from tests.pipeline.download.imitation import (
    Packed,
    get,
    left_behind,
    tree,
    unpack_outer,
    write_tree,
)


@pytest.mark.heavy
def test_the_archive_is_unpacked_to_exactly_what_is_wanted(packed: Packed, out: Path) -> None:
    report = get(out, packed.path)
    assert tree(out) == packed.files
    assert report.clips == {"train": 120, "dev": 12, "test": 37}
    assert report.sha256 == packed.sha256
    assert report.found is not None
    assert report.found.corrected == 5
    assert report.found.apple_double == packed.apple_double
    assert report.found.others == packed.others
    assert report.found.first_other == "MELD.Raw/README.txt"
    assert left_behind(out) == []


@pytest.mark.heavy
def test_unpacking_tells_how_far_it_is_inside_of_inner_archives(packed: Packed, out: Path) -> None:
    """Of the real archive, one inner archive is most of it."""
    told: list[tuple[str, int, int | None]] = []
    download(DownloadConfig(out=out, source=packed.path), lambda *bytes_: told.append(bytes_))
    done = [num_bytes for stage, num_bytes, _ in told if stage == "unpacking"]
    assert done == sorted(done)
    assert len(done) > 160
    assert len(set(done)) > 5  # Python reads 128 KiB at a time, before 3.12 less


def test_only_the_splits_that_were_asked_for_are_unpacked(packed: Packed, out: Path) -> None:
    get(out, packed.path, splits=("dev",))
    assert tree(out) == packed.of("dev")
    get(out, packed.path, splits=("dev", "test"))
    assert tree(out) == packed.of("dev", "test")


def test_a_second_run_finds_everything_there(packed: Packed, out: Path) -> None:
    get(out, packed.path)
    report = get(out)
    assert report.there == SPLITS
    assert report.found is None
    assert report.sha256 == packed.sha256


@pytest.mark.heavy
def test_a_clip_that_was_lost_since_is_put_back(packed: Packed, out: Path) -> None:
    get(out, packed.path)
    (out / "train_splits/dia3_utt1.mp4").unlink()
    report = get(out, packed.path)
    assert report.there == ("dev", "test")
    assert tree(out) == packed.files


def test_one_inner_archive_can_be_given_alone(packed: Packed, out: Path, tmp_path: Path) -> None:
    folder = unpack_outer(packed, tmp_path)
    get(out, folder / "train.tar.gz", splits=("train",))
    assert tree(out) == packed.of("train")


def test_an_archive_without_a_split_is_refused(packed: Packed, out: Path, tmp_path: Path) -> None:
    folder = unpack_outer(packed, tmp_path)
    with pytest.raises(InputError, match=r"train\.tar\.gz: has no dev_sent_emo\.csv"):
        get(out, folder / "train.tar.gz", splits=("train", "dev"))


@pytest.mark.heavy
def test_a_wrong_checksum_is_refused_before_anything_is_written(packed: Packed, out: Path) -> None:
    with pytest.raises(InputError, match=f"its SHA-256 is {packed.sha256}, not 0000"):
        get(out, packed.path, sha256="0" * 64)
    assert tree(out) == {}
    get(out, packed.path, sha256=packed.sha256.upper())
    assert tree(out) == packed.files


def test_an_archive_of_the_published_size_needs_the_published_checksum(
    packed: Packed, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = packed.path.stat().st_size
    monkeypatch.setattr("pipeline.download.sources.ARCHIVE_BYTES", size)
    with pytest.raises(InputError, match="damaged: its SHA-256 is"):
        get(out, packed.path)


def leave_free(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, num_bytes))


def test_too_little_space_is_found_before_anything_is_written(
    packed: Packed, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_free(monkeypatch, 400_000)
    with pytest.raises(StorageError, match=r"GiB of disk are needed .* are free"):
        get(out, packed.path)
    assert tree(out) == {}
    get(out, packed.path, splits=("dev",))
    assert tree(out) == packed.of("dev")


def test_for_the_real_archive_23_gb_are_wanted_before_the_first_byte(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_free(monkeypatch, 20 * 2**30)
    with pytest.raises(StorageError, match=r"21\.3 GiB of disk are needed \(10\.1 GiB to fetch"):
        get(out)
    assert left_behind(out) == []


def test_two_downloads_to_one_folder_do_not_mix(packed: Packed, out: Path) -> None:
    with locks.hold(out / ".download/lock", "it"), pytest.raises(CacheBusy, match="process"):
        get(out, packed.path)


def test_what_an_interrupted_run_left_is_replaced_where_it_is_damaged(
    packed: Packed, out: Path, tmp_path: Path
) -> None:
    """After a power loss a file may have its name and its length and not its bytes."""
    names = ("train_splits/dia3_utt1.mp4", "train_splits/dia4_utt1.mp4", "dev_sent_emo.csv")
    whole = packed.files[names[0]]
    stage = write_tree(out / ".download/unpacked", packed.files)
    (stage / names[0]).write_bytes(whole[:1] + bytes(len(whole) - 1))
    (stage / names[1]).write_bytes(packed.files[names[1]] + b"more")
    (stage / names[2]).write_bytes(b"")
    (stage / "train_splits/dia999_utt0.mp4").write_bytes(b"of another archive")
    get(out, packed.path)
    assert tree(out) == packed.files


@pytest.mark.heavy
@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_run_that_died_between_checking_and_moving_is_finished_without_the_archive(
    packed: Packed, out: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    replace, moves = Path.replace, 0

    def die_after_some(path: Path, target: Path) -> Path:
        nonlocal moves
        moves += path.parent.name == "unpacked"
        if moves > done and path.parent.name == "unpacked":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", die_after_some)
        with pytest.raises(KeyboardInterrupt):
            get(out, packed.path)
    assert get(out).there == SPLITS
    assert tree(out) == packed.files
    assert left_behind(out) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": "http://a", "source": Path("b")}, "not both"),
        ({"url": "ftp://a"}, "takes an address"),
        ({"url": "http://["}, "takes an address"),
        ({"url": "https://"}, "takes an address"),
        ({"sha256": "abc"}, "64 hexadecimal digits"),
        ({"splits": ()}, "at least one"),
    ],
)
def test_contradictions_are_usage_errors(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        DownloadConfig(**options)


def test_verbose_says_which_splits_are_unpacked_and_which_are_complete(
    packed: Packed, out: Path, meld: Meld
) -> None:
    command = ("download", "--out", out, "--from", packed.path, "--sha256", packed.sha256)
    first = meld(*command, "--splits", "dev", "-v")
    assert "meld: to be unpacked: dev\n" in first.err
    again = meld(*command, "--splits", "dev,test", "-v")
    assert "meld: complete: dev\n" in again.err
    assert "meld: to be unpacked: test\n" in again.err
    quiet = meld(*command)
    assert "meld: " not in quiet.err


def test_a_wrong_split_has_status_2(meld: Meld) -> None:
    finished = meld("download", "--splits", "train,tset")
    assert finished.status == 2
    assert "train, dev, test" in finished.err
