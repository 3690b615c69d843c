"""What stands in train as well: planted copies are found and named, chance is not."""

import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from console.show.evaluation import render_leakage
from fusion.data.load import load_split
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.evaluation.leakage import (
    CopiedDialogue,
    Leakage,
    NotChecked,
    check_leakage,
    find_copied,
    find_leakage,
    read_train_texts,
    same_text,
)
from fusion.inference.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fusion.model.dims import ModelConfig
from fusion.reporting.reproduce import remake
from fusion.training.build import build_model
from fusion.training.losses import count_labels
from pipeline.cache.format import write_cache
from pipeline.errors import InputError
from pipeline.schema import ClipKey

pytestmark = pytest.mark.heavy


def train_rows(*dialogues):
    """Keys and texts, dialogues numbered from 0."""
    rows = [
        (ClipKey("train", number, position), text)
        for number, texts in enumerate(dialogues)
        for position, text in enumerate(texts)
    ]
    return [key for key, _ in rows], [text for _, text in rows]


def shown(leakage):
    console = Console(file=io.StringIO(), width=120)
    console.print(render_leakage(leakage))
    return console.file.getvalue()


def test_a_text_is_the_same_in_other_case_and_spacing_but_not_with_other_punctuation():
    assert same_text("  Oh my\tGOD! ") == same_text("oh my god!")
    assert same_text("STRASSE") == same_text("straße")
    assert same_text("What?") != same_text("What!")


def test_scores_are_reported_with_and_without_the_texts_that_train_has(plant_predictions):
    # Right where the text was seen, wrong elsewhere.
    predictions = plant_predictions(
        [["Hi there", "What?"], ["Nobody said this", "Nor this", ""]],
        emotion=[0, 4, 0, 4, 4],
        predicted=[0, 4, 4, 0, 0],
    )
    found = find_leakage(predictions, *train_rows(["hi  THERE"], ["so", "what?"], [""]))
    assert (found.everything.rows, found.unseen.rows, found.seen.rows) == (5, 3, 2)
    assert found.seen.emotion_weighted_f1 == 1
    assert found.unseen.emotion_weighted_f1 == 0
    assert found.everything.emotion_accuracy == pytest.approx(2 / 5)
    assert found.everything.sentiment_accuracy == pytest.approx(2 / 5)
    assert found.copied == ()
    assert "2 of 5 texts occur in train" in shown(found)
    assert "no whole dialogue was copied" in shown(found)


def test_a_copy_is_found_by_its_rarest_text_wherever_that_stands():
    texts = ["Hi.", "Hi.", "Pivot!", "Hi."]
    train = {
        "whole": ["Hi.", "Well.", *texts],
        "cut": texts[1:],  # begins after the first
        "too short": texts[:3],
        "others": ["Hi."] * 5,
    }
    found = list(find_copied({"test dia0": texts}, train))
    assert [each.train for each in found] == [("whole",)]


def test_dialogues_that_all_begin_alike_are_compared_in_a_moment():
    """20,000 of each: sought by their first text, 400 million comparisons."""
    measured = {str(number): ["", f"Line {number}."] * 2 for number in range(20_000)}
    train = {f"t{number}": ["", f"Line {number}?"] * 2 for number in range(20_000)}
    assert list(find_copied(measured, train)) == []


def test_a_dialogue_copied_into_train_is_found_and_named(plant_predictions):
    copied = ["How are you?", "Fine.", "Good."]
    predictions = plant_predictions([["One", "Two"], copied])
    train = train_rows(["Well.", "HOW are you?", "Fine.", "Good.", "Bye."], ["One"], copied)
    found = find_leakage(predictions, *train)
    assert found.copied == (
        CopiedDialogue(name="test dia1", utterances=3, train=("train dia0", "train dia2")),
    )
    assert "copied: test dia1 = train dia0, train dia2 (3 utterances)" in shown(found)


@pytest.mark.parametrize(
    "train",
    [
        [["How are you?", "Well.", "Fine."]],  # something was said between
        [["Fine.", "How are you?"]],  # another order
        [["So, how are you?", "Fine."]],  # part of a text
        [["How are you?"], ["Fine."]],  # two dialogues
        [["Ah.", "How are you?"]],  # cut off
    ],
)
def test_what_is_not_the_whole_dialogue_in_a_row_is_no_copy(plant_predictions, train):
    predictions = plant_predictions([["How are you?", "Fine."]])
    assert find_leakage(predictions, *train_rows(*train)).copied == ()


def test_a_lone_utterance_is_no_dialogue(plant_predictions):
    predictions = plant_predictions([["What?"], ["", "What?"]])
    assert find_leakage(predictions, *train_rows(["", "What?"])).copied == ()


def test_rows_count_in_the_order_in_which_they_were_said(plant_predictions):
    predictions = plant_predictions([["How are you?", "Fine."]])
    keys, texts = train_rows(["How are you?", "Fine."])
    backwards = find_leakage(predictions, keys[::-1], texts[::-1])
    assert [str(each) for each in backwards.copied] == ["test dia0 = train dia0"]


@pytest.fixture
def place(tmp_path, plant_cache) -> Path:
    """Caches in which test's dialogue 2 was copied from train's dialogue 30, and an untrained
    run on them."""
    features = tmp_path / "features"
    for split, rows in (("train", 200), ("dev", 20), ("test", 20)):
        cache = plant_cache(split, rows)
        text = [f"{split} says {row}" for row in range(rows)]
        if split == "test":
            text[10:15] = [f"train says {row}" for row in range(150, 155)]
        write_cache(features / f"{split}.h5", replace(cache, text=text))
    data = load_split(features, "train", modalities=None, input="raw")
    write_run(tmp_path / "run", data, features)
    return tmp_path


def write_run(run, data, features, **changes):
    run.mkdir()
    checkpoint = Checkpoint(
        dims=build_model(data, ModelConfig(hidden=8), seed=0).dims,
        model=build_model(data, ModelConfig(hidden=8), seed=0),
        recipe=data.recipe,
        projection_hash=None,
        emotion_counts=tuple(count_labels(data.emotion, 7).tolist()),
        sentiment_counts=tuple(count_labels(data.sentiment, 3).tolist()),
        settings={},
        features=features,
    )
    checkpoint = replace(checkpoint, **changes)
    write_checkpoint(run, checkpoint)
    return checkpoint


def test_measuring_test_finds_the_dialogue_planted_in_train(place):
    leakage = evaluate(EvaluateConfig(run=place / "run")).leakage
    assert isinstance(leakage, Leakage)
    assert [str(each) for each in leakage.copied] == ["test dia2 = train dia30"]
    assert leakage.seen.rows == 5
    assert isinstance(evaluate(EvaluateConfig(run=place / "run", split="dev")).leakage, Leakage)
    assert evaluate(EvaluateConfig(run=place / "run", split="train")).leakage is None


def test_train_is_read_from_where_the_run_learned_not_from_where_it_is_measured(place):
    other = place / "other"
    other.mkdir()
    shutil.copy(place / "features" / "test.h5", other)
    leakage = evaluate(EvaluateConfig(run=place / "run", features=other)).leakage
    assert isinstance(leakage, Leakage)
    assert leakage.seen.rows == 5


def test_without_the_train_cache_it_is_said_that_nothing_was_checked(place):
    (place / "features" / "train.h5").unlink()
    report = evaluate(EvaluateConfig(run=place / "run"))
    assert isinstance(report.leakage, NotChecked)
    assert "train.h5: no such cache" in report.leakage.not_checked
    assert "not checked which texts occur in train" in shown(report.leakage)


def test_a_run_that_is_passed_on_is_measured_on_features_that_are_named(place):
    checkpoint = read_checkpoint(place / "run").to_pass_on()
    (place / "passed-on").mkdir()
    write_checkpoint(place / "passed-on", checkpoint)
    with pytest.raises(InputError, match="name them with --features"):
        evaluate(EvaluateConfig(run=place / "passed-on"))
    report = evaluate(EvaluateConfig(run=place / "passed-on", features=place / "features"))
    assert report.rows == 20
    assert isinstance(report.leakage, NotChecked)
    assert "--features" in remake(checkpoint, place / "passed-on", data=None).commands[1]


def test_a_train_cache_that_became_another_is_not_taken_for_it(place, plant_cache):
    write_cache(place / "features" / "train.h5", plant_cache("train", 150))
    leakage = evaluate(EvaluateConfig(run=place / "run")).leakage
    assert isinstance(leakage, NotChecked)
    assert "no longer holds the rows" in leakage.not_checked


@pytest.mark.parametrize("named", ["features", "run"])
def test_a_fine_tuned_run_learned_from_what_it_was_started_with(place, named):
    """Its own `features` hold what its encoders made since; here they hold nothing."""
    data = load_split(place / "features", "train", modalities=None, input="raw")
    settings = {"features": None, "run": str(place / "run")}
    if named == "features":
        settings = {"features": str(place / "features"), "run": "gone"}
    tuned = write_run(
        place / "tuned",
        data,
        place / "tuned" / "features",
        finetuned=("text",),
        settings=settings,
        emotion_counts=(1,) * 7,
    )
    keys, texts = read_train_texts(tuned)
    assert len(keys) == len(texts) == 200


def test_a_fine_tuned_run_whose_start_is_gone_is_not_checked(place, plant_predictions):
    data = load_split(place / "features", "train", modalities=None, input="raw")
    tuned = write_run(
        place / "tuned",
        data,
        place / "tuned" / "features",
        finetuned=("text",),
        settings={"features": None, "run": str(place / "gone")},
    )
    found = check_leakage(tuned, plant_predictions([["Hi"]]))
    assert isinstance(found, NotChecked)
    assert "gone is no trained run" in found.not_checked
