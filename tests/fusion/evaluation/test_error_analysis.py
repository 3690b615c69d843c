"""Where a run is wrong: rows planted into each slice come out of it."""

import io
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import f1_score

from console.show.evaluation import render_errors
from fusion.evaluation.error_analysis import (
    analyse_errors,
    find_confident_mistakes,
    slice_by_emotion,
    slice_by_length,
    slice_by_position,
    slice_by_presence,
    slice_by_shift,
    slice_by_speaker,
)
from fusion.evaluation.slices import measure_slice
from fusion.labels import UNLABELLED
from pipeline.schema import EMOTIONS


def rows_of(table):
    return {each.name: each.rows for each in table.slices}


def accuracy_of(table):
    return {each.name: each.emotion_accuracy for each in table.slices}


def test_a_slice_is_worth_what_sklearn_says_of_its_rows(plant_predictions):
    random = np.random.default_rng(0)
    emotion, predicted = random.integers(0, 7, (2, 60))
    predictions = plant_predictions([["line"] * 60], emotion=emotion, predicted=predicted)
    chosen = random.random(60) < 0.5
    found = measure_slice("some", predictions, chosen)
    assert found.rows == chosen.sum()
    assert found.emotion_accuracy == pytest.approx((emotion == predicted)[chosen].mean())
    for value, true, claimed in (
        (found.emotion_weighted_f1, emotion, predicted),
        (found.sentiment_weighted_f1, predictions.sentiment, predictions.predicted_sentiment),
    ):
        wanted = f1_score(true[chosen], claimed[chosen], average="weighted", zero_division=0)
        assert value == pytest.approx(wanted)


def test_a_slice_without_labels_has_rows_and_no_scores(plant_predictions):
    predictions = plant_predictions([["a", "b"]], emotion=[UNLABELLED] * 2, predicted=[0, 0])
    found = measure_slice("all", predictions, np.ones(2, bool))
    assert (found.rows, found.emotion_weighted_f1, found.sentiment_accuracy) == (2, None, None)


def test_by_true_emotion_the_f1_is_the_classs_own_and_not_flattered(plant_predictions):
    # neutral: 2 of 3 found, claimed 4 times
    predictions = plant_predictions(
        [["line"] * 5], emotion=[0, 0, 0, 4, 4], predicted=[0, 0, 4, 0, 0]
    )
    neutral, joy = slice_by_emotion(predictions).slices
    assert (neutral.name, neutral.rows, joy.name, joy.rows) == ("neutral", 3, "joy", 2)
    assert neutral.emotion_accuracy == pytest.approx(2 / 3)
    assert neutral.emotion_weighted_f1 == pytest.approx(2 * 2 / (3 + 4))
    assert joy.emotion_weighted_f1 == 0


def test_the_twelve_commonest_speakers_stand_alone(plant_predictions):
    names = [f"speaker {number}" for number in range(14) for _ in range(20 - number)]
    predictions = plant_predictions([["line"] * len(names)])
    rows = rows_of(slice_by_speaker(replace(predictions, speaker=tuple(names))))
    assert list(rows)[:2] == ["speaker 0", "speaker 1"]
    assert len(rows) == 13
    assert rows["2 others"] == 8 + 7
    few = rows_of(slice_by_speaker(replace(predictions, speaker=("",) * len(names))))
    assert few == {"(nobody named)": len(names)}


def test_words_are_counted_between_spaces(plant_predictions):
    texts = ["", "No.", "I don't", "one two  three", "w " * 10, "w " * 11, "w " * 50]
    assert rows_of(slice_by_length(plant_predictions([texts]))) == {
        "0": 1,
        "1 to 2": 2,
        "3 to 5": 1,
        "6 to 10": 1,
        "11 to 20": 1,
        "21 and more": 1,
    }


def test_a_shift_is_against_the_labelled_utterance_before_in_the_same_dialogue(plant_predictions):
    predictions = plant_predictions(
        [["a", "b", "c", "d"], ["e", "f"]],
        emotion=[0, UNLABELLED, 0, 4, 4, 0],
        predicted=[0, 0, 1, 1, 4, 0],  # wrong at c (same) and d (another)
    )
    table = slice_by_shift(predictions)
    assert rows_of(table) == {
        "same as before": 1,
        "another than before": 2,
        "first of its dialogue": 2,
    }
    assert accuracy_of(table) == {
        "same as before": 0,
        "another than before": 0.5,
        "first of its dialogue": 1,
    }


def test_position_counts_what_was_said_not_where_the_row_stands(plant_predictions):
    predictions = plant_predictions([["line"] * 9, ["line"]], predicted=[1] + [0] * 9)
    table = slice_by_position(predictions)
    assert rows_of(table) == {"1": 2, "2 to 3": 2, "4 to 7": 4, "8 and more": 2}
    backwards = replace(
        predictions,
        keys=predictions.keys[::-1],
        emotion_logits=predictions.emotion_logits[::-1],
    )
    assert accuracy_of(slice_by_position(backwards)) == accuracy_of(table)
    assert accuracy_of(table)["1"] == 0.5


def test_what_is_present_names_each_combination(plant_predictions):
    predictions = plant_predictions(
        [["a", "b", "c", "d"]],
        modalities=("text", "video"),
        present=np.array([[True, True], [True, False], [True, True], [False, False]]),
        predicted=[0, 1, 0, 0],
    )
    table = slice_by_presence(predictions)
    assert rows_of(table) == {"text+video": 2, "text": 1, "nothing": 1}
    assert accuracy_of(table)["text"] == 0


def test_the_surest_mistakes_come_first_and_unlabelled_rows_are_none(plant_predictions):
    predictions = plant_predictions(
        [["fine", "sure", "unsure", "nobody knows"]],
        emotion=[0, 1, 2, UNLABELLED],
        predicted=[0, 4, 4, 4],
        speaker=("Joey", "Ross", "Monica", "Joey"),
    )
    logits = predictions.emotion_logits.copy()
    logits[2] /= 5
    sure, unsure = find_confident_mistakes(replace(predictions, emotion_logits=logits))
    assert (str(sure.key), sure.speaker, sure.text) == ("test dia0_utt1", "Ross", "sure")
    assert (sure.true, sure.predicted) == (EMOTIONS[1], EMOTIONS[4])
    assert sure.probability == pytest.approx(np.exp(5) / (np.exp(5) + 6))
    assert unsure.probability == pytest.approx(np.exp(1) / (np.exp(1) + 6))
    assert find_confident_mistakes(predictions, count=1) == (
        find_confident_mistakes(predictions)[0],
    )


def test_every_slicing_covers_every_labelled_row_once(plant_predictions):
    random = np.random.default_rng(1)
    texts = [["w " * int(random.integers(0, 30)) for _ in range(12)] for _ in range(20)]
    emotion, predicted = random.integers(0, 7, (2, 240))
    analysis = analyse_errors(plant_predictions(texts, emotion=emotion, predicted=predicted))
    assert [sum(rows_of(table).values()) for table in analysis.tables] == [240] * 6
    assert len(analysis.mistakes) == 20
    json.dumps(asdict(analysis))


def test_texts_with_brackets_are_shown_as_they_are(plant_predictions):
    predictions = plant_predictions(
        [["[laughs] Oh [/b]"]], emotion=[4], predicted=[0], speaker=("[Joey]",)
    )
    console = Console(file=io.StringIO(), width=120)
    console.print(render_errors(analyse_errors(predictions)))
    text = console.file.getvalue()
    assert "[laughs] Oh [/b]" in text
    assert text.count("[Joey]") == 2


def test_a_split_without_labels_has_slices_and_no_mistakes(plant_predictions):
    nothing = plant_predictions([["a", "b"]], emotion=[UNLABELLED] * 2, predicted=[0, 0])
    analysis = analyse_errors(nothing)
    assert analysis.mistakes == ()
    assert analysis.by_emotion.slices == analysis.by_shift.slices == ()
    assert rows_of(analysis.by_speaker) == {"Joey": 2}
