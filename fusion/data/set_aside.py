"""Dialogues of train that are held out as dev if a corpus has no dev split.

Own recordings and many corpora come in two parts or in one. Something has to choose the epoch and
to fit the temperatures, and it must not be what the model learns from: so whole dialogues of train
are set aside for it, and a run remembers which.

Which they are follows from train's dialogues, their labels and the share alone, not from a seed
of training: runs of other seeds, modalities or fusions have the same dev and can be compared on it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fusion.labels import UNLABELLED
from pipeline.errors import InputError, MismatchError
from pipeline.schema import EMOTIONS, SENTIMENTS
from pipeline.system.json_values import to_values

if TYPE_CHECKING:
    from fusion.data.split import FusionData

DEFAULT_SHARE = 0.1
_DRAWS = 100  # sets of dialogues that are tried; the best is taken


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """share: of train's dialogues, as configured

    of:        how many dialogues train has, these included
    dialogues: ids in train, ascending
    content:   SHA-256 of keys and texts of their rows
    """

    share: float
    of: int
    dialogues: tuple[int, ...]
    content: str

    def __post_init__(self) -> None:
        check_share(self.share)
        if any(type(number) is not int for number in (self.of, *self.dialogues)):
            raise ValueError(f"dialogues that were set aside are numbers, not {self.dialogues}")
        if not isinstance(self.content, str):
            raise ValueError(f"the content of what was set aside is a hash, not {self.content!r}")
        if not 0 < len(set(self.dialogues)) == len(self.dialogues) < self.of:
            raise ValueError(
                f"{len(self.dialogues)} dialogues cannot be set aside from {self.of} of train"
            )

    def __str__(self) -> str:
        return f"dev: {len(self.dialogues)} of the {self.of} dialogues of train, held out"

    def part(self, train: "FusionData", split: Literal["train", "dev"]) -> "FusionData":
        """The part of train to train on, or the part that was held out. Keys stay as they are: a
        row of train is one also here. Raises as `rows`."""
        return replace(train.take(self.rows(train, split)), split=split)

    def rows(self, train: "FusionData", split: Literal["train", "dev"]) -> NDArray[np.int64]:
        """The numbers of these rows in all of train, ascending.

        Raises MismatchError where train has not all of the dialogues, or they have other rows.
        """
        there = np.array([key.dialogue_id for key in train.keys], dtype=np.int64)
        missing = sorted(set(self.dialogues) - set(there.tolist()))
        if missing:
            raise MismatchError(
                f"the run set aside {len(self.dialogues)} dialogues of train as its dev, and these "
                f"features of train have no dialogue {missing[0]}; take features of the "
                "annotations that it was trained on, or train again"
            )
        aside = np.isin(there, self.dialogues)
        if self.content != _hash_rows(train, np.flatnonzero(aside)):
            raise MismatchError(
                f"the run set aside {len(self.dialogues)} dialogues of train as its dev, and these "
                "features of train have other rows under their numbers; take features of the "
                "annotations that it was trained on, or train again"
            )
        return np.flatnonzero(aside if split == "dev" else ~aside)

    def to_dict(self) -> dict[str, Any]:
        return to_values(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SetAside":
        """Raises KeyError, TypeError or ValueError where `values` is no such thing."""
        return cls(
            share=values["share"],
            of=values["of"],
            dialogues=tuple(values["dialogues"]),
            content=values["content"],
        )


def _hash_rows(train: "FusionData", rows: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for key, text in sorted((train.keys[row], train.text[row]) for row in rows.tolist()):
        values = [key.dialogue_id, key.utterance_id, text]
        digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def check_share(share: float) -> None:
    """Raises ValueError."""
    if type(share) is not float or not 0 < share < 1:
        raise ValueError(f"dev_share must be above 0 and below 1, not {share!r}")


def choose_dialogues(
    train: "FusionData",
    share: float,
    *,
    asked: str = "there is no dev",
    instead: str = "extract a dev split",
) -> SetAside:
    """About `share` of train's dialogues that have labels, at least one, in which labels are spread
    as in all of train.

    A label that occurs in two dialogues or more is on both sides wherever that is possible, for
    which more dialogues than the share may be taken; one that a single dialogue has stays in train,
    where it can be learned, unless that keeps another from being on both sides. Dialogues without a
    label stay there as well: they could choose nothing.

    asked, instead: why they are held out, and what else could be done; for the error

    Raises InputError where fewer than two dialogues have labels.
    """
    ids = np.array([key.dialogue_id for key in train.keys], dtype=np.int64)
    dialogues, number = np.unique(ids, return_inverse=True)
    counts = _count_labels(train, number, len(dialogues))  # [dialogues, labels]
    labelled = counts.any(axis=1)
    if labelled.sum() < 2:
        raise InputError(
            f"{asked}: train has {len(dialogues)} dialogue{'s' if len(dialogues) != 1 else ''}, "
            f"{'one' if labelled.any() else 'none'} with labels, and the epoch must be chosen on "
            "other dialogues than those that are trained on; number the parts of the recording as "
            f"dialogues (Dialogue_ID) and extract again, or {instead}"
        )
    counts, candidates = counts[labelled], dialogues[labelled]
    wanted = min(max(1, round(share * len(candidates))), len(candidates) - 1)
    generator = np.random.default_rng(0)
    draws = [_draw(counts > 0, wanted, generator) for _ in range(_DRAWS)]
    chosen = min(draws, key=lambda draw: _rank(counts, draw, wanted))
    taken = candidates[chosen]
    return SetAside(
        share=share,
        of=len(dialogues),
        dialogues=tuple(sorted(taken.tolist())),
        content=_hash_rows(train, np.flatnonzero(np.isin(ids, taken))),
    )


def _count_labels(
    train: "FusionData", dialogue: NDArray[np.int64], num_dialogues: int
) -> NDArray[np.int64]:
    """[dialogues, emotions and sentiments]: rows that have the label."""
    columns = []
    for labels, names in ((train.emotion, EMOTIONS), (train.sentiment, SENTIMENTS)):
        of_row = labels.numpy()
        known = of_row != UNLABELLED
        cell = dialogue[known] * len(names) + of_row[known]
        counts = np.bincount(cell, minlength=num_dialogues * len(names))
        columns.append(counts.reshape(num_dialogues, len(names)))
    return np.concatenate(columns, axis=1)


def _draw(has: NDArray[np.bool_], wanted: int, generator: np.random.Generator) -> NDArray[np.bool_]:
    """has [dialogues, labels] -> bool [dialogues]: `wanted` of them in a random order, but first
    those that bring a label which several dialogues have; none that would take such a label from
    the rest, unless each would."""
    order = generator.permutation(len(has))
    holders = has.sum(axis=0)
    left = holders.copy()  # dialogues of the rest that have each label
    chosen = np.zeros(len(has), np.bool_)
    several = holders > 1
    # bool [dialogues]: has a label that no other has
    only_one: NDArray[np.bool_] = np.asarray(has[:, ~several].any(axis=1))

    def may_go(dialogue: int) -> bool:
        return not chosen[dialogue] and bool((left[has[dialogue] & several] > 1).all())

    def take(dialogue: int) -> None:
        chosen[dialogue] = True
        left[:] -= has[dialogue]

    for label in np.lexsort((generator.random(len(holders)), holders)):  # the rarest first
        if several[label] and left[label] == holders[label]:
            bringing = [each for each in order if has[each, label] and may_go(each)]
            if bringing:
                take(min(bringing, key=lambda each: only_one[each]))
    for dialogue in order:
        if chosen.sum() >= wanted:
            break
        if may_go(dialogue) and not only_one[dialogue]:
            take(dialogue)
    if not chosen.any():
        take(order[0])
    return chosen


def _rank(
    counts: NDArray[np.int64], chosen: NDArray[np.bool_], wanted: int
) -> tuple[int, int, int, float]:
    """The lower the better: labels that could be on both sides and are not, labels that train
    loses, dialogues too many or too few, and how far the labels' shares are from those of all."""
    has = counts > 0
    here, there = has[chosen].any(axis=0), has[~chosen].any(axis=0)
    several = has.sum(axis=0) > 1
    of_all, of_chosen = counts.sum(axis=0), counts[chosen].sum(axis=0)
    distance = np.abs(of_chosen / of_chosen.sum() - of_all / of_all.sum()).sum()
    return (
        int((several & ~(here & there)).sum()),
        int((here & ~there).sum()),
        abs(int(chosen.sum()) - wanted),
        float(distance),
    )
