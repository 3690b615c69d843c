"""The folder of a search: nothing else is written into, and a killed search leaves no rubbish."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fusion.experiments.search_folder import SEARCH
from pipeline.errors import CacheBusy, StorageError, UsageError

TRIAL = "0123456789abcdef.json"


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_a_new_folder_an_empty_one_and_one_that_was_begun_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new/er", "empty", "new/er"):
        with SEARCH.open(tmp_path / name):
            pass
        write(tmp_path / name, "notes.txt")


@pytest.mark.parametrize(
    "names",
    [
        ("notes.txt",),
        ("best.toml",),
        ("config.json", "model.safetensors"),
        ("train.h5",),
        ("trials/notes.txt",),
        (f"trials/{TRIAL}", ".meld-run"),
        ("trials",),
    ],
    ids=str,
)
def test_a_folder_of_something_else_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    out = write(tmp_path / "out", *names)
    before = sorted(out.rglob("*"))
    with pytest.raises(UsageError, match="holds no search of meld"), SEARCH.open(out):
        pass
    assert sorted(out.rglob("*")) == before


def test_temporary_files_of_a_killed_search_are_removed_and_nothing_else(tmp_path: Path) -> None:
    with SEARCH.open(tmp_path):
        left = (
            f"trials/{TRIAL}",
            "best.toml",
            ".notes.txt.77-0a0b0c0d.tmp",
            "trials/.x.json.1.tmp",
        )
        killed = (f"trials/.{TRIAL}.77-0a0b0c0d.tmp", ".best.toml.77-0a0b0c0d.tmp")
        write(tmp_path, *left, *killed)
    with SEARCH.open(tmp_path):
        assert all((tmp_path / name).exists() for name in left)
        assert not any((tmp_path / name).exists() for name in killed)


def test_one_at_a_time(tmp_path: Path) -> None:
    busy = pytest.raises(CacheBusy, match="is being written by")
    with SEARCH.open(tmp_path), busy, SEARCH.open(tmp_path):
        pass


def test_a_folder_in_the_way_of_a_result_is_named_before_the_work(tmp_path: Path) -> None:
    with SEARCH.open(tmp_path):
        (tmp_path / "best.toml").mkdir()
    with pytest.raises(UsageError, match=r"best\.toml is in the way"):
        SEARCH.refuse_other(tmp_path)


def make_file(path: Path) -> None:
    path.write_text("")


def make_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("make", [make_file, make_loop])
def test_what_is_no_folder_is_an_error_of_storage(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "out")
    with pytest.raises(StorageError), SEARCH.open(tmp_path / "out"):
        pass
