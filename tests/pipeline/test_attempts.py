"""The count of workers that a clip has killed; exact, or healthy clips would be given up."""

from pipeline.parallel import _AttemptLedger


def test_a_clip_begun_and_never_finished_counts_as_an_attempt() -> None:
    ledger = _AttemptLedger()
    assert [ledger.begin("deadly", None) for _ in range(3)] == [0, 1, 2]


def test_a_clip_that_was_finished_starts_from_nothing() -> None:
    ledger = _AttemptLedger()
    ledger.begin("first", None)
    ledger.begin("second", "first")  # tells in passing that the first is done
    ledger.finish("second")
    assert ledger.begin("first", None) == 0
    assert ledger.begin("second", "first") == 0
