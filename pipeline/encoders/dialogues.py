"""Text encoders that read utterances in their dialogue: `--context dialogue [--future]`.

Each window of a dialogue (`windows.py`) is encoded once in a batch, however many of its utterances
the batch has; those that share one belong into one batch. Without `--future` an utterance's tokens
see those of earlier utterances and of its own: a mask of blocks, down who looks, across at whom.

               Joey: Hey!   Monica: Hi   Joey: What
    Joey: Hey!      x
    Monica: Hi      x            x
    Joey: What      x            x            x
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.encoder import GraphSource
from pipeline.encoders.text import TextEncoder, Tokeniser
from pipeline.encoders.tokens import is_visible, tell_unread
from pipeline.encoders.windows import (
    WINDOW_TOKENS,
    Frame,
    SaidTokens,
    UtteranceTokens,
    Window,
    cut_dialogue,
)
from pipeline.errors import ClipError, UsageError
from pipeline.recipe import DecodeConfig, DialogueReading, Precision
from pipeline.schema import DecodedClip, Said

# Encoded at once; those of like length share a part, so that little is padded.
WINDOWS_PER_PART = 8


@dataclass(frozen=True)
class WindowPart:
    """Some windows of a batch, the shortest first.

    ids: int64, mask: bool, turns: int64, each [windows, tokens]
    rows: int64 [rows]: the rows of the batch that have tokens here
    pool: float32 [rows, windows x tokens]: how much each token counts for each of these rows
    """

    ids: Tensor
    mask: Tensor
    turns: Tensor
    rows: Tensor
    pool: Tensor

    def to(self, device: torch.device) -> "WindowPart":
        return WindowPart(*(value.to(device) for value in vars(self).values()))


@dataclass(frozen=True)
class DialogueBatch:
    rows: int
    parts: tuple[WindowPart, ...]

    def to(self, device: torch.device) -> "DialogueBatch":
        return DialogueBatch(self.rows, tuple(part.to(device) for part in self.parts))


class DialogueTokeniser:
    """Raises as `Tokeniser`, and ValueError where the tokenizer cannot say which part of a text a
    token is of."""

    most_rows: int | None = None

    def __init__(self, folder: Path) -> None:
        plain = Tokeniser(folder)
        if not plain.tokenizer.is_fast:
            raise ValueError("--context dialogue needs a tokenizer with a tokenizer.json")
        self.tokenizer = plain.tokenizer
        self.pad_id, self.mask_id, self.special_ids = plain.pad_id, plain.mask_id, plain.special_ids
        self.gives_types = plain.gives_types
        self.max_tokens = min(WINDOW_TOKENS, self.tokenizer.model_max_length)
        first, separator = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        self.frame = Frame(
            first=() if first is None else (first,),
            after_each=() if separator is None else (separator,),
            size=self.max_tokens,
        )

    def prepare(self, clips: Sequence[DecodedClip]) -> list[UtteranceTokens | None]:
        """An utterance without its dialogue is a dialogue of its own."""
        places = []
        for utterance in (clip.utterance for clip in clips):
            alone = (Said(utterance.speaker, utterance.text),)
            places.append((utterance.dialogue or alone, utterance.turn))
        cut = {
            dialogue: cut_dialogue(self._tokenise(dialogue), self.frame)
            for dialogue in dict.fromkeys(dialogue for dialogue, _ in places)
        }
        return [cut[dialogue][turn] for dialogue, turn in places]

    def _tokenise(self, dialogue: Sequence[Said]) -> list[SaidTokens]:
        """Whose text nobody can see or the tokenizer does not know has no token of its own."""
        before = [f"{said.speaker}: " if said.speaker else "" for said in dialogue]
        encoded = self.tokenizer(
            [name + said.text for name, said in zip(before, dialogue, strict=True)],
            add_special_tokens=False,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        found = []
        for said, name, ids, offsets in zip(
            dialogue, before, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            own = sum(end <= len(name) for _, end in offsets)
            known = any(token not in self.special_ids for token in ids[own:])
            is_read = is_visible(said.text) and known
            found.append(SaidTokens(tuple(ids), own if is_read else len(ids)))
        return found

    def shortfall(self, item: UtteranceTokens) -> ClipError | None:
        return tell_unread(item.unread)

    def length(self, item: UtteranceTokens) -> int:
        return sum(len(passage.window.ids) for passage in item.passages)

    def group(self, item: UtteranceTokens) -> Hashable:
        """Rows of one group are encoded for the price of one, if they are in one batch."""
        return item.passages[0].window

    def augment(
        self, item: UtteranceTokens, config: AugmentConfig, generator: torch.Generator
    ) -> UtteranceTokens:
        """Some tokens become the mask token. With a generator in the same state, all utterances of
        a window get the same one."""
        if self.mask_id is None:
            return item
        passages = []
        for passage in item.passages:
            ids = passage.window.ids
            hidden = (torch.rand(len(ids), generator=generator) < config.token_dropout).tolist()
            changed = tuple(
                self.mask_id if hide and token not in self.special_ids else token
                for token, hide in zip(ids, hidden, strict=True)
            )
            passages.append(replace(passage, window=replace(passage.window, ids=changed)))
        return replace(item, passages=tuple(passages))

    def collate(self, items: Sequence[UtteranceTokens]) -> DialogueBatch:
        windows = dict.fromkeys(p.window for item in items for p in item.passages)
        ordered = sorted(windows, key=lambda window: len(window.ids))
        parts = [
            self._part(items, ordered[start : start + WINDOWS_PER_PART])
            for start in range(0, len(ordered), WINDOWS_PER_PART)
        ]
        return DialogueBatch(len(items), tuple(parts))

    def _part(self, items: Sequence[UtteranceTokens], windows: Sequence[Window]) -> WindowPart:
        longest = len(windows[-1].ids)
        shape = (len(windows), longest)
        ids = np.full(shape, self.pad_id, np.int64)
        mask = np.zeros(shape, np.bool_)
        turns = np.full(shape, longest, np.int64)  # after all others: they see what is there
        for row, window in enumerate(windows):
            length = len(window.ids)
            ids[row, :length], turns[row, :length] = window.ids, window.turns
            mask[row, :length] = True
        place = {window: row for row, window in enumerate(windows)}
        here = [
            row for row, item in enumerate(items) if any(p.window in place for p in item.passages)
        ]
        pool = np.zeros((len(here), *shape), np.float32)
        for number, row in enumerate(here):
            for passage in items[row].passages:
                if passage.window in place:
                    pooled = pool[number, place[passage.window]]
                    # Added: of a word said over and over, two windows are the same.
                    pooled[passage.start : passage.end] += 1 / items[row].num_tokens
        return WindowPart(
            ids=torch.from_numpy(ids),
            mask=torch.from_numpy(mask),
            turns=torch.from_numpy(turns),
            rows=torch.tensor(here, dtype=torch.int64),
            pool=torch.from_numpy(pool.reshape(len(here), -1)),
        )


class DialogueEncoder(TextEncoder):
    """The mean over an utterance's own tokens, of each layer asked for, read in its dialogue.

    forward: DialogueBatch -> float32 [rows, layers, dim]
    """

    batch_size = None  # a dialogue's utterances belong together; parts keep the memory small

    def __init__(
        self,
        folder: Path,
        layers: Sequence[int],
        precision: Precision,
        *,
        pretrained: bool,
        reading: DialogueReading,
    ) -> None:
        super().__init__(folder, layers, precision, pretrained=pretrained, reads_context=False)
        self.preparation: Any = DialogueTokeniser(folder)
        self.reading = reading
        if reading == "past":
            self._check_sees_the_past_alone()

    def forward(self, batch: DialogueBatch) -> Tensor:  # type: ignore[override]
        device = batch.parts[0].ids.device
        features = torch.zeros(batch.rows, len(self.layers), self.dim, device=device)
        for part in batch.parts:
            features = features.index_add(0, part.rows, self._encode(part))
        return features

    def _encode(self, part: WindowPart) -> Tensor:
        """float32 [rows of the part, layers, dim]"""
        inputs = {"input_ids": part.ids, "attention_mask": self._mask_of(part)}
        if self.preparation.gives_types:
            inputs["token_type_ids"] = torch.zeros_like(part.ids)
        hidden = self.model(**inputs, output_hidden_states=True).hidden_states
        with torch.autocast(part.ids.device.type, enabled=False):  # a mean is one in float32
            means = [part.pool @ hidden[i].float().flatten(0, 1) for i in self.layers]
        return torch.stack(means, dim=1)

    def _mask_of(self, part: WindowPart) -> Tensor:
        if self.reading == "whole":
            return part.mask.long()
        earlier = part.turns[:, :, None] >= part.turns[:, None, :]
        return (earlier & part.mask[:, None, :]).unsqueeze(1)  # [windows, 1, tokens, tokens]

    @torch.no_grad()
    def _check_sees_the_past_alone(self) -> None:
        """Not every network heeds a mask of blocks. Raises UsageError."""
        said = [Said("", "one"), Said("", "two")]
        tokens = self.preparation._tokenise(said)
        seen = []
        self.eval()
        for second in tokens:
            items = cut_dialogue([tokens[0], second], self.preparation.frame)
            batch = self.preparation.collate([item for item in items if item is not None])
            try:
                seen.append(self.forward(batch)[0])
            except (ValueError, RuntimeError, TypeError) as error:
                raise UsageError(
                    "--context dialogue: this network cannot be kept from reading ahead "
                    f"({str(error).splitlines()[0]}); add --future, or take another encoder"
                ) from error
        if not torch.allclose(seen[0], seen[1], atol=1e-5):
            raise UsageError(
                "--context dialogue: this network reads ahead whatever it is told; add --future, "
                "or take another encoder"
            )

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        """Rows of a batch mostly share their windows; a window holds about nine utterances."""
        return super().activation_bytes(-(-rows // 8), longest, value_bytes)

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        raise UsageError(
            "ONNX graphs: the text encoder reads whole dialogues (--context dialogue), and graphs "
            "read utterances one by one; export without --onnx and --quantise int8"
        )
