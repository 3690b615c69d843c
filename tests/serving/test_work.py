"""What a worker leaves of a job for those who follow it, and for the next worker."""

import json
from pathlib import Path

from serving.jobs import JobFolder
from serving.work import KeptUtterances
from tests.fusion.inference.test_timeline import predicted

FIRST, SECOND, THIRD = (
    predicted(number, number * 1000, number * 1000 + 900, "joy", 0.9, text="one\u2028line")
    for number in (1, 2, 3)
)


def ids(folder: JobFolder) -> list[str]:
    return [json.loads(line)["id"] for line in folder.utterances.read_text().split("\n")[:-1]]


def test_each_utterance_is_there_as_soon_as_it_is_ready(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
        assert ids(folder) == ["u0001"]
        kept.add(SECOND)
        assert ids(folder) == ["u0001", "u0002"]


def test_the_next_worker_goes_on_behind_the_last_whole_one(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
    whole = folder.utterances.read_bytes()
    with folder.utterances.open("ab") as file:
        file.write(b'{"id": "u00')  # a kill
    with KeptUtterances(folder, "model") as kept:
        assert folder.utterances.read_bytes() == whole
        for each in (FIRST, SECOND, THIRD):
            kept.add(each)
    assert folder.utterances.read_bytes().startswith(whole)
    assert ids(folder) == ["u0001", "u0002", "u0003"]


def test_a_kill_in_the_first_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model"):
        folder.utterances.write_bytes(b'{"id"')
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
    assert ids(folder) == ["u0001"]


def test_what_another_model_said_is_not_mixed_with_it(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with KeptUtterances(folder, "model") as kept:
        kept.add(FIRST)
    with KeptUtterances(folder, "another") as kept:
        assert ids(folder) == []
        kept.add(FIRST)
    assert ids(folder) == ["u0001"]
