"""A file is there whole or not at all, whoever writes beside."""

import os
from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.system.files import write_whole


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "report.json"


def test_two_writers_of_one_file_do_not_take_each_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, others = os.fsync, [b"the other's"]

    def write_beside(descriptor: int) -> None:
        """When the first has written its bytes and not yet given them their name."""
        if others:
            write_whole(path, others.pop())
            assert path.read_bytes() == b"the other's"
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", write_beside)
    write_whole(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert list(path.parent.iterdir()) == [path]


def test_existing_files_stay_until_all_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(path, b"old")
    for failure, told in ((OSError(28, "No space left"), StorageError), (KeyboardInterrupt(),) * 2):

        def fail(_: int, failure: BaseException = failure) -> None:
            raise failure

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(told if isinstance(told, type) else type(told)):
            write_whole(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(path.parent.iterdir()) == [path]


def test_its_folder_is_made_and_a_place_that_cannot_be_is_named(path: Path) -> None:
    write_whole(path / "deep" / "a.json", b"{}")
    assert (path / "deep" / "a.json").read_bytes() == b"{}"
    with pytest.raises(StorageError, match=rf"^cannot write {path}/deep/a.json/b: "):
        write_whole(path / "deep" / "a.json" / "b", b"")
    with pytest.raises(StorageError, match=rf"^cannot write {path}: "):
        write_whole(path, b"")  # a folder
    assert list(path.parent.iterdir()) == [path]


def test_a_link_that_somebody_planted_is_replaced_not_followed(path: Path) -> None:
    secret = path.with_name("secret")
    secret.write_bytes(b"mine")
    path.symlink_to(secret)
    write_whole(path, b"report")
    assert (secret.read_bytes(), path.is_symlink()) == (b"mine", False)
