"""Rows that share their work, as utterances of one dialogue do, belong into one batch."""

from types import SimpleNamespace

import pytest

from fusion.finetuning.clips import pack, shuffled_batches, sorted_batches
from fusion.finetuning.loop import Tuning

# Dialogues of 1 to 7 utterances, mixed as rows of a split may be.
SIZES = [3, 1, 7, 4, 2, 5, 1, 6, 3, 4]
GROUPS = [first for first, size in zip([0, 3, 4, 11, 15, 17, 22, 23, 29, 32], SIZES, strict=True)
          for _ in range(size)]  # fmt: skip
LENGTHS = [10 * GROUPS.count(first) for first in GROUPS]
ROWS = list(range(len(GROUPS)))


def whole(batches: list[list[int]]) -> bool:
    """Whether no group is in two of them."""
    places = [(GROUPS[row], number) for number, batch in enumerate(batches) for row in batch]
    return len({*places}) == len(set(GROUPS))


@pytest.mark.parametrize("epoch", [1, 2])
def test_batches_hold_whole_groups_and_every_row_once(epoch: int) -> None:
    batches = shuffled_batches(LENGTHS, 8, seed=0, epoch=epoch, groups=GROUPS)
    assert sorted(row for batch in batches for row in batch) == ROWS
    assert whole(batches)
    assert len(batches) <= 5  # steps of an epoch, as the learning rate counts them: 36 rows by 8


def test_another_epoch_has_another_order() -> None:
    one, other = (shuffled_batches(LENGTHS, 8, seed=0, epoch=k, groups=GROUPS) for k in (1, 2))
    assert one != other


def test_without_groups_batches_are_what_they_were() -> None:
    alone = shuffled_batches(LENGTHS, 8, seed=0, epoch=1)
    assert shuffled_batches(LENGTHS, 8, seed=0, epoch=1, groups=ROWS) == alone


def test_parts_that_fit_into_memory_split_a_group_only_where_it_is_larger() -> None:
    assert pack([0, 1, 2, 3, *range(4, 11)], 5, GROUPS) == [
        [0, 1, 2, 3],
        [4, 5, 6, 7, 8],
        [9, 10],
    ]


def test_evaluation_reads_a_group_at_once() -> None:
    batches = sorted_batches(LENGTHS, 8, GROUPS)
    assert sorted(row for batch in batches for row in batch) == ROWS
    assert whole(batches)
    assert sorted_batches(LENGTHS, 8) == sorted_batches(LENGTHS, 8, ROWS)


@pytest.mark.parametrize("groups", [GROUPS, ROWS])
def test_workers_share_the_rows_of_a_batch_and_no_group(groups: list[int]) -> None:
    batch = [4, 5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 22]
    shares = []
    for rank in range(3):
        stub = SimpleNamespace(
            worker=SimpleNamespace(rank=rank, world=3), train=SimpleNamespace(groups=groups)
        )
        shares.append(Tuning._share_of(stub, batch))  # type: ignore[arg-type]
    assert sorted(row for share in shares for row in share) == sorted(batch)
    assert sum(len({groups[row] for row in share}) for share in shares) == len(
        {groups[row] for row in batch}
    )
    if groups is ROWS:
        assert shares == [batch[rank::3] for rank in range(3)]
