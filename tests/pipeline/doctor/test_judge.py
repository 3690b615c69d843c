"""Known or new: what is published of MELD's rows and clips is known, anything else a finding."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipeline.corpus.annotations import UnreadTimes
from pipeline.corpus.meld_facts import PUBLISHED, PublishedSplit, hash_keys
from pipeline.doctor.annotations import count_rows
from pipeline.doctor.judge import judge
from pipeline.schema import Utterance
from tests.pipeline.doctor.planted import new_and_known, plant_evidence, plant_rows


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """publish(rows, missing=...): the world knows these rows as MELD's, and that about them."""

    def publish_rows(rows: Sequence[Utterance], **known: Any) -> None:
        facts = count_rows(rows)
        nothing: frozenset[tuple[int, int]] = frozenset()
        values: dict[str, Any] = {
            **dict.fromkeys(("missing", "unreadable", "unannotated"), nothing),
            "zero_windows": nothing,
            "num_overlong": facts.overlong,
            "num_too_short": facts.too_short,
            "num_length_differs": 0,
            **{name: getattr(facts, name) for name in ("rows", "dialogues", "emotions")},
            **{name: getattr(facts, name) for name in ("gap_dialogues", "gap_ids", "sentiments")},
            "keys_hash": hash_keys(row.key for row in rows),
            **known,
        }
        monkeypatch.setitem(PUBLISHED, rows[0].key.split, PublishedSplit(**values))

    return publish_rows


def test_times_that_were_not_read_are_one_finding_with_their_rows() -> None:
    rows = plant_rows("dev", [2.0] * 3)
    unread = (
        UnreadTimes(column="StartTime", rows=(2, 3), first="soon"),
        UnreadTimes(column="EndTime", rows=(3,), first="later"),
    )
    evidence = dataclasses.replace(plant_evidence(rows), unread_times=unread)
    (finding,) = judge(evidence)
    assert (finding.kind, finding.count, finding.is_known) == ("unread_times", 2, False)
    for part in ("StartTime, rows 2, 3", "'soon'", "EndTime, row 3", "'later'"):
        assert part in finding.message


def test_a_published_defect_is_known_and_another_of_its_kind_is_new(publish) -> None:
    rows = plant_rows("dev", [2.0] * 4)
    publish(rows, missing=frozenset({(7, 1)}))
    new, known = new_and_known(plant_evidence(rows, {1: None, 2: None}))
    assert (new, known) == (["dev dia7_utt2 missing"], ["dev dia7_utt1 missing"])


def test_to_rows_that_are_not_exactly_melds_nothing_published_applies(publish) -> None:
    rows = plant_rows("dev", [2.0] * 4)
    publish(rows, missing=frozenset({(7, 1)}))
    new, known = new_and_known(plant_evidence(rows[:3], {1: None}))
    assert (new, known) == (["dev dia7_utt1 missing"], [])


def test_a_clip_is_long_or_short_as_annotated_or_it_is_a_finding() -> None:
    rows = plant_rows("train", [25.0, 2.0, 0.3, 2.0])
    new, known = new_and_known(plant_evidence(rows, {1: 25.0, 3: 0.1}))
    assert known == ["train dia7_utt0 overlong", "train dia7_utt2 too_short"]
    assert new == [
        "train dia7_utt1 overlong",
        "train dia7_utt3 too_short",
        "train dia7_utt1 length_differs",
        "train dia7_utt3 length_differs",
    ]


def test_so_many_lengths_may_differ_as_are_published_and_no_more(publish) -> None:
    rows = plant_rows("train", [2.0, 3.0, 4.0, 0.0])
    publish(rows, num_length_differs=2, zero_windows=frozenset({(7, 3)}))
    new, known = new_and_known(plant_evidence(rows, {0: 3.0, 1: 2.0, 3: 9.0}))
    assert (new, known) == (
        [],
        ["train dia7_utt0 length_differs", "train dia7_utt1 length_differs"],
    )
    new, known = new_and_known(plant_evidence(rows, {0: 3.0, 1: 2.0, 2: 5.0}))
    assert (len(new), known) == (3, [])


def test_legacy_reads_the_mis_cut_test_clips_on_purpose(publish, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.doctor.judge.NUM_CORRECTED_CUTS", 2)
    rows = plant_rows("test", [2.0] * 4)
    publish(rows, num_length_differs=2)
    twins_s = {0: 4.0, 1: 5.0}
    legacy = plant_evidence(rows, twins_s=twins_s, test_clips="legacy")
    differing = ["test dia7_utt0 length_differs", "test dia7_utt1 length_differs"]
    assert new_and_known(legacy) == ([], differing)
    assert new_and_known(plant_evidence(rows, twins_s=twins_s)) == ([], [])
    # Both that are published are accounted for by their twins: a third is new.
    new, _ = new_and_known(plant_evidence(rows, {3: 4.0}, twins_s=twins_s))
    assert new == ["test dia7_utt3 length_differs"]
    # A corrected cut that is not what its row says corrects nothing.
    new, _ = new_and_known(plant_evidence(rows, {0: 4.0}, twins_s=twins_s))
    assert new == ["test dia7_utt0 length_differs"]


def test_a_lacking_corrected_cut_would_be_replaced_silently_and_is_reported(
    publish, monkeypatch
) -> None:
    monkeypatch.setattr("pipeline.doctor.judge.NUM_CORRECTED_CUTS", 3)
    rows = plant_rows("test", [2.0] * 4)
    publish(rows)
    [finding] = judge(plant_evidence(rows, twins_s={0: 2.0}))
    assert (finding.kind, finding.count, finding.is_known) == ("corrected_cuts", 2, False)
    [finding] = judge(plant_evidence(rows, twins_s={0: 2.0}, test_clips="legacy"))
    assert finding.is_known


def test_labels_that_are_not_as_published_are_reported(publish) -> None:
    rows = plant_rows("dev", [2.0] * 3)
    publish(rows)
    relabelled = [dataclasses.replace(rows[0], emotion="joy"), *rows[1:]]
    [finding] = judge(plant_evidence(relabelled))
    assert finding.kind == "annotations_differ"
    assert "joy 1" in finding.message


def test_the_csv_of_another_split_is_reported(publish) -> None:
    publish(plant_rows("train", [2.0] * 3))
    [finding] = judge(plant_evidence(plant_rows("dev", [2.0] * 3)))
    assert (finding.kind, finding.split) == ("other_split", "dev")
