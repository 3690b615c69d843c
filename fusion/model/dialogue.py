"""Dialogue context: adds the features of neighbouring utterances to each utterance."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fusion.model.dropout import Dropout
from fusion.model.turns import place_turns
from pipeline.schema import ClipKey


class Turns(NamedTuple):
    """`TurnPlaces` as tensors; all int64 [rows]."""

    dialogue: Tensor
    position: Tensor
    speaker: Tensor

    @classmethod
    def of(cls, keys: Sequence[ClipKey], speaker: Sequence[str]) -> "Turns":
        return cls(*map(torch.from_numpy, place_turns(keys, speaker)))

    def pick(self, index: Tensor) -> "Turns":
        return Turns(*(values[index] for values in self))

    def to(self, device: torch.device) -> "Turns":
        return Turns(*(values.to(device) for values in self))


class DialogueContext(nn.Module):
    """Adds to each row a weighted sum over the earlier rows of its dialogue.

    How much each of them counts is learned from two things alone: how many turns lie between, and
    whether the speaker is the same; and what they say passes a narrow layer. On MELD's dev split
    attention that also compares what was said did worse the wider it was (LOG.md): ten thousand
    utterances are too few for that. Starts as a no-op. A batch must hold whole dialogues.

    future: rows may also see those said after them
    """

    reach = 8  # turns farther apart than this count as so far
    narrow = 32

    def __init__(self, width: int, *, future: bool, dropout: float) -> None:
        super().__init__()
        self.future = future
        self.norm = nn.LayerNorm(width)
        self.value = nn.Linear(width, self.narrow)
        self.bias = nn.Parameter(torch.zeros(2, 2 * self.reach + 1))  # [same speaker, turns apart]
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(self.narrow, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor, turns: Turns) -> Tensor:
        """[batch, width] -> the same"""
        scores = self._bias_of(turns)  # [batch, batch]: down who looks, across at whom
        weights = scores.masked_fill(~self.sees(turns), -torch.inf).softmax(dim=1)
        found = nn.functional.gelu(weights @ self.value(self.norm(hidden)))  # [batch, narrow]
        return hidden + self.out(self.dropout(found))

    def sees(self, turns: Turns) -> Tensor:
        """bool [batch, batch]: the same dialogue, and said before (or at all, with `future`)."""
        same = turns.dialogue[:, None] == turns.dialogue[None]
        return same if self.future else same & (turns.position[:, None] >= turns.position[None])

    def _bias_of(self, turns: Turns) -> Tensor:
        apart = turns.position[:, None] - turns.position[None]
        place = apart.clamp(-self.reach, self.reach) + self.reach
        same_speaker = turns.speaker[:, None] == turns.speaker[None]
        return torch.where(same_speaker, self.bias[1][place], self.bias[0][place])
