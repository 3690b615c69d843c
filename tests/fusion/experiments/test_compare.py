"""Two runs on the same rows: what is won and lost is counted, and a verdict only where it holds."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from console.show.comparison import render_comparison
from fusion.evaluation.bootstrap import Interval
from fusion.evaluation.test_evaluations import count_evaluations
from fusion.experiments.compare import (
    CompareConfig,
    HeadComparison,
    compare,
    compare_head,
    compare_predictions,
    match_rows,
)
from fusion.labels import UNLABELLED
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.cache.format import read_cache, write_cache
from pipeline.errors import MismatchError

pytestmark = pytest.mark.heavy

DIALOGUES = [["Hi", "Ho"], ["What?", "Nothing.", "Well"], ["Bye"]]


def shown(comparison):
    console = Console(file=io.StringIO(), width=80)
    console.print(render_comparison(comparison))
    return console.file.getvalue()


def test_won_and_lost_rows_are_counted_exactly():
    true = np.array([0, 1, 2, 3, 4, UNLABELLED])
    a = np.array([0, 1, 0, 0, 0, 0])
    b = np.array([0, 0, 2, 3, 0, 0])
    head = compare_head(true, a, b, np.array([0, 0, 1, 1, 2, 2]), 7)
    assert (head.rows, head.won, head.lost, head.both_right, head.both_wrong) == (5, 2, 1, 1, 1)
    assert head.difference is not None
    assert head.difference.value == pytest.approx(head.b - head.a)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.01, 0.02, "no difference found: the interval holds 0"),
        (0.0, 0.02, "no difference found: the interval holds 0"),
        (0.001, 0.02, "B is better: the interval leaves out 0"),
        (-0.02, -0.001, "A is better: the interval leaves out 0"),
    ],
)
def test_the_verdict_is_what_the_interval_says(low, high, verdict):
    head = HeadComparison(
        rows=9,
        a=0.5,
        b=0.5,
        difference=Interval(value=(low + high) / 2, low=low, high=high),
        won=1,
        lost=1,
        both_right=1,
        both_wrong=6,
    )
    assert head.verdict == verdict
    assert "not decided" in replace(head, difference=None).verdict


def test_rows_are_matched_by_key_whatever_their_order(plant_predictions):
    a = plant_predictions(DIALOGUES, emotion=[0, 1, 2, 3, 4, 5])
    order = [5, 2, 0, 4, 1, 3]
    shuffled = replace(
        a,
        keys=tuple(a.keys[row] for row in order),
        text=tuple(a.text[row] for row in order),
        emotion=a.emotion[order],
        sentiment=a.sentiment[order],
        emotion_logits=a.emotion_logits[order],
        sentiment_logits=a.sentiment_logits[order],
    )
    matched = match_rows(a, shuffled)
    assert matched.keys == a.keys
    assert matched.text == a.text
    assert (matched.emotion_logits == a.emotion_logits).all()
    assert compare_predictions(a, matched).emotion.both_right == 6


def test_other_rows_are_refused_with_their_number_and_an_example(plant_predictions):
    a = plant_predictions(DIALOGUES)
    fewer = replace(plant_predictions(DIALOGUES[:2]), run="second")
    wanted = r"A \(planted\) .* 6 rows and B \(second\) on 5; 1 are not in both, such as "
    with pytest.raises(MismatchError, match=wanted + r"test dia2_utt0, which B \(second\) lacks"):
        match_rows(a, fewer)
    with pytest.raises(MismatchError, match=r"which A \(second\) lacks"):
        match_rows(fewer, a)
    assert MismatchError.exit_status == 6


def test_a_row_that_one_of_them_has_twice_is_refused(plant_predictions):
    a = plant_predictions([*DIALOGUES[:2], ["Bye", "Bye"]])
    twice = replace(a, keys=(*a.keys[:5], a.keys[4], a.keys[4]), run="second")
    once = plant_predictions(DIALOGUES[:2])
    with pytest.raises(MismatchError, match=r"B \(second\) has test dia1_utt2 more than once"):
        match_rows(once, twice)
    with pytest.raises(MismatchError, match=r"A \(second\) has test dia1_utt2 more than once"):
        match_rows(twice, once)
    with pytest.raises(MismatchError, match=r"A \(second\) has test dia1_utt2 more than once"):
        match_rows(twice, twice)


@pytest.mark.parametrize(
    "changed",
    [
        {"text": ("Hi", "Ho", "What?", "Nothing!", "Well", "Bye")},
        {"emotion": np.array([0, 0, 0, 1, 0, 0])},
    ],
)
def test_the_same_keys_of_another_corpus_are_refused(plant_predictions, changed):
    a = plant_predictions(DIALOGUES)
    with pytest.raises(MismatchError, match=r"1 rows differ .* such as test dia1_utt1"):
        match_rows(a, replace(a, **changed))


def test_a_run_is_never_better_than_itself(plant_predictions):
    random = np.random.default_rng(0)
    texts = [["line"] * 9 for _ in range(30)]
    emotion, predicted = random.integers(0, 7, (2, 270))
    a = plant_predictions(texts, emotion=emotion, predicted=predicted)
    for seed in range(10):
        found = compare_predictions(a, a, samples=200, seed=seed)
        for head in (found.emotion, found.sentiment):
            assert head.difference == Interval(value=0, low=0, high=0)
            assert "no difference" in head.verdict


def test_the_table_fits_and_says_which_run_is_which(plant_predictions):
    a = plant_predictions(DIALOGUES, predicted=[0, 0, 1, 1, 0, 0])
    b = replace(plant_predictions(DIALOGUES), run="second [one]")
    text = shown(replace(compare_predictions(a, b), test_evaluations_a=3, test_evaluations_b=1))
    assert "A: planted   B: second [one]   on test: 6 rows, 3 dialogues" in text
    assert "…" not in text
    assert "B: test was evaluated once with this run" in text
    assert "A: test was evaluated 3 times with this run" in text


@pytest.fixture(scope="module")
def place(tmp_path_factory, plant_cache) -> Path:
    """Two runs: one on what carries the emotion, one, of another recipe, on noise."""
    folder = tmp_path_factory.mktemp("compared")
    fit = FitConfig(epochs=3, batch_size=32, learning_rate=3e-3)
    for name, modalities, carriers in (("good", ["text"], ["text"]), ("noise", ["video"], [])):
        for split, rows in (("train", 300), ("dev", 60), ("test", 100)):
            cache = plant_cache(split, rows, modalities=modalities, carriers=carriers)
            write_cache(folder / f"features-{name}" / f"{split}.h5", cache)
        train_fusion(
            TrainConfig(
                features=folder / f"features-{name}", out=folder / name, fit=fit, device="cpu"
            )
        )
    return folder


def test_a_run_that_sees_more_is_found_better_whatever_the_recipes(place):
    found = compare(CompareConfig(run_a=place / "noise", run_b=place / "good", split="dev"))
    assert (found.run_a, found.run_b, found.rows, found.dialogues) == ("noise", "good", 60, 12)
    assert found.emotion.verdict.startswith("B is better")
    assert found.emotion.won > found.emotion.lost
    back = compare(CompareConfig(run_a=place / "good", run_b=place / "noise", split="dev"))
    assert back.emotion.verdict.startswith("A is better")
    assert back.emotion.difference.value == -found.emotion.difference.value
    assert count_evaluations(place / "good") == 0
    values = found.to_dict()
    assert values["emotion"]["verdict"] == found.emotion.verdict
    assert (values["test_clips_a"], values["test_clips_b"]) == ("fixed", "fixed")
    console = Console(file=io.StringIO(), width=80)
    console.print(render_comparison(found))
    assert "A: test clips fixed" in console.file.getvalue()


def test_comparing_on_test_is_a_look_with_both(place):
    before = [count_evaluations(place / name) for name in ("good", "noise")]
    found = compare(CompareConfig(run_a=place / "good", run_b=place / "noise"))
    assert [found.test_evaluations_a, found.test_evaluations_b] == [count + 1 for count in before]
    alone = compare(CompareConfig(run_a=place / "good", run_b=place / "good"))
    assert alone.test_evaluations_a == alone.test_evaluations_b == before[0] + 2


def test_rows_that_do_not_match_are_no_look(place, tmp_path):
    cache = read_cache(place / "features-noise" / "test.h5")
    write_cache(tmp_path / "test.h5", replace(cache, text=[f"other {text}" for text in cache.text]))
    before = count_evaluations(place / "good")
    with pytest.raises(MismatchError, match="100 rows differ in text"):
        compare(CompareConfig(run_a=place / "good", run_b=place / "noise", features_b=tmp_path))
    assert count_evaluations(place / "good") == before
