"""What is in the way of a download: files of the user, links, pipes, a full disk, odd names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import InputError, StorageError
from tests.conftest import ROOT, Meld
from tests.pipeline.download.imitation import Packed, get, left_behind, tree, write_tree

# --------------------------------------------------------------------------- files of the user


def test_a_foreign_file_in_the_place_is_refused_and_stays(packed: Packed, out: Path) -> None:
    clip = out / "dev_splits_complete/dia0_utt0.mp4"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"my own cut")
    with pytest.raises(
        InputError, match="has clips of dev already that meld download did not write"
    ):
        get(out, packed.path)
    assert clip.read_bytes() == b"my own cut"


@pytest.mark.heavy
def test_a_clip_that_was_replaced_since_stays_until_it_is_moved_away(
    packed: Packed, out: Path
) -> None:
    get(out, packed.path)
    clip, lost = out / "train_splits/dia3_utt1.mp4", out / "train_splits/dia3_utt2.mp4"
    clip.write_bytes(b"mended by hand")
    lost.unlink()
    for _ in range(2):
        with pytest.raises(InputError, match=r"dia3_utt1\.mp4: already exists and differs"):
            get(out, packed.path)
        assert clip.read_bytes() == b"mended by hand"
    clip.unlink()
    get(out, packed.path)
    assert tree(out) == packed.files


def test_csvs_that_are_there_already_stay(packed: Packed, out: Path) -> None:
    """Many have those from GitHub: newer than the archive's, and the same once they are read."""
    out.mkdir()
    (out / "dev_sent_emo.csv").write_bytes(b"from GitHub")
    get(out, packed.path)
    assert tree(out) == {**packed.files, "dev_sent_emo.csv": b"from GitHub"}


def test_nothing_is_written_through_a_link(packed: Packed, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    out.mkdir()
    (out / "train_splits").symlink_to(elsewhere)
    with pytest.raises(InputError, match="a link or a file where a folder is needed"):
        get(out, packed.path)
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("content", ['{"my": "notes"}', "[]", "not even JSON", ""])
def test_a_meld_json_of_somebody_else_stays(packed: Packed, out: Path, content: str) -> None:
    write_tree(out, {"meld.json": content.encode()})
    with pytest.raises(InputError, match=r"meld\.json: already exists, and meld"):
        get(out, packed.path)
    assert (out / "meld.json").read_text() == content


def test_a_folder_in_the_place_of_a_csv_is_refused(packed: Packed, out: Path) -> None:
    (out / "dev_sent_emo.csv").mkdir(parents=True)
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv: is not a file"):
        get(out, packed.path)


# ------------------------------------------------------------------------------- in our own folder


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize(
    "name",
    [
        ".download/lock",
        ".download/writing",
        ".download/verified.json",
        ".download/unpacked",
        ".download/unpacked/train_splits",
        ".download/unpacked/train_splits/dia0_utt0.mp4",
        "meld.json",
    ],
)
def test_nothing_of_ours_is_written_through_a_link_or_into_a_pipe(
    packed: Packed, out: Path, tmp_path: Path, name: str, kind: str
) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"thesis")
    (out / name).parent.mkdir(parents=True)
    if kind == "link":
        (out / name).symlink_to(precious)
    else:
        os.mkfifo(out / name)
    with pytest.raises(InputError, match=r"a link, a pipe or a device .* remove it"):
        get(out, packed.path)
    assert precious.read_bytes() == b"thesis"
    (out / name).unlink()
    get(out, packed.path)
    assert tree(out) == packed.files


def test_a_linked_work_folder_is_refused(packed: Packed, out: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    out.mkdir()
    (out / ".download").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\.download: is a link"):
        get(out, packed.path)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("count", ["1e999", "NaN", "null", '"many"', "9" * 5000])
def test_a_receipt_with_impossible_numbers_is_none(packed: Packed, out: Path, count: str) -> None:
    text = '{"made_by": "meld download", "origin": "", "sha256": "", "clips": {"dev": %s}}'
    write_tree(out, {".download/verified.json": (text % count).encode()})
    get(out, packed.path)
    assert tree(out) == packed.files


def test_a_foreign_folder_among_what_is_unfinished_does_no_harm(packed: Packed, out: Path) -> None:
    (out / ".download/old.part").mkdir(parents=True)
    get(out, packed.path)
    assert left_behind(out) == ["old.part"]


# --------------------------------------------------------------------------- odd sources and names


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_can_be_read_for_ever_is_no_archive(out: Path, tmp_path: Path, kind: str) -> None:
    source = Path("/dev/zero")
    if kind == "pipe":
        source = tmp_path / "pipe"
        os.mkfifo(source)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        get(out, source)


def test_names_that_no_file_can_have_are_reported_in_one_line(
    packed: Packed, tmp_path: Path
) -> None:
    with pytest.raises(StorageError, match="name too long"):
        get(tmp_path / ("x" * 300), packed.path)
    with pytest.raises(StorageError, match="name too long"):
        get(tmp_path / "data", tmp_path / ("x" * 300))


@pytest.mark.heavy
def test_a_full_disk_is_told_of_the_folder_that_is_full(packed: Packed, out: Path) -> None:
    """A limit on what a file may have stands for the disk."""
    command = [sys.executable, "-m", "cli", "download", "--out", out, "--from", packed.path]
    limited = ["bash", "-c", 'trap "" XFSZ; ulimit -f 4; exec "$@"', "limited", *map(str, command)]
    # No byte code: it would be cut off at the limit as well, and fail every later start.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run(limited, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert finished.returncode == 5
    assert f"{out}/.download/unpacked: File too large" in finished.stderr.splitlines()[-1]
    get(out, packed.path)
    assert tree(out) == packed.files


def test_a_path_with_a_line_break_is_reported_in_one_line(meld: Meld, tmp_path: Path) -> None:
    finished = meld("download", "--out", tmp_path / "data", "--from", f"{tmp_path}/a\nb\x1b[2J")
    assert finished.status == 4
    assert len(finished.err.splitlines()) == 1
    assert r"/a\nb\x1b[2J: no such file" in finished.err


def test_a_path_that_is_no_text_can_be_printed(
    packed: Packed, meld_process: Meld, tmp_path: Path
) -> None:
    source = tmp_path / os.fsdecode(b"\xff.tar.gz")
    shutil.copy(packed.path, source)
    finished = meld_process(
        "download", "--out", tmp_path / "data", "--from", source, PYTHONIOENCODING="utf-8:strict"
    )
    assert finished.status == 0, finished.err
    assert r"/\udcff.tar.gz, SHA-256" in finished.out
