"""What was typed, as a mapping for a config."""

from pathlib import Path

import pytest

from console.options import FusionChoice
from pipeline.errors import UsageError
from pipeline.options import given, merge_with_file, modalities_in, splits_in, weights_in


def test_only_what_was_typed_is_given_and_a_choice_is_plain_text() -> None:
    told = given(seed=0, out=None, overwrite=False, resume=True, fusion=FusionChoice.gated)
    assert told == {"seed": 0, "resume": True, "fusion": "gated"}
    assert type(told["fusion"]) is str


def test_what_was_typed_wins_over_the_file_table_by_table(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text("seed = 7\nout = 'there'\n[fit]\nepochs = 3\nbatch_size = 8\n")
    merged = merge_with_file(file, {"seed": 1}, fit={"epochs": 2}, model={"fusion": "late"})
    assert merged == {
        "seed": 1,
        "out": "there",
        "fit": {"epochs": 2, "batch_size": 8},
        "model": {"fusion": "late"},
    }


def test_settings_may_come_as_a_mapping_in_the_place_of_a_file() -> None:
    settings = {"seed": 7, "fit": {"epochs": 3}}
    assert merge_with_file(settings, {"seed": 1}) == {"seed": 1, "fit": {"epochs": 3}}
    assert settings["seed"] == 7


def test_a_table_of_which_nothing_was_typed_is_left_to_the_config() -> None:
    assert merge_with_file(None, {}, tune={}) == {}


def test_names_come_once_and_in_the_order_of_the_project() -> None:
    assert modalities_in("audio, text,audio") == ("text", "audio")
    assert splits_in("test,dev") == ("dev", "test")
    assert modalities_in(("audio", "text")) == ("text", "audio")
    assert modalities_in(None) is None
    with pytest.raises(UsageError, match="--unfreeze smell: a comma-separated subset of text"):
        modalities_in("smell", "--unfreeze")
    with pytest.raises(UsageError, match="--splits ,: a comma-separated subset of train, dev"):
        splits_in(",")


def test_weights_are_chosen_for_both_or_for_each() -> None:
    assert weights_in(None) == {}
    assert weights_in("random") == {"text_weights": "random", "video_weights": "random"}
    assert weights_in("video=random") == {"video_weights": "random"}


def test_a_file_does_not_say_what_an_option_always_says() -> None:
    with pytest.raises(UsageError, match=r"--config: splits = dev: an option sets it; leave it"):
        merge_with_file({"splits": "dev"}, {}, always_given=("splits",))
