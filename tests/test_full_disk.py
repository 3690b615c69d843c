"""Disks that are full, read-only or limited: one line, status 5, and what was there stays.

Where this runs as root, on disks of its own; where not, only the limit on the size of files is
tried: the kernel refuses in the same way.
"""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusion.export.golden import TALK
from pipeline.parallel import engine
from tests.conftest import Finished, Meld
from tests.failing_disk import files_of_at_most
from tests.pipeline.extract.test_changed_clips import encode_each

pytestmark = pytest.mark.heavy
SRT = "1\n00:00:01,000 --> 00:00:02,000\nHello!\n"


class Disk:
    """A folder that is a disk by itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount(self, options: str) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)],
            check=True,
            capture_output=True,
        )

    def make_read_only(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)

    def fill(self, *, but: int = 0) -> None:
        """but: bytes that are left, in whole pages"""
        with (self.path / "filler").open("wb") as file:
            free = shutil.disk_usage(self.path).free
            file.write(bytes(max(free - but, 0)))

    def files(self) -> set[str]:
        found = {path.relative_to(self.path).as_posix() for path in self.path.rglob("*")}
        return {name for name in found if name != "filler" and not name.endswith(".lock")}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts disks")
    found = Disk(tmp_path / "disk")
    found.path.mkdir()
    try:
        found.mount("size=2m")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here")
    try:
        yield found
    finally:
        subprocess.run(["umount", str(found.path)], check=False)


def told(done: Finished) -> str:
    """The one line that is an error."""
    assert "Traceback" not in done.err, done.err
    [line] = [line for line in done.err.splitlines() if line.startswith("meld: error: ")]
    return line


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fusion.training.config import TrainConfig
    from fusion.training.fit import FitConfig
    from fusion.training.train import train_fusion

    out = tmp_path_factory.mktemp("runs") / "words"
    train_fusion(
        TrainConfig(features=features, out=out, modalities=("text",), fit=FitConfig(epochs=1))
    )
    return out


Command = Callable[[Path, Path, Path, Path], tuple[object, ...]]
# What each writes: more than a page, into a folder on the disk.
COMMANDS: dict[str, Command] = {
    "train-fusion": lambda disk, features, run, corpus: (
        *("train-fusion", "--features", features, "--modalities", "text", "--epochs", 1),
        *("--out", disk / "run"),
    ),
    "evaluate": lambda disk, features, run, corpus: (
        *("evaluate", run, "--split", "dev", "--features", features),
        *("--predictions", disk / "rows.parquet"),
    ),
    "predict": lambda disk, features, run, corpus: (
        *("predict", TALK, "--subtitles", disk.parent / "a.srt", "--out", disk / "out"),
    ),
    "export": lambda disk, features, run, corpus: ("export", run, "--out", disk / "bundle"),
    "convert": lambda disk, features, run, corpus: (
        *("convert", features, "--to", "npz", "--out", disk / "converted"),
    ),
    "report": lambda disk, features, run, corpus: (
        *("report", run, "--split", "dev", "--out", disk / "report.html"),
    ),
    "extract": lambda disk, features, run, corpus: (
        *("extract", "--split", "dev", "--data", corpus, "--modalities", "audio"),
        *("--features", disk / "features"),
    ),
    "sample": lambda disk, features, run, corpus: (
        *("sample", "--out", disk / "corpus", "--dialogues", 3),
    ),
    "doctor": lambda disk, features, run, corpus: (
        *("doctor", "--data", corpus, "--html", disk / "doctor.html"),
    ),
}

SOME_AND_THE_REST_SLOWLY = [
    name if name in ("train-fusion", "predict") else pytest.param(name, marks=pytest.mark.slow)
    for name in COMMANDS
]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("state", ["full", "nearly full", "read-only"])
def test_a_disk_that_cannot_be_written_is_told_in_one_line(
    name: str,
    state: str,
    disk: Disk,
    features: Path,
    run: Path,
    corpus: Path,
    meld: Meld,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "encode_shards", encode_each)
    (disk.path.parent / "a.srt").write_text(SRT)
    command = COMMANDS[name](disk.path, features, run, corpus)
    if state == "read-only":
        disk.make_read_only()
    else:
        disk.fill(but=0 if state == "full" else 8192)
    done = meld(*command)
    assert done.status == 5, (done.status, done.err)
    reason = errno.EROFS if state == "read-only" else errno.ENOSPC
    assert os.strerror(reason) in told(done) or "no permission" in told(done), done.err
    assert not [name for name in disk.files() if name.endswith(".tmp")]


@pytest.mark.parametrize("name", SOME_AND_THE_REST_SLOWLY)
def test_a_limit_on_the_size_of_files_is_told_in_one_line(
    name: str,
    features: Path,
    run: Path,
    corpus: Path,
    tmp_path: Path,
    meld: Meld,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "encode_shards", encode_each)
    (tmp_path / "a.srt").write_text(SRT)
    disk = Disk(tmp_path / "disk")
    disk.path.mkdir()
    with files_of_at_most(1000):
        done = meld(*COMMANDS[name](disk.path, features, run, corpus))
    assert done.status == 5, (done.status, done.err)
    assert os.strerror(errno.EFBIG) in told(done), done.err
    assert not [name for name in disk.files() if name.endswith(".tmp")]


def test_a_folder_for_temporary_files_that_cannot_be_written_is_told(
    disk: Disk, run: Path, tmp_path: Path, meld: Meld, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.make_read_only()
    monkeypatch.setattr(tempfile, "tempdir", str(disk.path))
    done = meld("export", run, "--out", tmp_path / "bundle")
    assert done.status == 5, (done.status, done.err)
    assert told(done).startswith(f"meld: error: {disk.path}")
    assert os.strerror(errno.EROFS) in told(done)
    assert not (tmp_path / "bundle").exists()
