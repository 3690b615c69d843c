"""Test evaluations are counted, and nothing takes one away."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fusion.evaluation.test_evaluations import (
    RECORD,
    count_evaluations,
    describe_evaluations,
    record_evaluation,
)
from pipeline.errors import StorageError


def test_every_look_is_a_line_that_says_when_and_by_what(tmp_path):
    assert count_evaluations(tmp_path) == 0
    assert record_evaluation(tmp_path, "evaluate") == 1
    assert record_evaluation(tmp_path, "compare") == 2
    lines = [json.loads(line) for line in (tmp_path / RECORD).read_text().splitlines()]
    assert [line["command"] for line in lines] == ["evaluate", "compare"]
    assert all(line["time"].endswith("+00:00") for line in lines)
    assert count_evaluations(tmp_path) == 2


def test_a_line_that_a_crash_cut_short_is_a_look_and_spoils_none(tmp_path):
    record_evaluation(tmp_path, "evaluate")
    with (tmp_path / RECORD).open("ab") as file:
        file.write(b'{"time": "20')
    assert record_evaluation(tmp_path, "evaluate") == 3
    assert json.loads((tmp_path / RECORD).read_text().splitlines()[-1])["command"] == "evaluate"


def test_evaluations_at_the_same_time_are_all_counted(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: record_evaluation(tmp_path, "evaluate"), range(40)))
    assert count_evaluations(tmp_path) == 40
    for line in (tmp_path / RECORD).read_text().splitlines():
        json.loads(line)


def test_a_look_is_on_disk_when_it_is_counted(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(sync(descriptor)))
    record_evaluation(tmp_path, "evaluate")
    assert len(synced) == 2  # the line, and the folder that names the file


def test_a_test_evaluation_that_cannot_be_recorded_is_reported_in_one_line(tmp_path):
    (tmp_path / RECORD).mkdir()
    with pytest.raises(StorageError, match=r"test-evaluations\.jsonl") as told:
        record_evaluation(tmp_path, "evaluate")
    assert "\n" not in str(told.value)
    with pytest.raises(StorageError, match=r"test-evaluations\.jsonl"):
        count_evaluations(tmp_path)
    with pytest.raises(StorageError):
        record_evaluation(tmp_path / "nowhere", "evaluate")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_on_a_full_disk_nothing_is_shown(tmp_path):
    (tmp_path / RECORD).symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        record_evaluation(tmp_path, "evaluate")


def test_evaluations_read_as_a_sentence():
    assert describe_evaluations(1) == "test was evaluated once with this run"
    assert describe_evaluations(12) == "test was evaluated 12 times with this run"
