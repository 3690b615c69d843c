"""`meld config`: what a command would run with, where that is from, and what each key means."""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.settings import list_keys, read_meanings

Meld = Callable[..., Any]

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "fusion" / "bundled" / "meld-text"
WITH_FILE = (
    *("download", "extract", "train-fusion", "finetune", "predict", "crossval", "ablate", "search"),
)


def origins(finished: Any) -> dict[str, tuple[Any, str]]:
    assert finished.status == 0, finished.err
    return {each["key"]: (each["value"], each["origin"]) for each in finished.json["settings"]}


def test_each_setting_says_whether_it_is_a_default_or_from_the_file_or_an_option(
    meld: Meld, tmp_path: Path
) -> None:
    file = tmp_path / "my.toml"
    file.write_text("seed = 7\n[fit]\nepochs = 3\nlearning_rate = 0.01\n")
    options = ("--config", file, "--learning-rate", 0.002, "--fusion", "gated")
    told = origins(meld("config", "show", "train-fusion", *options, "--json"))
    assert told["seed"] == (7, "file")
    assert told["fit.epochs"] == (3, "file")
    assert told["fit.learning_rate"] == (0.002, "option")
    assert told["model.fusion"] == ("gated", "option")
    assert told["model.dropout"] == (0.4, "default")
    assert told["modalities"] == (None, "default")


def test_a_settings_file_may_begin_with_the_mark_of_utf8(meld: Meld, tmp_path: Path) -> None:
    """Some editors write one; TOML 1.1 lets a reader ignore it."""
    file = tmp_path / "my.toml"
    file.write_text("seed = 7\n", encoding="utf-8-sig")
    told = origins(meld("config", "show", "train-fusion", "--config", file, "--json"))
    assert told["seed"] == (7, "file")


def test_what_a_training_takes_over_from_the_run_that_it_goes_on_from_is_reported(
    meld: Meld,
) -> None:
    shown = meld("config", "show", "--json", "train-fusion", "--start", BUNDLED, "--seed", 0)
    told = origins(shown)
    assert told["modalities"] == (["text"], "run")
    assert told["fit.learning_rate"] == (3e-4, "run")
    assert told["seed"] == (0, "option")


@pytest.mark.parametrize("command", WITH_FILE)
def test_what_is_shown_is_a_settings_file_that_says_the_same(
    meld: Meld, tmp_path: Path, command: str
) -> None:
    shown = meld("config", "show", command)
    assert shown.status == 0, shown.err
    file = tmp_path / "shown.toml"
    file.write_text(shown.out)
    assert tomllib.loads(shown.out)
    first = origins(meld("config", "show", command, "--json"))
    again = origins(meld("config", "show", command, "--config", file, "--json"))
    assert {key: value for key, (value, _) in first.items()} == {
        key: value for key, (value, _) in again.items()
    }
    assert {origin for value, origin in again.values() if value is not None} == {"file"}


@pytest.mark.parametrize("command", WITH_FILE)
def test_every_key_of_a_settings_file_has_a_meaning(meld: Meld, command: str) -> None:
    listed = meld("config", "keys", command, "--json")
    assert listed.status == 0, listed.err
    keys = listed.json["keys"]
    assert [key["key"] for key in keys if not key["meaning"]] == []
    in_code = re.compile(r"constructor|from_mapping|`[A-Z]\w+`")  # said to programmers alone
    assert [key["key"] for key in keys if in_code.search(key["meaning"])] == []
    assert {key["key"] for key in keys} == set(origins(meld("config", "show", command, "--json")))
    shown = meld("config", "keys", command).out
    for key in keys:
        assert f"{key['key'].rpartition('.')[2]}: {key['type']}; " in shown


def test_a_required_argument_needs_not_be_named_to_see_the_settings(meld: Meld) -> None:
    assert "media" not in origins(meld("config", "show", "predict", "--json"))
    told = origins(meld("config", "show", "predict", "talk.mp4", "--json"))
    assert told["media"] == (["talk.mp4"], "option")
    assert "\n# media = " in meld("config", "show", "predict", "talk.mp4").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "train-fusoin"), "did you mean train-fusion?"),
        (("keys", "evaluate"), "meld evaluate has no settings file"),
        (("show", "train-fusion", "--epochs", "0"), "fit: epochs must be at least 1, not 0"),
        (("show", "extract", "--modalities", "smell"), "--modalities smell"),
        (("show", "ablate", "--lerning-rate", "1"), "--lerning-rate"),
        (("show", "finetune", "--learning-rate", "1e-5"), "such as text=1e-5,heads=1e-4"),
        (("show", "finetune", "--learning-rate", "txt=1e-5"), "did you mean text?"),
    ],
)
def test_mistakes_are_told_as_the_command_itself_tells_them(
    meld: Meld, arguments: tuple[str, ...], message: str
) -> None:
    finished = meld("config", *arguments)
    assert finished.status == 2
    assert message in finished.err
    assert finished.out == ""


def test_options_for_what_is_changed_most_reach_the_settings(meld: Meld) -> None:
    tuned = ("finetune", "--learning-rate", "text=1e-5,heads=1e-4", "--batch-size", 8)
    told = origins(meld("config", "show", *tuned, "--json"))
    assert told["tune.learning_rates.text"] == (1e-5, "option")
    assert told["tune.learning_rates.heads"] == (1e-4, "option")
    assert told["tune.learning_rates.audio"][1] == "default"
    assert told["tune.batch_size"] == (8, "option")
    told = origins(meld("config", "show", "train-fusion", "--batch-size", 64, "--json"))
    assert told["fit.batch_size"] == (64, "option")
    told = origins(meld("config", "show", "extract", "--num-frames", 8, "--json"))
    assert told["num_frames"] == (8, "option")


# ------------------------------------------------------------------- docstrings as the one source


@dataclass(frozen=True, kw_only=True)
class Inner:
    """rate: how fast"""

    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What it is for.

    folder: where it lies,
        and more of that
    kind, other: one
        of two
    note: this has a colon: and goes on

    Raises: nothing that is a field.
    """

    folder: Path
    kind: Literal["a", "b"] = "a"
    other: int | None = None
    note: tuple[str, ...] = ("x",)
    inner: Inner = field(default_factory=Inner)


def test_a_docstrings_entries_are_the_meanings_of_its_fields() -> None:
    assert read_meanings(Planted) == {
        "folder": "where it lies, and more of that",
        "kind": "one of two",
        "other": "one of two",
        "note": "this has a colon: and goes on",
    }
    assert read_meanings(Inner) == {"rate": "how fast"}


def test_keys_come_with_type_default_and_tables_last() -> None:
    keys = {key.name: key for key in list_keys(Planted)}
    assert list(keys) == ["folder", "kind", "other", "note", "inner.rate"]
    assert keys["folder"].is_required
    assert (keys["kind"].type, keys["kind"].default) == ("one of a, b", "a")
    assert (keys["other"].type, keys["other"].default) == ("whole number", None)
    assert (keys["note"].type, keys["note"].default) == ("list: text", ["x"])
    assert json.dumps(keys["inner.rate"].default) == "0.5"
