"""Where utterances stand in their dialogues, for every runtime: without PyTorch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import ClipKey


class TurnPlaces(NamedTuple):
    """The place of each row in its dialogue; all int64 [rows].

    dialogue: the dialogue's number; rows of different dialogues never see each other
    position: 0 for the dialogue's first utterance, without gaps
    speaker:  the speaker's number; every unnamed speaker has an own one
    """

    dialogue: NDArray[np.int64]
    position: NDArray[np.int64]
    speaker: NDArray[np.int64]


def place_turns(keys: Sequence[ClipKey], speaker: Sequence[str]) -> TurnPlaces:
    dialogues: dict[tuple[str, int], list[int]] = {}
    for row, key in enumerate(keys):
        dialogues.setdefault((key.split, key.dialogue_id), []).append(row)
    dialogue = np.zeros(len(keys), np.int64)
    position = np.zeros(len(keys), np.int64)
    for number, rows in enumerate(dialogues.values()):
        rows.sort(key=lambda row: keys[row].utterance_id)
        dialogue[rows] = number
        position[rows] = np.arange(len(rows))
    numbers: dict[str | int, int] = {}
    # In a dialogue the next to speak is mostly another: the better guess where nobody says.
    speakers = [numbers.setdefault(name or row, len(numbers)) for row, name in enumerate(speaker)]
    return TurnPlaces(dialogue, position, np.array(speakers, np.int64))
