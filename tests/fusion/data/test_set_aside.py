"""Dialogues of train that stand in for dev: which they are, and that nothing else is lost."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from fusion.data.set_aside import SetAside, choose_dialogues
from fusion.data.split import FusionData
from fusion.labels import UNLABELLED
from pipeline.errors import InputError, MismatchError
from pipeline.schema import ClipKey

Plant = Callable[[Sequence[Sequence[int]]], FusionData]


@pytest.fixture
def plant(load_planted: Callable[..., FusionData]) -> Plant:
    """plant([[0, 4], [0]]): two dialogues with the emotions of their rows; no sentiments."""
    like = load_planted("train", 10)

    def make(dialogues: Sequence[Sequence[int]]) -> FusionData:
        keys = [
            ClipKey("train", number, place)
            for number, emotions in enumerate(dialogues)
            for place in range(len(emotions))
        ]
        rows = np.zeros(len(keys), dtype=np.int64)
        emotion = torch.tensor([each for emotions in dialogues for each in emotions])
        taken = like.take(rows)
        unlabelled = torch.full_like(emotion, UNLABELLED)
        return replace(taken, keys=tuple(keys), emotion=emotion, sentiment=unlabelled)

    return make


def on_both_sides(dialogues: Sequence[Sequence[int]], aside: Sequence[int]) -> set[int]:
    here = {each for number in aside for each in dialogues[number]}
    rest = [each for number, each in enumerate(dialogues) if number not in aside]
    return (here & {each for emotions in rest for each in emotions}) - {UNLABELLED}


def test_a_tenth_of_the_dialogues_is_set_aside_whole_and_the_rest_is_train(plant: Plant) -> None:
    data = plant([[k % 7, (k + 1) % 7, (k + 3) % 7] for k in range(100)])
    aside = choose_dialogues(data, 0.1)
    assert len(aside.dialogues) == 10
    assert (aside.of, aside.share) == (100, 0.1)
    train, dev = aside.part(data, "train"), aside.part(data, "dev")
    assert {key.dialogue_id for key in dev.keys} == set(aside.dialogues)
    assert not {key.dialogue_id for key in train.keys} & set(aside.dialogues)
    assert len(train) + len(dev) == len(data) == 300
    assert (train.split, dev.split) == ("train", "dev")
    assert {key.split for key in dev.keys} == {"train"}  # a key says where a row lies
    assert str(aside) == "dev: 10 of the 100 dialogues of train, held out"


@pytest.mark.parametrize("seed", range(40))
def test_every_label_that_can_be_on_both_sides_is(plant: Plant, seed: int) -> None:
    random = np.random.default_rng(seed)
    dialogues = [
        random.integers(0, 7, random.integers(1, 4)).tolist() for _ in range(random.integers(2, 8))
    ]
    found = on_both_sides(dialogues, choose_dialogues(plant(dialogues), 0.1).dialogues)
    sets = (
        set_aside
        for size in range(1, len(dialogues))
        for set_aside in combinations(range(len(dialogues)), size)
    )
    assert len(found) == max(len(on_both_sides(dialogues, each)) for each in sets)


def test_rare_labels_are_on_both_sides_of_a_large_corpus(plant: Plant) -> None:
    """By chance alone two dialogues of two hundred would be parted in one of five draws."""
    dialogues = [[0, 0, 0, 0] for _ in range(200)]
    for rare in range(1, 7):
        dialogues[rare][0] = dialogues[100 + rare][0] = rare
    aside = choose_dialogues(plant(dialogues), 0.1)
    assert len(on_both_sides(dialogues, aside.dialogues)) == 7
    assert len(aside.dialogues) == 20


def test_a_label_of_one_dialogue_stays_where_it_can_be_learned(plant: Plant) -> None:
    dialogues = [[0, 1], [0, 2], [0], [0], [0, 3]]
    aside = choose_dialogues(plant(dialogues), 0.5)
    assert set(aside.dialogues) <= {2, 3}


def test_the_labels_of_what_is_set_aside_are_spread_as_in_all_of_train(plant: Plant) -> None:
    dialogues = [[k % 4] * (3 if k % 4 else 6) for k in range(80)]
    data = plant(dialogues)
    dev = choose_dialogues(data, 0.2).part(data, "dev")
    wanted = np.bincount(data.emotion.numpy()) / len(data)
    assert np.bincount(dev.emotion.numpy()) / len(dev) == pytest.approx(wanted, abs=0.08)


def test_dialogues_without_a_label_choose_nothing(plant: Plant) -> None:
    dialogues = [[UNLABELLED]] * 20 + [[0], [0], [4], [4]]
    aside = choose_dialogues(plant(dialogues), 0.1)
    assert min(aside.dialogues) >= 20
    assert aside.of == 24


@pytest.mark.parametrize("dialogues", [[[0, 1, 2]], [[UNLABELLED], [0, 1]]])
def test_one_dialogue_cannot_both_teach_and_choose(
    plant: Plant, dialogues: list[list[int]]
) -> None:
    with pytest.raises(InputError, match=r"train has . dialogues?, one with labels.*Dialogue_ID"):
        choose_dialogues(plant(dialogues), 0.1)


def test_which_they_are_hangs_on_no_modality_and_on_no_order_of_calls(plant: Plant) -> None:
    data = plant([[k % 7, k % 3] for k in range(30)])
    first = choose_dialogues(data, 0.1)
    assert choose_dialogues(data, 0.1) == first
    assert choose_dialogues(data.select(["audio"]), 0.1) == first


def test_features_that_lack_one_of_the_dialogues_are_refused(plant: Plant) -> None:
    aside = SetAside(share=0.1, of=30, dialogues=(3, 29), content="")
    with pytest.raises(MismatchError, match="no dialogue 29"):
        aside.part(plant([[0]] * 20), "dev")


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": 0.0},
        {"share": 1},
        {"share": float("nan")},
        {"dialogues": []},
        {"dialogues": [1, 1]},
        {"dialogues": ["1"]},
        {"dialogues": list(range(12))},
        {"of": "12"},
        {"content": None},
    ],
)
def test_a_description_without_meaning_is_none(wrong: dict) -> None:
    sound = SetAside(share=0.1, of=12, dialogues=(3, 7), content="")
    assert SetAside.from_dict(sound.to_dict()) == sound
    with pytest.raises((TypeError, ValueError)):
        SetAside.from_dict(sound.to_dict() | wrong)
