"""The tokens of a sentence, as a text encoder reads them; without PyTorch, so that every runtime
reads alike.

A text that is longer than one input of the encoder is read in windows that overlap. Each of its
tokens counts once, in the window that shows most of what is said around it:

    tokens   0 ............................................ n
    windows  |=========:~~|     = pooled here, ~ read here and pooled in the neighbour
                    |~~:======:~~|
                           |~~:==========|
"""

import itertools
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ClipError
from pipeline.schema import DecodedClip

MAX_TOKENS = 128  # MELD's longest utterance has 90-odd; nothing is padded up to this
MAX_TOKENS_WITH_CONTEXT = 256
# Two neighbouring windows share at least so many tokens: 16 beside each that is pooled.
OVERLAP = 32
# Of one text, about 6,000 words or 40 minutes of speech; what follows is left out and recorded.
MAX_TEXT_TOKENS = 8192

# Controls, format characters, surrogates, marks without a letter, white space. Not the unassigned:
# Unicode may have given them a shape since.
_UNSEEN_CATEGORIES = frozenset("Cc Cf Cs Mn Me Zl Zp Zs".split())
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # Hangul fillers, Braille blank


@dataclass(frozen=True)
class Tokens:
    """One sentence, tokenised: what the encoder reads at once, or the first window of it.

    ids:    the whole input, special tokens and context with it
    types:  segment of each token: 0 the context (or all there is), 1 the sentence after it
    pooled: which tokens the sentence's vector is the mean of, together with those of `more`
    more:   the windows that follow, of a sentence that is too long for one
    unread: tokens at its end that are in no window
    """

    ids: list[int]
    types: list[int]
    pooled: list[bool]
    more: tuple["Tokens", ...] = ()
    unread: int = 0


@dataclass(frozen=True)
class PaddedTokens:
    """Windows padded to the longest: ids, types int64, mask, pooled bool, [windows, tokens].

    First the first windows of all sentences, in their order, then those that follow.
    following: how many follow of each sentence
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    mask: NDArray[np.bool_]
    pooled: NDArray[np.bool_]
    following: tuple[int, ...]

    @classmethod
    def pad(cls, sentences: Sequence[Tokens], pad_id: int) -> "PaddedTokens":
        windows = [*sentences, *(window for first in sentences for window in first.more)]
        shape = (len(windows), max(len(tokens.ids) for tokens in windows))
        ids, types = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
        mask, pooled = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for row, tokens in enumerate(windows):
            length = len(tokens.ids)
            ids[row, :length] = tokens.ids
            types[row, :length] = tokens.types
            pooled[row, :length] = tokens.pooled
            mask[row, :length] = True
        return cls(ids, types, mask, pooled, tuple(len(first.more) for first in sentences))


Tokenise = Callable[[Sequence[str], Sequence[str] | None], list[Tokens]]


def prepare_texts(
    clips: Sequence[DecodedClip],
    tokenise: Tokenise,
    *,
    reads_context: bool,
    special_ids: Collection[int],
) -> list[Tokens | None]:
    """In the order of `clips`; None where there is nothing to read. What was said before is no
    substitute for a sentence: without one there is no item.

    tokenise: sentences, and what was said before each of them (None: no context) -> Tokens
    """
    is_there = [is_visible(clip.utterance.text) for clip in clips]
    said = [clip.utterance for clip, there in zip(clips, is_there, strict=True) if there]
    if not said:
        return [None] * len(clips)
    contexts = [row.context for row in said] if reads_context else None
    tokens = iter(tokenise([row.text for row in said], contexts))
    items = [next(tokens) if there else None for there in is_there]
    return [item if item is not None and _is_read(item, special_ids) else None for item in items]


def _is_read(tokens: Tokens, special_ids: Collection[int]) -> bool:
    """Whether a token of the sentence's own is there that the encoder knows: special tokens, the
    one for unknown words among them, are the same whatever is said."""
    return any(
        pooled and token not in special_ids
        for window in (tokens, *tokens.more)
        for token, pooled in zip(window.ids, window.pooled, strict=True)
    )


def tell_unread(unread: int) -> ClipError | None:
    """Describes the part of a sentence that is in no window; None if there is none.

    unread: tokens of it
    """
    if not unread:
        return None
    num_tokens = MAX_TEXT_TOKENS + unread
    return ClipError(
        "text_cut", f"of {num_tokens:,} tokens only the first {MAX_TEXT_TOKENS:,} are read"
    )


def is_visible(text: str) -> bool:
    """Whether any character of it is to be seen. A tokenizer of bytes makes tokens of every one."""
    return any(
        unicodedata.category(char) not in _UNSEEN_CATEGORIES and char not in _BLANK_LETTERS
        for char in text
    )


def take_whole(ids: list[int], special: list[int]) -> Tokens:
    """All is pooled, special tokens too. `special`: 1 for a token that the tokenizer added."""
    words = [position for position, added in enumerate(special) if not added]
    room = MAX_TOKENS - (len(ids) - len(words))
    if len(words) <= room:
        return Tokens(ids=ids, types=[0] * len(ids), pooled=[True] * len(ids))
    return _in_windows(
        ids[: words[0]],
        ids[words[0] : words[-1] + 1],
        ids[words[-1] + 1 :],
        room=room,
        segment=0,
        pools_special=True,
    )


def take_second_of_pair(ids: list[int], parts: list[int | None]) -> Tokens:
    """The sentence is pooled; of the context the oldest is left out, as far as both do not fit
    into MAX_TOKENS_WITH_CONTEXT. `parts`: 0 in the context, 1 in the sentence, None on special
    tokens."""
    excess = max(len(ids) - MAX_TOKENS_WITH_CONTEXT, 0)
    context = [position for position, part in enumerate(parts) if part == 0]
    if excess > len(context):  # the sentence alone is too long
        sentence = [position for position, part in enumerate(parts) if part == 1]
        special = [position for position, part in enumerate(parts) if part is None]
        return _in_windows(
            [ids[position] for position in special if position < sentence[0]],
            [ids[position] for position in sentence],
            [ids[position] for position in special if position > sentence[0]],
            room=MAX_TOKENS_WITH_CONTEXT - len(special),
            segment=1,
            pools_special=False,
        )
    cut = set(context[:excess])
    kept = [position for position in range(len(ids)) if position not in cut]
    second = [parts[position] == 1 for position in kept]
    first = second.index(True) if any(second) else len(kept)
    types = [int(position >= first) for position in range(len(kept))]
    return Tokens(ids=[ids[position] for position in kept], types=types, pooled=second)


def _in_windows(
    before: list[int],
    words: list[int],
    after: list[int],
    *,
    room: int,
    segment: int,
    pools_special: bool,
) -> Tokens:
    """`words` in windows of `room`, each between the special tokens `before` and `after`. Those are
    pooled, if at all, once as well: in the first and in the last window."""
    read = words[:MAX_TEXT_TOKENS]
    windows = [
        Tokens(
            ids=[*before, *read[start : start + room], *after],
            types=[0] * len(before) + [segment] * (room + len(after)),
            pooled=[
                *[pools_special and start == 0] * len(before),
                *(first <= position < end for position in range(start, start + room)),
                *[pools_special and end == len(read)] * len(after),
            ],
        )
        for start, first, end in spread(len(read), room)
    ]
    return replace(windows[0], more=tuple(windows[1:]), unread=len(words) - len(read))


def spread(length: int, room: int) -> list[tuple[int, int, int]]:
    """Windows of `room` over more tokens than that, as few as overlap by OVERLAP and evenly spread:
    (start, first token pooled, the one after the last)."""
    num_steps = -(-(length - room) // (room - OVERLAP))
    starts = [step * (length - room) // num_steps for step in range(num_steps + 1)]
    middles = [(start + room + later) // 2 for start, later in itertools.pairwise(starts)]
    return list(zip(starts, [0, *middles], [*middles, length], strict=True))
