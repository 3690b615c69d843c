"""What is counted in a CSV, and that MELD's own have the counts that are published."""

import pytest

from pipeline.corpus.annotations import read_annotations
from pipeline.corpus.meld_facts import PUBLISHED
from pipeline.doctor.annotations import count_rows
from pipeline.schema import SPLITS, ClipKey, Split, Utterance
from tests.conftest import ROOT
from tests.pipeline.doctor.planted import new_and_known, plant_evidence

REAL = ROOT.parent / "shared" / "meld"
needs_meld = pytest.mark.skipif(
    not (REAL / "train_sent_emo.csv").is_file(), reason="the real MELD annotations are not here"
)


def test_a_start_without_an_end_tells_no_length() -> None:
    row = Utterance(key=ClipKey("train", 20240101120000, 0), text="Hi", start_s=5.0)
    facts = count_rows([row])
    assert (facts.zero_windows, facts.too_short, facts.overlong) == (0, 0, 0)


def test_rows_without_time_stamps_have_no_length_to_be_judged() -> None:
    rows = [
        Utterance(key=ClipKey("train", 0, number), text="Hi", start_s=start_s, end_s=end_s)
        for number, (start_s, end_s) in enumerate([(0, 0), (5, 5), (5, 5.1), (5, 30)])
    ]
    facts = count_rows(rows)
    assert (facts.zero_windows, facts.too_short, facts.overlong) == (1, 2, 1)


@pytest.mark.heavy
@needs_meld
@pytest.mark.parametrize(
    ("split", "overlong", "too_short"), [("train", 7, 467), ("dev", 2, 50), ("test", 2, 148)]
)
def test_the_real_csvs_have_the_published_counts(
    split: Split, overlong: int, too_short: int
) -> None:
    rows = read_annotations(REAL / f"{split}_sent_emo.csv", split)
    facts = count_rows(rows)
    published = PUBLISHED[split]
    assert facts.meld == split
    assert (facts.overlong, facts.too_short) == (overlong, too_short)
    assert (facts.rows, facts.dialogues) == (published.rows, published.dialogues)
    assert (facts.gap_dialogues, facts.gap_ids) == (published.gap_dialogues, published.gap_ids)
    assert facts.zero_windows == len(published.zero_windows)
    assert (facts.emotions, facts.sentiments) == (published.emotions, published.sentiments)


@pytest.mark.heavy
@needs_meld
@pytest.mark.parametrize("split", SPLITS)
def test_melds_own_clips_with_all_that_is_published_are_healthy_and_one_more_is_reported(
    split: Split,
) -> None:
    rows = read_annotations(REAL / f"{split}_sent_emo.csv", split)
    row_of = {row.key[1:]: n for n, row in enumerate(rows)}
    gone: dict[int, float | None] = {row_of[key]: None for key in PUBLISHED[split].missing}
    twins_s = dict.fromkeys(range(132), 99.0) if split == "test" else {}
    new, known = new_and_known(plant_evidence(rows, gone, twins_s=twins_s))
    assert new == []
    kinds = [line.rpartition(" ")[2] for line in known]
    assert kinds.count("overlong") == PUBLISHED[split].num_overlong
    assert kinds.count("missing") == len(gone)
    # A clip has whole pictures, its row's time stamps do not.
    assert abs(kinds.count("too_short") - PUBLISHED[split].num_too_short) <= 10
    healthy = next(n for n in range(200, len(rows)) if rows[n].end_s - rows[n].start_s > 2)
    new, _ = new_and_known(plant_evidence(rows, {**gone, healthy: None}, twins_s=twins_s))
    assert new == [f"{rows[healthy].key} missing"]
