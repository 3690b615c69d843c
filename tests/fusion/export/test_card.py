"""The model card of a bundle says on what its scores were measured."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import fusion.bundled
from fusion.export.card import render_card
from fusion.export.export import reports_to_ship

BUNDLED = Path(fusion.bundled.__file__).parent / "meld-text"
EXPORT = {
    "run": "first",
    "encoders": "included",
    "gate": None,
    "pruned": None,
    "versions": {"meld": "1.0"},
}


@pytest.fixture
def reports() -> dict[str, Any]:
    return copy.deepcopy(reports_to_ship(BUNDLED))


def render(reports: dict[str, Any], **encoder: str) -> str:
    """encoder: what its only encoder has in place of its own values"""
    config = json.loads((BUNDLED / "config.json").read_text())
    config["recipe"]["encoders"][0] |= encoder
    return " ".join(render_card("mine", config, reports, EXPORT).split())


def test_scores_on_the_runs_own_features_are_of_the_corpus_it_was_trained_on(
    reports: dict[str, Any],
) -> None:
    card = render(reports)
    assert card.count("name: the corpus it was trained on") == 2  # splits
    assert "measured on the corpus above and on nothing else" in card
    assert "1,109 utterances; it was chosen by this split." in card


def test_scores_on_a_corpus_that_was_named_carry_its_name(reports: dict[str, Any]) -> None:
    reports["test"]["data"] = "my_clips"
    reports["dev"]["features"] = "features-here"
    card = render(reports)
    assert "the corpus it was trained on" not in card
    assert "name: my_clips" in card
    assert "name: features-here" in card
    assert "2,610 utterances of `my_clips`, which was named for this evaluation." in card
    assert "1,109 utterances of `features-here`, which was named for this evaluation." in card
    assert "measured on `features-here` and `my_clips` and on nothing else" in card


def test_a_run_that_was_never_evaluated_is_not_said_to_be_measured() -> None:
    card = render({})
    assert "It was not measured" in card
    assert "It was trained on one corpus, and measured on none. On other people" in card
    assert "measured on the corpus above" not in card


def test_only_a_hash_is_called_one(reports: dict[str, Any]) -> None:
    digest = "0123456789ab" + 52 * "c"
    assert ", SHA-256 `0123456789ab`." in render(reports, weights_hash=f"sha256:{digest}")
    assert "in this folder, seed 0." in render(reports, weights_hash="seed 0")
    both = render(reports, weights_hash=f"sha256:{digest}, no weights, seed 0")
    assert "in this folder, SHA-256 `0123456789ab`, seed 0." in both
