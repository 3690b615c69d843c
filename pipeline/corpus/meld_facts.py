"""Published facts about MELD: its archive, its size, and its known defects.

Sources: the dataset's README and issues #9, #20, #22, #25, #27, #39, #52
(github.com/declare-lab/MELD); counts were taken from its public CSVs.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.schema import SPLITS, ClipKey, Split

# In the order they are tried: the authors' copy on the Hugging Face hub resumes, the university's
# server is known for resets (issues #17, #40).
ARCHIVE_URLS = (
    "https://huggingface.co/datasets/declare-lab/MELD/resolve/main/MELD.Raw.tar.gz",
    "https://web.eecs.umich.edu/~mihalcea/downloads/MELD.Raw.tar.gz",
    "http://web.eecs.umich.edu/~mihalcea/downloads/MELD.Raw.tar.gz",
)
ARCHIVE_NAME = "MELD.Raw.tar.gz"
ARCHIVE_BYTES = 10_878_146_150
ARCHIVE_SHA256 = "a56b4407d574195cbce470d86f9c9d72fcfea59b0e34502ecd4babee4a5c613e"

NUM_CORRECTED_CUTS = 132
# 23.976 pictures a second in all but 8 dialogues.
FRAME_RATE = 24000 / 1001


@dataclass(frozen=True, kw_only=True)
class PublishedSplit:
    """One split of MELD as published.

    rows, dialogues:      of its CSV
    gap_dialogues, gap_ids: dialogues in which utterance ids are left out, and how many ids
    zero_windows:         rows whose StartTime is their EndTime
    emotions, sentiments: rows by label
    missing, unreadable:  annotated clips that no copy of the archive has
    unannotated:          clips that no row tells of; "safe to ignore", say the authors
    num_overlong:         rows whose own time stamps are more than 20 s apart
    num_too_short:        rows whose own time stamps leave room for less than 16 pictures
    num_length_differs:   plain clips more than 0.5 s longer or shorter than their time stamps say;
                          on test almost all are of the 132 that have a corrected cut
    """

    rows: int
    dialogues: int
    gap_dialogues: int
    gap_ids: int
    zero_windows: frozenset[tuple[int, int]]
    emotions: dict[str, int]
    sentiments: dict[str, int]
    missing: frozenset[tuple[int, int]]
    unreadable: frozenset[tuple[int, int]]
    unannotated: frozenset[tuple[int, int]]
    num_overlong: int
    num_too_short: int
    num_length_differs: int
    keys_hash: str


_NONE: frozenset[tuple[int, int]] = frozenset()

PUBLISHED: dict[Split, PublishedSplit] = {
    "train": PublishedSplit(
        rows=9989,
        dialogues=1038,
        gap_dialogues=72,
        gap_ids=100,
        zero_windows=_NONE,
        emotions={
            "neutral": 4710, "surprise": 1205, "fear": 268, "sadness": 683,
            "joy": 1743, "disgust": 271, "anger": 1109,
        },
        sentiments={"neutral": 4710, "positive": 2334, "negative": 2945},
        missing=_NONE,
        unreadable=frozenset({(125, 3)}),
        unannotated=_NONE,
        num_overlong=7,
        num_too_short=467,
        num_length_differs=2,
        keys_hash="c3f0d1e99da63d5362af1c41279e2b8441a54fd12dbd0096521b9b812ff595a8",
    ),
    "dev": PublishedSplit(
        rows=1109,
        dialogues=114,
        gap_dialogues=2,
        gap_ids=4,
        zero_windows=_NONE,
        emotions={
            "neutral": 470, "surprise": 150, "fear": 40, "sadness": 111,
            "joy": 163, "disgust": 22, "anger": 153,
        },
        sentiments={"neutral": 470, "positive": 233, "negative": 406},
        missing=frozenset({(110, 7)}),
        unreadable=_NONE,
        unannotated=frozenset({(49, 4), (49, 5), (66, 9), (66, 10)}),
        num_overlong=2,
        num_too_short=50,
        num_length_differs=0,
        keys_hash="4e8c7c8c6124f3435bb615f9bf577bc0ee412156a0ca94f10f876eed87b6291a",
    ),
    "test": PublishedSplit(
        rows=2610,
        dialogues=280,
        gap_dialogues=2,
        gap_ids=5,
        zero_windows=frozenset({(155, 3)}),
        emotions={
            "neutral": 1256, "surprise": 281, "fear": 50, "sadness": 208,
            "joy": 402, "disgust": 68, "anger": 345,
        },
        sentiments={"neutral": 1256, "positive": 521, "negative": 833},
        missing=_NONE,
        unreadable=_NONE,
        unannotated=frozenset({(93, 5), (93, 6), (93, 7), (108, 1), (108, 2)}),
        num_overlong=2,
        num_too_short=148,
        num_length_differs=113,
        keys_hash="42f2919290fd132b1020aadc56d453c9419471d343f9cfde334f94da62057486",
    ),
}  # fmt: skip


def hash_keys(keys: Iterable[ClipKey]) -> str:
    """SHA-256 of which dialogues and utterances there are, in whatever order."""
    pairs = sorted((key.dialogue_id, key.utterance_id) for key in keys)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def recognise(keys: Iterable[ClipKey]) -> Split | None:
    """The split of MELD that has exactly these rows; None for any other corpus, for which the
    published facts do not hold."""
    found = hash_keys(keys)
    return next((split for split in SPLITS if PUBLISHED[split].keys_hash == found), None)
