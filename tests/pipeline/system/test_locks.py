"""One writer per cache: who comes second is told who is first, and the dead hold nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import CacheBusy, StorageError
from pipeline.system.locks import hold, hold_split

ROOT = Path(__file__).parents[3]
# The child stands for the workers of a run, which can outlive it.
HOLDER = """
import subprocess, sys, time
from pathlib import Path
from pipeline.system.locks import hold

with hold(Path(sys.argv[1]), "the dev cache"):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".work" / "dev.lock"


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock, and has a child of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    os.kill(child, 9)


@pytest.mark.heavy
def test_a_second_process_fails_at_once_and_names_the_first(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(CacheBusy, match=rf"the dev cache .* process {holder.pid} on ") as caught:
        hold(path, "the dev cache").__enter__()
    assert str(path) in str(caught.value)  # the holder's command names it


@pytest.mark.heavy
def test_a_holder_killed_with_kill_9_leaves_no_lock_even_if_its_children_live(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    with hold(path, "the dev cache"):
        assert f'"process": {os.getpid()},' in path.read_text()


def test_the_lock_is_free_when_the_block_ends_or_fails(path: Path) -> None:
    with hold(path, "the dev cache"):
        pass
    with pytest.raises(ZeroDivisionError), hold(path, "the dev cache"):
        raise ZeroDivisionError
    with hold(path, "the dev cache"), pytest.raises(CacheBusy):
        hold(path, "the dev cache").__enter__()


def test_splits_of_a_folder_have_locks_of_their_own(tmp_path: Path) -> None:
    with hold_split(tmp_path, "train"), hold_split(tmp_path, "dev"):
        with pytest.raises(CacheBusy, match="the train cache"):
            hold_split(tmp_path, "train").__enter__()
        with hold_split(tmp_path / "elsewhere", "train"):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"process": 1}', "\x00\xff"])
def test_a_lock_file_that_says_nothing_is_still_a_lock(path: Path, content: str) -> None:
    with hold(path, "the dev cache"):
        path.write_text(content)
        with pytest.raises(CacheBusy, match="written by another process"):
            hold(path, "the dev cache").__enter__()


def test_a_place_where_no_lock_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/\.work/dev\.lock: cannot be made"):
        hold_split(tmp_path / "file", "dev").__enter__()
