"""Only what this program wrote is removed, only when asked for, and never under a writer."""

import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fusion.inference.description import read_description
from fusion.training import run_folder
from fusion.training.run_folder import MARKER, clear_run, hold_run, is_run, open_run
from pipeline.errors import CacheBusy, InputError, UsageError
from pipeline.system.locks import hold_split


def opened(out: Path, *, overwrite: bool = False) -> list[str]:
    """What is there once the run is open."""
    with open_run(out, overwrite=overwrite, name="x", inputs=[]) as run:
        return sorted(path.name for path in run.iterdir() if path.name != MARKER)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A fine-tuned run with all that one ever has, and with two files of its owner's."""
    run = tmp_path / "runs" / "a"
    files = "model.safetensors metrics.json history.jsonl training.png test-confusion.png "
    files += (
        "evaluation-test.json events.out.tfevents.1 test-evaluations.jsonl notes.txt faces.png "
    )
    files += "encoders/encoders.json encoders/text/config.json start/model.safetensors "
    files += "checkpoints/settings.json checkpoints/last.pt checkpoints/.last.pt.7-a.tmp "
    files += "features/test.h5 features/notes.txt features/.work/test/shard-00000.h5 "
    files += "features/0123456789ab/dev.h5"
    for name in files.split():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
    for folder in (run, run / "start"):
        (folder / "config.json").write_text(json.dumps({"format": "meld-fusion"}))
    return run


def test_a_folder_of_pictures_loses_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"me")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds no run of meld, so nothing in it is replaced"):
            opened(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_a_model_of_another_program_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(UsageError, match="holds no run of meld"):
        opened(tmp_path, overwrite=True)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("config", ["[]", "not JSON", "[" * 100_000])
def test_a_config_that_cannot_be_read_makes_no_run(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    assert not is_run(tmp_path)


def test_a_run_is_replaced_only_where_that_is_asked_for(finished: Path) -> None:
    before = sorted(finished.rglob("*"))
    with pytest.raises(
        UsageError, match="holds a run; name another --out, or replace it with --overwrite"
    ):
        opened(finished)
    assert sorted(finished.rglob("*")) == before


def test_of_a_replaced_run_the_owners_files_and_the_count_of_evaluations_stay(
    finished: Path,
) -> None:
    assert opened(finished, overwrite=True) == [
        *("faces.png", "features", "notes.txt", "test-evaluations.jsonl"),
    ]
    assert [path.name for path in (finished / "features").iterdir()] == ["notes.txt"]


def test_a_run_that_is_being_written_is_neither_cleared_nor_shared(finished: Path) -> None:
    before = sorted(finished.rglob("*"))
    with hold_run(finished):
        with pytest.raises(CacheBusy, match=r"the run .*a is being written by process \d+"):
            opened(finished, overwrite=True)
        assert sorted({*finished.rglob("*")} - {finished / MARKER}) == before


def test_a_run_that_was_killed_at_once_may_be_begun_again(tmp_path: Path) -> None:
    assert opened(tmp_path / "new") == []
    assert (tmp_path / "new" / MARKER).read_bytes() == b""  # nobody holds it: it names nobody
    assert opened(tmp_path / "new") == []


def test_an_unfinished_run_is_known_by_its_marker(tmp_path: Path) -> None:
    opened(tmp_path / "new")
    (tmp_path / "new" / "history.jsonl").write_text("{}\n")
    assert opened(tmp_path / "new", overwrite=True) == []


def test_an_unfinished_fine_tuning_is_refused_with_the_way_to_resume_it(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    opened(run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/settings.json").write_text("{}")
    resume = f"meld finetune --end-to-end --resume --out '{run}'"
    with pytest.raises(UsageError, match=f"unfinished fine-tuning; resume it with {resume}, name"):
        opened(run)
    with pytest.raises(InputError, match=f"that is not finished; resume it with {resume}"):
        read_description(run)


def test_clearing_follows_no_link_out_of_the_run(finished: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "train.h5").write_text("mine")
    (finished / "features" / "abcdefabcdef").symlink_to(elsewhere)
    clear_run(finished)
    assert (elsewhere / "train.h5").read_text() == "mine"


def test_a_run_that_another_process_finished_just_before_is_not_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came between the look into the folder and the lock."""

    def finish_another(run: Path) -> AbstractContextManager[None]:
        (run / "config.json").write_text(json.dumps({"format": "meld-fusion"}))
        return hold_run(run)

    monkeypatch.setattr(run_folder, "hold_run", finish_another)
    with pytest.raises(UsageError, match="holds a run"):
        opened(tmp_path / "new")
    assert is_run(tmp_path / "new")
    assert (tmp_path / "new" / "config.json").is_file()


def test_a_run_that_is_being_measured_is_not_cleared(finished: Path) -> None:
    """`meld evaluate` of a fine-tuned run extracts features into it."""
    with hold_split(finished / "features", "test"):
        with pytest.raises(CacheBusy, match="the test cache is being written"):
            opened(finished, overwrite=True)
        assert (finished / "features" / ".work" / "test.lock").is_file()
    assert (finished / "features" / "test.h5").is_file()


def test_linked_folders_of_a_run_stay_and_stop_nothing(finished: Path, tmp_path: Path) -> None:
    shutil.rmtree(finished / "features" / ".work")
    for name in ("features/.work", "encoders"):
        (finished / name).rename(tmp_path / "moved") if (finished / name).exists() else (
            tmp_path / "work"
        ).mkdir()
        (finished / name).symlink_to(tmp_path / ("moved" if name == "encoders" else "work"))
    opened(finished, overwrite=True)
    assert (tmp_path / "moved" / "encoders.json").is_file()


def test_the_lock_of_a_failed_run_names_no_holder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), hold_run(tmp_path):
        raise KeyboardInterrupt
    assert (tmp_path / MARKER).read_bytes() == b""


@pytest.mark.parametrize("beside", [MARKER, "checkpoints/settings.json"])
def test_what_stands_beside_another_programs_model_makes_it_no_run(
    tmp_path: Path, beside: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_text('{"a": 1}')
    with pytest.raises(UsageError, match="holds no run of meld"):
        opened(tmp_path, overwrite=True)
    assert (tmp_path / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "name", ["metrics.json/mine", "checkpoints", "start/mine", "encoders/mine"]
)
def test_what_is_in_the_way_of_a_new_run_is_reported_before_the_old_one_goes(
    finished: Path, name: str
) -> None:
    place = finished / name.split("/")[0]
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    (finished / name).parent.mkdir(exist_ok=True)
    (finished / name).write_text("mine")
    before = sorted(finished.rglob("*"))
    with pytest.raises(UsageError, match=f"{place} is in the way: a run of meld writes"):
        opened(finished, overwrite=True)
    assert sorted(finished.rglob("*")) == before
