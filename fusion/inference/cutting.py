"""Cuts recognised speech into utterances, at the ends of sentences and in pauses."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from fusion.inference.recogniser import Recognised
from fusion.inference.voice import SpeechRegion

# Largest distance of a recognised word from the voice that it belongs to.
_STRAY_MS = 200
# Largest distance of the border of two words from the pause between them.
_NEAR_MS = 250
_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]]*$")
_INITIALS = re.compile(r"(?:[A-Za-z]\.)+")
_TITLES = frozenset("mr. mrs. ms. dr. prof. st. sr. jr. vs. no. mt. gen. sen. rev.".split())


@dataclass(frozen=True, kw_only=True)
class CuttingConfig:
    """How recognised words are cut into utterances.

    min_utterance_ms: least length of an utterance; only one without room, at an end of the file or
        between two others, is shorter
    max_utterance_ms: largest length of an utterance
    pause_ms: length of a silence between two words that ends an utterance
    """

    min_utterance_ms: int = 400
    max_utterance_ms: int = 12_000
    pause_ms: int = 600

    def __post_init__(self) -> None:
        if not 0 < 2 * self.min_utterance_ms <= self.max_utterance_ms:
            raise ValueError(
                "max_utterance_ms must be at least twice min_utterance_ms, and that above 0: "
                f"{self.max_utterance_ms}, {self.min_utterance_ms}"
            )
        if self.pause_ms < 0:
            raise ValueError(f"pause_ms must be at least 0, not {self.pause_ms}")


@dataclass(frozen=True, kw_only=True)
class PlacedWord:
    """A recognised word with its time in the file and its voice region.

    region:  number of its region among those that were recognised together
    passage: number of the passage it was recognised in
    """

    start_ms: int
    end_ms: int
    text: str
    probability: float
    region: int
    passage: int


@dataclass(frozen=True, kw_only=True)
class Line:
    """The times and words of an utterance that is still being cut."""

    start_ms: int
    end_ms: int
    text: str = ""


def place_words(heard: Recognised, regions: Sequence[SpeechRegion]) -> list[PlacedWord]:
    """Assigns words to voice regions. The detector's times are more exact than the recogniser's, so
    words end with their region, and the first and last word of a region reach its borders. Words
    that were recognised where there is no voice are dropped.

    heard: of the sound from the first region's start on
    """
    offset_ms = regions[0].start_ms
    placed: list[PlacedWord] = []
    for number, passage in enumerate(heard.passages):
        for word in passage.words:
            start_ms = offset_ms + round(word.start_s * 1000)
            end_ms = offset_ms + round(word.end_s * 1000)
            if not any(char.isalnum() for char in word.text):
                # A dash or a dot by itself belongs to what was said before.
                if placed and word.text.strip():
                    placed[-1] = replace(placed[-1], text=placed[-1].text + word.text)
                continue
            region = _region_of(start_ms, end_ms, regions)
            if region is None:
                continue
            first_ms, past_ms = regions[region].start_ms, regions[region].end_ms
            start_ms = min(max(start_ms, first_ms), past_ms)
            placed.append(
                PlacedWord(
                    start_ms=start_ms,
                    end_ms=max(min(end_ms, past_ms), start_ms),
                    text=word.text,
                    probability=word.probability,
                    region=region,
                    passage=number,
                )
            )
    placed.sort(key=lambda word: word.region)  # stable: a stray word must not go back in time
    return _fill_regions(placed, regions)


def _region_of(start_ms: int, end_ms: int, regions: Sequence[SpeechRegion]) -> int | None:
    """The region with the largest overlap, else the nearest one within `_STRAY_MS`."""
    shared_ms = [min(end_ms, region.end_ms) - max(start_ms, region.start_ms) for region in regions]
    best = max(range(len(regions)), key=shared_ms.__getitem__)
    return best if shared_ms[best] > -_STRAY_MS else None


def _fill_regions(words: Sequence[PlacedWord], regions: Sequence[SpeechRegion]) -> list[PlacedWord]:
    filled = list(words)
    for number, word in enumerate(words):
        region = regions[word.region]
        if number == 0 or words[number - 1].region != word.region:
            filled[number] = replace(filled[number], start_ms=region.start_ms)
        if number == len(words) - 1 or words[number + 1].region != word.region:
            filled[number] = replace(filled[number], end_ms=region.end_ms)
    return filled


def cut_words(
    words: Sequence[PlacedWord], regions: Sequence[SpeechRegion], config: CuttingConfig
) -> list[list[PlacedWord]]:
    """The words of each utterance, in order: cut at ends of sentences and in pauses; a longer one
    is cut again, in its longest pause first; a shorter one is joined to its nearer neighbour."""
    if not words:
        return []
    settled, gaps_ms = _settle_borders(words, regions)
    cuts = [
        number
        for number, (before, after) in enumerate(pairwise(settled), start=1)
        if gaps_ms[number] >= config.pause_ms or _ends_sentence(before.text, after.text)
    ]
    parts = [
        part
        for first, past in pairwise([0, *cuts, len(settled)])
        for part in _split_long(first, past, settled, gaps_ms, config)
    ]
    joined = _join_short(parts, settled, gaps_ms, config)
    return [list(settled[first:past]) for first, past in joined]


def _settle_borders(
    words: Sequence[PlacedWord], regions: Sequence[SpeechRegion]
) -> tuple[list[PlacedWord], list[int]]:
    """The words with the pauses of the voice between them, and the silence before each, in ms."""
    settled, gaps_ms = list(words), [0]
    for number, (before, after) in enumerate(pairwise(words), start=1):
        end_ms, start_ms = before.end_ms, after.start_ms
        if before.region == after.region:
            end_ms, start_ms = _pause_near(before, after, regions[before.region])
            settled[number - 1] = replace(settled[number - 1], end_ms=end_ms)
            settled[number] = replace(settled[number], start_ms=start_ms)
        gaps_ms.append(start_ms - end_ms)
    return settled, gaps_ms


def _pause_near(before: PlacedWord, after: PlacedWord, region: SpeechRegion) -> tuple[int, int]:
    """Where the voice pauses between two words: the longest pause that is near and is neither
    before the one nor behind the other; without any, the middle between them, twice."""
    middle = (before.end_ms + after.start_ms) // 2
    pauses = [
        (first, past)
        for first, past in region.pauses
        if first <= max(before.end_ms, after.start_ms) + _NEAR_MS
        and past >= min(before.end_ms, after.start_ms) - _NEAR_MS
        and before.start_ms < first
        and past < after.end_ms
    ]
    if not pauses:
        return middle, middle
    return max(pauses, key=lambda pause: (pause[1] - pause[0], -abs(sum(pause) // 2 - middle)))


def _ends_sentence(text: str, following: str) -> bool:
    word = text.strip()
    if not _SENTENCE_END.search(word):
        return False
    if word.lower() in _TITLES or _INITIALS.fullmatch(word):
        return False
    return not following.strip()[:1].islower()  # "I ... know", "e.g. this"


def _split_long(
    first: int,
    past: int,
    words: Sequence[PlacedWord],
    gaps_ms: Sequence[int],
    config: CuttingConfig,
) -> list[tuple[int, int]]:
    start_ms, end_ms = words[first].start_ms, words[past - 1].end_ms
    if end_ms - start_ms <= config.max_utterance_ms or past - first == 1:
        return [(first, past)]
    middle_ms = (start_ms + end_ms) // 2

    def rank(number: int) -> tuple[bool, int, bool, int]:
        shorter_ms = min(words[number - 1].end_ms - start_ms, end_ms - words[number].start_ms)
        comma = words[number - 1].text.strip().endswith((",", ";", ":", "-", "–"))
        off_ms = abs(words[number].start_ms - middle_ms)
        return shorter_ms >= config.min_utterance_ms, gaps_ms[number], comma, -off_ms

    at = max(range(first + 1, past), key=rank)
    return [
        part
        for left, right in ((first, at), (at, past))
        for part in _split_long(left, right, words, gaps_ms, config)
    ]


def _join_short(
    parts: Sequence[tuple[int, int]],
    words: Sequence[PlacedWord],
    gaps_ms: Sequence[int],
    config: CuttingConfig,
) -> list[tuple[int, int]]:
    def length_ms(part: tuple[int, int]) -> int:
        return words[part[1] - 1].end_ms - words[part[0]].start_ms

    joined = list(parts)
    number = 0
    while number < len(joined):
        if length_ms(joined[number]) >= config.min_utterance_ms:
            number += 1
            continue
        # Of the borders to its neighbours, those that may go.
        may_go = [
            right
            for right in (number, number + 1)
            if 0 < right < len(joined)
            and gaps_ms[joined[right][0]] < config.pause_ms
            and length_ms((joined[right - 1][0], joined[right][1])) <= config.max_utterance_ms
        ]
        if not may_go:
            number += 1
            continue
        right = min(may_go, key=lambda border: gaps_ms[joined[border][0]])
        joined[right - 1 : right + 1] = [(joined[right - 1][0], joined[right][1])]
        number = right - 1
    return joined


def cut_at_pauses(region: SpeechRegion, config: CuttingConfig) -> list[Line]:
    """A region to pieces of at most `max_utterance_ms`: cut in its longest pause first, and where
    its voice is weakest if there is no pause."""
    return [Line(start_ms=first, end_ms=past) for first, past in _cut(region, config)]


def _cut(region: SpeechRegion, config: CuttingConfig) -> list[tuple[int, int]]:
    start_ms, end_ms = region.start_ms, region.end_ms
    if end_ms - start_ms <= config.max_utterance_ms:
        return [(start_ms, end_ms)]
    middle_ms = (start_ms + end_ms) // 2
    pauses = [
        (first, past)
        for first, past in region.pauses
        if first - start_ms >= config.min_utterance_ms and end_ms - past >= config.min_utterance_ms
    ]
    if pauses:
        first, past = max(
            pauses, key=lambda pause: (pause[1] - pause[0], -abs(sum(pause) // 2 - middle_ms))
        )
    else:
        weakest_ms = region.weakest_ms
        is_inside = weakest_ms is not None and (
            start_ms + config.min_utterance_ms <= weakest_ms <= end_ms - config.min_utterance_ms
        )
        first = past = weakest_ms if is_inside and weakest_ms is not None else middle_ms
    return [
        *_cut(replace(region, end_ms=first), config),
        *_cut(replace(region, start_ms=past), config),
    ]


def lengthen(lines: Sequence[Line], min_ms: int, *, lower_ms: int, upper_ms: int) -> list[Line]:
    """Lengthens each to at least `min_ms`, if there is room between its neighbours and between
    `lower_ms` and `upper_ms`: a short one is extended into the silence on both sides."""
    longer = list(lines)
    for number, line in enumerate(lines):
        missing_ms = min_ms - (line.end_ms - line.start_ms)
        if missing_ms <= 0:
            continue
        before_ms = longer[number - 1].end_ms if number else lower_ms
        after_ms = lines[number + 1].start_ms if number + 1 < len(lines) else upper_ms
        room_before = max(line.start_ms - before_ms, 0)
        room_after = max(after_ms - line.end_ms, 0)
        left = min(missing_ms // 2, room_before)
        right = min(missing_ms - left, room_after)
        left = min(missing_ms - right, room_before)
        longer[number] = replace(line, start_ms=line.start_ms - left, end_ms=line.end_ms + right)
    return longer


def shorten(lines: Sequence[Line], max_ms: int) -> list[Line]:
    """Cuts off the end of lines that are too long: a single word may be given more time than
    that."""
    return [replace(line, end_ms=min(line.end_ms, line.start_ms + max_ms)) for line in lines]
