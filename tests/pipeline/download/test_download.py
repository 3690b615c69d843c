"""`meld download`, whole: an imitation of the real archive, copies that are there already, and
kills at any point. The server, the sockets and the kills are real."""

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.layout import MEDIA_FOLDERS
from pipeline.download.config import DownloadConfig
from pipeline.download.download import DownloadReport, download
from pipeline.errors import CacheBusy, InputError, StorageError, UsageError
from pipeline.schema import SPLITS, Split
from pipeline.system import locks

ROOT = Path(__file__).resolve().parents[3]
Meld = Callable[..., Any]


@dataclass(frozen=True)
class Packed:
    """An archive in the shape of MELD.Raw.tar.gz, and what has to become of it."""

    path: Path
    sha256: str
    files: Mapping[str, bytes]  # by their path under --out
    apple_double: int
    others: int

    def of(self, *splits: Split) -> dict[str, bytes]:
        begins = tuple(name for split in splits for name in (MEDIA_FOLDERS[split], f"{split}_sent"))
        return {name: each for name, each in self.files.items() if name.startswith(begins)}


def pack(files: Mapping[str, bytes | None]) -> bytes:
    """A .tar.gz; None is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def imitate_meld(path: Path) -> Packed:
    """Nested archives, the train CSV inside train.tar.gz, corrected cuts beside plain ones,
    AppleDouble files and folders, .DS_Store, a README; scaled down."""
    rng = random.Random(1)
    names = {
        "train": [f"dia{d}_utt{u}" for d in range(24) for u in range(5)],
        "dev": [f"dia{d}_utt{u}" for d in range(4) for u in range(3)],
        "test": [f"dia{d}_utt{u}" for d in range(8) for u in range(4)],
    }
    names["test"] += [f"final_videos_test{name}" for name in names["test"][:5]]
    wanted: dict[str, bytes] = {}
    outer: dict[str, bytes | None] = {"MELD.Raw/": None, "MELD.Raw/README.txt": b"Read me"}
    apple_double, others = 0, 1
    for split in SPLITS:
        folder = MEDIA_FOLDERS[split]
        packed: dict[str, bytes | None] = {f"{folder}/": None, f"._{folder}": b"\0\5\x16\7"}
        for name in names[split]:
            content = rng.randbytes(rng.randrange(1, 10_000))
            packed[f"{folder}/{name}.mp4"] = wanted[f"{folder}/{name}.mp4"] = content
        doubled = names[split][::7]
        packed |= {f"{folder}/._{name}.mp4": b"\0\5\x16\7" for name in doubled}
        apple_double += 1 + len(doubled)
        packed |= {f"{folder}/.DS_Store": b"Bud1", f"{folder}/dia1_utt1 copy.mp4": b"no clip"}
        others += 2
        csv_name, csv = f"{split}_sent_emo.csv", f"Dialogue_ID,{split}\r\n".encode()
        wanted[csv_name] = csv
        if split == "train":
            packed[csv_name] = csv
        else:
            outer[f"MELD.Raw/{csv_name}"] = csv
        outer[f"MELD.Raw/{split}.tar.gz"] = pack(packed)
    path.write_bytes(pack(outer))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Packed(path, sha256, wanted, apple_double, others)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return imitate_meld(tmp_path_factory.mktemp("packed") / "some.tar.gz")


def tree(out: Path) -> dict[str, bytes]:
    """Every file under `out`, but for our own notes."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "meld.json" and ".download" not in path.parts
    }


def left_behind(out: Path) -> list[str]:
    return [path.name for path in (out / ".download").iterdir() if path.name != "lock"]


def get(out: Path, source: Path | None = None, **options: Any) -> DownloadReport:
    return download(DownloadConfig(out=out, source=source, **options))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data"


# ------------------------------------------------------------------------------ from an archive


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
    assert len(set(done)) > 10


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


def test_too_little_space_is_found_before_anything_is_written(
    packed: Packed, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 400_000))
    with pytest.raises(StorageError, match=r"GiB of disk are needed .* are free"):
        get(out, packed.path)
    assert tree(out) == {}
    get(out, packed.path, splits=("dev",))
    assert tree(out) == packed.of("dev")


def test_for_the_real_archive_23_gb_are_wanted_before_the_first_byte(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 9, 20 * 2**30))
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


# ------------------------------------------------------------------- from what is unpacked already


def unpack_outer(packed: Packed, to: Path) -> Path:
    with tarfile.open(packed.path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                path = to / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
    return to / "MELD.Raw"


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


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


# ------------------------------------------------------------------------ odd things in the way


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


@pytest.mark.parametrize("content", ['{"my": "notes"}', "[]", "not even JSON", ""])
def test_a_meld_json_of_somebody_else_stays(packed: Packed, out: Path, content: str) -> None:
    write_tree(out, {"meld.json": content.encode()})
    with pytest.raises(InputError, match=r"meld\.json: already exists, and meld"):
        get(out, packed.path)
    assert (out / "meld.json").read_text() == content


@pytest.mark.parametrize("count", ["1e999", "NaN", "null", '"many"', "9" * 5000])
def test_a_receipt_with_impossible_numbers_is_none(packed: Packed, out: Path, count: str) -> None:
    text = '{"made_by": "meld download", "origin": "", "sha256": "", "clips": {"dev": %s}}'
    write_tree(out, {".download/verified.json": (text % count).encode()})
    get(out, packed.path)
    assert tree(out) == packed.files


def test_a_folder_in_the_place_of_a_csv_is_refused(packed: Packed, out: Path) -> None:
    (out / "dev_sent_emo.csv").mkdir(parents=True)
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv: is not a file"):
        get(out, packed.path)


def test_a_foreign_folder_among_what_is_unfinished_does_no_harm(packed: Packed, out: Path) -> None:
    (out / ".download/old.part").mkdir(parents=True)
    get(out, packed.path)
    assert left_behind(out) == ["old.part"]


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


# ------------------------------------------------------------------- over the network, and killed


class SlowServer:
    """Knows ranges, and takes about a second for the imitation."""

    def __init__(self, content: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    told = f"bytes {start}-{len(content) - 1}/{len(content)}"
                    self.send_header("Content-Range", told)
                self.end_headers()
                try:
                    for at in range(start, len(content), 32768):
                        self.wfile.write(content[at : at + 32768])
                        time.sleep(0.01)
                except ConnectionError:
                    pass  # the client was killed

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/MELD.Raw.tar.gz"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def address(packed: Packed) -> Iterator[str]:
    server = SlowServer(packed.path.read_bytes())
    yield server.url
    server.close()


@pytest.mark.heavy
def test_the_command_fetches_checks_and_unpacks(
    packed: Packed, address: str, out: Path, meld: Meld
) -> None:
    command = ("download", "--out", out, "--url", address, "--sha256", packed.sha256)
    finished = meld(*command, "--json", "--keep-archive")
    assert finished.status == 0, finished.err
    assert finished.json["clips"] == {"train": 120, "dev": 12, "test": 37}
    assert finished.json["unpacked"]["corrected_cuts"] == 5
    assert finished.json["unpacked"]["apple_double_dropped"] == packed.apple_double
    archive = tree(out).pop("MELD.Raw.tar.gz")
    assert hashlib.sha256(archive).hexdigest() == packed.sha256
    assert {name: each for name, each in tree(out).items() if name != "MELD.Raw.tar.gz"} == (
        packed.files
    )
    assert json.loads((out / "meld.json").read_text())["origin"] == address
    again = meld(*command)
    assert again.status == 0
    assert "train: 120 clips, already complete" in again.out


@pytest.mark.heavy
def test_the_checksum_may_be_written_in_capitals(packed: Packed, address: str, out: Path) -> None:
    get(out, url=address, sha256=packed.sha256.upper())
    assert tree(out) == packed.files


@pytest.mark.heavy
def test_keys_in_an_address_are_neither_kept_nor_shown(
    packed: Packed, address: str, out: Path, meld: Meld
) -> None:
    url = address.replace("http://", "http://bob:hunter2@") + "?token=hunter2"
    finished = meld("download", "--out", out, "--url", url, "--sha256", packed.sha256)
    assert finished.status == 0, finished.err
    config = out.parent / "impatient.toml"
    config.write_text("[patience]\nattempts = 1\n")
    dead = "http://bob:hunter2@127.0.0.1:9/x?token=hunter2"
    again = ("--out", out.parent / "b", "--sha256", packed.sha256, "--config", config)
    failed = meld("download", *again, "--url", dead)
    assert "http://127.0.0.1:9/x: gave up" in failed.err
    assert "hunter2" not in finished.out + finished.err + failed.err
    written = [path.read_text() for path in (out / "meld.json", *out.glob(".download/*"))]
    assert json.loads(written[0])["origin"] == address
    assert not any("hunter2" in text for text in written)


@pytest.mark.heavy
@pytest.mark.parametrize("dies_at", ["_write_receipt", "_publish_verified"])
def test_an_archive_to_be_kept_is_kept_even_if_the_run_dies_late(
    packed: Packed, address: str, out: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    def die(*_: Any) -> None:
        if (out / ".download/unpacked").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"pipeline.download.download.{dies_at}", die)
        with pytest.raises(KeyboardInterrupt):
            get(out, url=address, sha256=packed.sha256, keep_archive=True)
    get(out, url=address, sha256=packed.sha256, keep_archive=True)
    assert (out / "MELD.Raw.tar.gz").read_bytes() == packed.path.read_bytes()


def test_an_archive_that_was_kept_is_not_fetched_again(packed: Packed, out: Path) -> None:
    out.mkdir()
    shutil.copy(packed.path, out / "MELD.Raw.tar.gz")
    get(out, sha256=packed.sha256)
    assert set(tree(out)) == {*packed.files, "MELD.Raw.tar.gz"}


def test_a_kept_archive_that_is_damaged_is_reported_not_taken(packed: Packed, out: Path) -> None:
    out.mkdir()
    (out / "MELD.Raw.tar.gz").write_bytes(packed.path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"MELD\.Raw\.tar\.gz: damaged: .* get it anew"):
        get(out)


@pytest.mark.heavy
def test_an_address_that_is_named_is_asked_whatever_was_kept(
    packed: Packed, address: str, out: Path
) -> None:
    out.mkdir()
    (out / "MELD.Raw.tar.gz").write_bytes(b"")
    get(out, url=address, sha256=packed.sha256)
    assert set(tree(out)) == {*packed.files, "MELD.Raw.tar.gz"}


def test_a_failed_fetch_has_status_5_and_one_line(packed: Packed, out: Path, meld: Meld) -> None:
    config = out.parent / "impatient.toml"
    config.write_text("[patience]\nattempts = 1\n")
    command = ("download", "--out", out, "--sha256", packed.sha256, "--config", config)
    finished = meld(*command, "--url", "http://127.0.0.1:9/x")
    assert finished.status == 5
    assert finished.err.splitlines()[-1].startswith(
        "meld: error: the archive could not be downloaded"
    )


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


@pytest.mark.heavy
@pytest.mark.parametrize("kills_wanted", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_many_points_it_ends_with_the_same_files(
    packed: Packed, address: str, tmp_path: Path, kills_wanted: int
) -> None:
    """Half while bytes arrive, half while clips are unpacked; then nothing is disturbed."""
    rng = random.Random(20261122)
    size = packed.path.stat().st_size
    kills = 0
    for number in range(kills_wanted // 4):
        out = tmp_path / f"data{number}"
        arrived = sorted(rng.sample(range(1, size - 65536), 2))
        placed = sorted(rng.sample(range(1, len(packed.files) - 20), 2))
        kills += sum(killed_when(out, packed, address, fetched, least) for least in arrived)
        kills += sum(killed_when(out, packed, address, unpacked, least) for least in placed)
        finished = start(out, packed, address)
        assert finished.wait(120) == 0
        assert tree(out) == packed.files
        assert left_behind(out) == []
    assert kills == kills_wanted


def fetched(out: Path) -> int:
    return sum(path.stat().st_size for path in (out / ".download").glob("*.part"))


def unpacked(out: Path) -> int:
    stage = out / ".download/unpacked"
    return sum(len(list((stage / folder).glob("*.mp4"))) for folder in MEDIA_FOLDERS.values())


def start(out: Path, packed: Packed, address: str) -> "subprocess.Popen[bytes]":
    words = ["download", "--out", str(out), "--url", address, "--sha256", packed.sha256]
    return subprocess.Popen([sys.executable, "-m", "cli", *words], cwd=ROOT)


def killed_when(
    out: Path, packed: Packed, address: str, count: Callable[[Path], int], least: int
) -> bool:
    """Whether the run was killed when it had come so far, and had not finished by then."""
    running = start(out, packed, address)
    deadline = time.monotonic() + 60
    while running.poll() is None and count(out) < least:
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    running.send_signal(signal.SIGKILL)
    return running.wait() == -signal.SIGKILL
