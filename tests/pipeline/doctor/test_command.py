"""`meld doctor`: its tables, its JSON, and the command that it says comes next."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from console.show.doctor import render_corpus, show_checkup
from pipeline.corpus.layout import find_annotations
from pipeline.doctor.advice import next_steps
from pipeline.doctor.examine import DoctorConfig, examine
from pipeline.doctor.findings import Finding
from pipeline.doctor.machine import EncoderState, Machine
from pipeline.errors import InputError
from pipeline.schema import SPLITS, ClipKey
from tests.conftest import Meld
from tests.pipeline.doctor.planted import NOWHERE, Examined, run_doctor, shown


def test_tables_fit_eighty_columns_and_long_lists_say_how_many_more(
    examined: Examined,
) -> None:
    report = examined.report
    many = tuple(
        Finding(split="dev", kind="missing", message="gone", key=ClipKey("dev", 0, n))
        for n in range(1200)
    )
    splits = (*report.splits[:1], dataclasses.replace(report.splits[1], findings=many))
    lines = shown(render_corpus(dataclasses.replace(report, splits=splits)))
    assert max(map(len, lines)) <= 80
    assert any("1,200 new" in line for line in lines)
    assert "  missing: and 1,195 more" in [line.rstrip() for line in lines]


def test_the_command_tells_machine_and_corpus_in_one_json_object(
    meld: Meld, corpus: Path, tmp_path: Path
) -> None:
    finished = meld("doctor", "--data", corpus, "--html", tmp_path / "doctor.html", "--json")
    assert finished.status == 0, finished.err
    told = finished.json
    assert told["healthy"]
    assert told["test_clips"] == "fixed"
    assert told["machine"]["cores"] >= 1
    assert [split["split"] for split in told["splits"]] == list(SPLITS)
    assert json.loads((corpus / "sample.json").read_text())["complete"]  # nothing was changed


def test_without_a_corpus_the_machine_is_reported_and_then_what_is_wrong(
    meld: Meld, tmp_path: Path
) -> None:
    options = ("doctor", "--data", tmp_path / "none", "--html", tmp_path / "doctor.html")
    finished = meld(*options)
    assert finished.status == 4, finished.err
    assert "CPU cores" in finished.out
    assert len(finished.err.splitlines()) == 1
    assert "no such folder" in finished.err
    finished = meld(*options, "--json")
    assert finished.status == 4
    assert finished.json["machine"]["cores"] >= 1
    assert "no such folder" in finished.json["error"]
    with pytest.raises(InputError):
        examine(DoctorConfig(data=tmp_path / "none", html=tmp_path / "doctor.html"), NOWHERE)
    assert not (tmp_path / "doctor.html").exists()


# --------------------------------------------------------------------------- what comes next


def machine_with(**present: bool) -> Machine:
    """A machine on which these encoders' weights are, or are not."""
    encoders = tuple(
        EncoderState(
            modality="text" if name == "minilm" else name,
            name=name,
            is_default=name != "minilm",
            is_present=is_present,
        )
        for name, is_present in present.items()
    )
    return dataclasses.replace(NOWHERE, encoders=encoders)


def test_the_next_command_is_one_that_can_run_here(
    examined: Examined, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = machine_with(text=True, video=True, minilm=True)
    report = dataclasses.replace(examined.report, data=Path("my data"), machine=whole)
    dry, real, training = next_steps(report)
    assert real == "meld extract --split all --data 'my data'"
    assert (dry, training) == (f"{real} --dry-run", "meld train-fusion")
    bare = dataclasses.replace(report, machine=machine_with(text=False, video=False, minilm=True))
    assert next_steps(bare)[1] == f"{real} --modalities text,audio --text minilm"
    show_checkup(bare, as_json=False)
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "next:",
        *(f"  {line}" for line in next_steps(bare)),
    ]


def test_the_next_commands_read_and_write_where_the_checkup_looked(examined: Examined) -> None:
    report = dataclasses.replace(
        examined.report,
        data=Path("data"),
        features=Path("my features"),
        weights_dir=Path("w"),
        test_clips="legacy",
        machine=machine_with(text=True, video=False, minilm=True),
    )
    _, extraction, training = next_steps(report)
    assert extraction == (
        "meld extract --split all --data data --features 'my features' --modalities text,audio "
        "--weights-dir w --test-clips legacy"
    )
    assert training == "meld train-fusion --features 'my features'"
    # Nothing is searched for there, and extraction would refuse the option.
    bare = dataclasses.replace(report, machine=machine_with(text=False, video=False, minilm=True))
    assert "--weights-dir" not in next_steps(bare)[1]


def test_text_alone_is_extracted_where_there_are_no_clips(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = find_annotations(corpus, "train")
    assert table is not None
    shutil.copy(table, tmp_path / "data")
    report = run_doctor(tmp_path / "data", tmp_path)
    assert next_steps(report)[1].endswith("--modalities text")
    [finding] = report.findings
    assert "no folder train_splits or train, for clips such as dia0_utt0.mp4" in finding.message


@pytest.mark.parametrize(
    ("name", "labels", "told"),
    [
        ("dev_sent_emo.csv", "joy,positive", "train_sent_emo.csv is what a model learns from"),
        ("train_sent_emo.csv", ",", "no row of train has an emotion or a sentiment"),
    ],
)
def test_what_training_waits_for_is_reported(
    tmp_path: Path, name: str, labels: str, told: str
) -> None:
    header = "Dialogue_ID,Utterance_ID,Utterance,Emotion,Sentiment"
    (tmp_path / name).write_text(f"{header}\n0,0,Hello,{labels}\n")
    first, second = next_steps(run_doctor(tmp_path, tmp_path))
    assert told in first
    assert second == "meld predict FILE"
