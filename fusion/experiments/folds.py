"""The folds of a cross-validation: whole dialogues or speakers, labels spread evenly."""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut, StratifiedGroupKFold

from fusion.data.split import FusionData
from fusion.labels import Labels
from pipeline.errors import InputError, UsageError

_CHOOSING = 8  # one in so many dialogues of a training's own chooses its epoch

Group = Literal["dialogue", "speaker"]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Row numbers of one fold: trained on, choosing the epoch, measured. No dialogue is in two; of
    folds of speakers no speaker is both measured and in one of the others, whose dialogues may be
    the same."""

    train: NDArray[np.int64]
    choose: NDArray[np.int64]
    measure: NDArray[np.int64]


def group_numbers(data: FusionData, group: Group) -> NDArray[np.int64]:
    """int64 [rows]. Raises InputError where a row is of no speaker and speakers are asked for."""
    if group == "dialogue":
        return data.turns.dialogue.numpy()
    nobody = [key for key, name in zip(data.keys, data.speaker, strict=True) if not name]
    if nobody:
        raise InputError(
            f"--group speaker: {len(nobody)} of {len(data)} rows name no speaker, such as "
            f"{nobody[0]}; fill the column Speaker, or leave out whole dialogues"
        )
    return data.turns.speaker.numpy()


def make_folds(data: FusionData, folds: int, *, seed: int, group: Group = "dialogue") -> list[Fold]:
    """Whole groups, emotions spread evenly.

    What chooses an epoch are whole dialogues of the training's own rows or, where these are all of
    one dialogue, whole speakers.

    Raises UsageError for more folds than groups, InputError where a fold leaves too little.
    """
    groups, dialogue = group_numbers(data, group), data.turns.dialogue.numpy()
    there = len(np.unique(groups))
    if folds > there:
        most = f"at most --folds {there}" if there > 1 else "nothing can be left out"
        raise UsageError(
            f"--folds {folds}: there {'is' if there == 1 else 'are'} {there} {group}"
            f"{'' if there == 1 else 's'}, and each is whole in one fold: {most}"
        )
    labels = data.emotion.numpy()
    made = []
    # Dealing spreads labels, and may leave one fold two groups and another none for that.
    if folds == there:
        dealt = list(LeaveOneGroupOut().split(groups, groups=groups))
    else:
        dealt = _split(labels, groups, folds, seed)
    for number, (rest, measure) in enumerate(dealt, start=1):
        kept = dialogue[rest] if len(np.unique(dialogue[rest])) > 1 else groups[rest]
        among = min(_CHOOSING, len(np.unique(kept)))
        if among < 2:
            raise InputError(
                f"fold {number} of {folds} leaves one dialogue, which cannot both train and choose "
                "the epoch; ask for more --folds, or take more dialogues"
            )
        train, choose = _split(labels[rest], kept, among, seed)[0]
        fold = Fold(train=rest[train], choose=rest[choose], measure=measure)
        _check_fold(data, fold, f"fold {number} of {folds}")
        made.append(fold)
    return made


def _check_fold(data: FusionData, fold: Fold, name: str) -> None:
    """Raises InputError where there is nothing to learn from, or nothing to choose by."""
    train = data.take(fold.train)
    for column, modality in enumerate(train.modalities):
        if not train.present[:, column].any():
            raise InputError(
                f"{name}: {modality} is absent in all {len(train)} rows to train on; leave it out "
                "with --modalities, or ask for other --folds"
            )
    for part, use in ((train, "train on"), (data.take(fold.choose), "choose the epoch by")):
        if not part.has_labels:
            raise InputError(
                f"{name}: none of the {len(part)} rows to {use} has a label; ask for other --folds"
            )


def _split(
    labels: Labels, groups: Labels, folds: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """[rows] twice -> (the others, its own) rows of each fold; none is without rows."""
    if np.unique(labels, return_counts=True)[1].max() < folds:
        labels = np.zeros_like(labels)  # no class has enough rows to be spread
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # It warns of a class with fewer rows than there are folds: rare emotions are that.
        warnings.simplefilter("ignore", UserWarning)
        made = list(splitter.split(np.zeros(len(labels)), labels, groups))
    if all(len(own) for _, own in made):
        return made
    # Where groups are of very different sizes it may leave a fold empty; sizes alone do not.
    return list(GroupKFold(folds).split(groups, groups=groups))
