"""Windows of a dialogue, as a text encoder reads them; without PyTorch, so that every runtime reads
alike.

A dialogue is read once, each utterance in what is said around it:

    [CLS] Joey: Hey! [SEP] Monica: Hi, Joey. [SEP] Joey: What is it? [SEP]
                ~~~~               ~~~~~~~~~             ~~~~~~~~~~~         = its own tokens

An utterance's features are the mean over its own tokens. A dialogue that is longer than a window is
cut into windows, from its start on, and each of them begins with the utterances before it again,
as far as they fit into `REREAD` tokens. So where windows are cut follows from what was said before
alone. An utterance that is longer than a window is read alone, as `tokens.py` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from pipeline.encoders.tokens import MAX_TEXT_TOKENS, spread

WINDOW_TOKENS = 320  # of MELD's train split 990 of 1,038 dialogues are no longer
REREAD = 100


@dataclass(frozen=True)
class SaidTokens:
    """An utterance as it stands in a window: its speaker, then its own tokens from `own` on."""

    ids: tuple[int, ...]
    own: int


@dataclass(frozen=True)
class Window:
    """ids: the whole input of the encoder, special tokens too

    turns: the utterance of the window that each token belongs to, counted from 0; -1 for what
        stands before all
    """

    ids: tuple[int, ...]
    turns: tuple[int, ...]


@dataclass(frozen=True)
class Passage:
    """Where an utterance's own tokens are, or a part of them: window.ids[start:end]."""

    window: Window
    start: int
    end: int


@dataclass(frozen=True)
class UtteranceTokens:
    """passages: one, or more of an utterance that is longer than a window

    unread: tokens at its end that are in no window
    """

    passages: tuple[Passage, ...]
    unread: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(passage.end - passage.start for passage in self.passages)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The special tokens around utterances, and how many tokens a window may have with them."""

    first: tuple[int, ...]
    after_each: tuple[int, ...]
    size: int = WINDOW_TOKENS


def cut_dialogue(said: Sequence[SaidTokens], frame: Frame) -> list[UtteranceTokens | None]:
    """In the order of `said`; None for an utterance without a token of its own, which is in no
    window."""
    found: list[UtteranceTokens | None] = [None] * len(said)
    room = frame.size - len(frame.first)
    sizes = [len(each.ids) + len(frame.after_each) for each in said]
    held: list[int] = []  # the window that is being filled
    fresh: list[int] = []  # those of them that no window had before

    def close() -> None:
        if fresh:
            _place([said[turn] for turn in held], held, frame, set(fresh), found)

    for turn, each in enumerate(said):
        if len(each.ids) == each.own:
            continue
        if sizes[turn] > room:
            close()
            held, fresh = [], []
            found[turn] = _read_alone(each, frame, room)
            continue
        if sum(sizes[other] for other in held) + sizes[turn] > room:
            close()
            held, fresh = _last(held, sizes, min(REREAD, room - sizes[turn])), []
        held.append(turn)
        fresh.append(turn)
    close()
    return found


def _last(held: Sequence[int], sizes: Sequence[int], room: int) -> list[int]:
    """The last utterances that fit into `room` tokens together."""
    lengths = list(accumulate(sizes[turn] for turn in reversed(held)))
    count = sum(length <= room for length in lengths)
    return list(held[len(held) - count :])


def _place(
    said: Sequence[SaidTokens],
    places: Sequence[int],
    frame: Frame,
    fresh: set[int],
    found: list[UtteranceTokens | None],
) -> None:
    """Makes a window of these utterances, and tells where the own tokens of `fresh` ones are."""
    ids, turns = list(frame.first), [-1] * len(frame.first)
    spans = []
    for number, each in enumerate(said):
        spans.append((len(ids) + each.own, len(ids) + len(each.ids)))
        ids += [*each.ids, *frame.after_each]
        turns += [number] * (len(each.ids) + len(frame.after_each))
    window = Window(tuple(ids), tuple(turns))
    for place, (start, end) in zip(places, spans, strict=True):
        if place in fresh:
            found[place] = UtteranceTokens((Passage(window, start, end),))


def _read_alone(said: SaidTokens, frame: Frame, room: int) -> UtteranceTokens:
    """In windows that overlap, each of its own tokens counting once."""
    own = said.ids[said.own :]
    read = own[:MAX_TEXT_TOKENS]
    words = room - len(frame.after_each)
    pieces = spread(len(read), words) if len(read) > words else [(0, 0, len(read))]
    passages = []
    for start, first, end in pieces:
        ids = (*frame.first, *read[start : start + words], *frame.after_each)
        before = len(frame.first)
        window = Window(ids, (-1,) * before + (0,) * (len(ids) - before))
        passages.append(Passage(window, before + first - start, before + end - start))
    return UtteranceTokens(tuple(passages), unread=len(own) - len(read))
