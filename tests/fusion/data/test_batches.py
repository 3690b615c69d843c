"""Batches of several trainings' rows, side by side."""

import torch

from fusion.data.batches import Rows, SideBySide
from fusion.labels import UNLABELLED
from fusion.model.dialogue import Turns


def rows(count: int) -> Rows:
    """Row i is i in everything."""
    number = torch.arange(count)
    return Rows(
        features={"text": number.float()[:, None, None]},
        present=torch.ones(count, 1, dtype=torch.bool),
        turns=Turns(number, number, number),
        emotion=number,
        sentiment=number,
    )


def test_a_shorter_batch_is_filled_up_with_rows_that_say_nothing() -> None:
    batch = SideBySide([rows(10), rows(10)]).pick([torch.tensor([3, 1]), torch.tensor([7])])
    assert batch.features["text"].flatten(1).tolist() == [[3, 1], [7, 0]]
    assert batch.present.flatten(1).tolist() == [[True, True], [True, False]]
    assert batch.emotion.tolist() == [[3, 1], [7, UNLABELLED]]
    assert batch.turns.dialogue.tolist() == [[3, 1], [7, -1]]


def test_one_long_batch_does_not_make_those_after_it_long() -> None:
    side_by_side = SideBySide([rows(1000)])
    assert len(side_by_side.pick([torch.arange(1000)])) == 1000
    batch = side_by_side.pick([torch.arange(900, 1000)])
    assert len(batch) <= 128
    assert batch.emotion[0, :100].tolist() == list(range(900, 1000))
    assert (batch.emotion[0, 100:] == UNLABELLED).all()
