"""Counts of a split's CSV, compared with the published ones of MELD."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.corpus.meld_facts import FRAME_RATE, PUBLISHED, recognise
from pipeline.recipe import DecodeConfig
from pipeline.schema import EMOTIONS, SENTIMENTS, Split, Utterance

# As the published counts have it; extraction itself reads the first 30 s.
OVERLONG_S = 20.0
# What the default recipe samples of a clip.
FEW_PICTURES = DecodeConfig().num_frames


@dataclass(frozen=True, kw_only=True)
class AnnotationFacts:
    """Counts of one CSV.

    meld:         the split of MELD whose rows these are exactly; None for any other corpus
    gap_dialogues, gap_ids: dialogues in which utterance ids are left out, and how many ids
    zero_windows: rows with time stamps, whose end is not after their start
    overlong, too_short: rows whose own time stamps make their clips so
    emotions, sentiments: rows by label; unlabelled rows are not counted
    """

    rows: int
    meld: Split | None
    dialogues: int
    gap_dialogues: int
    gap_ids: int
    zero_windows: int
    overlong: int
    too_short: int
    emotions: dict[str, int] = field(default_factory=dict)
    sentiments: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self)}


def window_s(row: Utterance) -> float | None:
    """The clip's length by its row's time stamps; None where they tell none."""
    length_s = row.end_s - row.start_s
    return length_s if length_s > 0 else None


def count_rows(rows: Sequence[Utterance]) -> AnnotationFacts:
    ids = defaultdict(list)
    for row in rows:
        ids[row.key.dialogue_id].append(row.key.utterance_id)
    gaps = [max(each) + 1 - len(each) for each in ids.values()]
    # A row without time stamps has 0 for both; one with a start alone says nothing of its length.
    windows = [window_s(row) for row in rows if row.end_s]
    lengths = [each for each in windows if each is not None]
    emotions = Counter(row.emotion for row in rows)
    sentiments = Counter(row.sentiment for row in rows)
    return AnnotationFacts(
        rows=len(rows),
        meld=recognise(row.key for row in rows),
        dialogues=len(ids),
        gap_dialogues=sum(gap > 0 for gap in gaps),
        gap_ids=sum(gaps),
        zero_windows=len(windows) - len(lengths),
        overlong=sum(length > OVERLONG_S for length in lengths),
        # A row without a window leaves room for no picture at all.
        too_short=sum((length or 0.0) * FRAME_RATE < FEW_PICTURES for length in windows),
        emotions={name: emotions[name] for name in EMOTIONS},
        sentiments={name: sentiments[name] for name in SENTIMENTS},
    )


def differences(facts: AnnotationFacts) -> list[str]:
    """How MELD's own rows are not as published; nothing is published about other rows."""
    if facts.meld is None:
        return []
    published = PUBLISHED[facts.meld]
    wanted: dict[str, Any] = {
        "rows": published.rows,
        "dialogues": published.dialogues,
        "gap_dialogues": published.gap_dialogues,
        "gap_ids": published.gap_ids,
        "zero_windows": len(published.zero_windows),
        "overlong": published.num_overlong,
        "too_short": published.num_too_short,
        "emotions": published.emotions,
        "sentiments": published.sentiments,
    }
    return [
        f"{name.replace('_', ' ')}: {_said(getattr(facts, name))}, published are {_said(value)}"
        for name, value in wanted.items()
        if getattr(facts, name) != value
    ]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items())
    return str(value)
