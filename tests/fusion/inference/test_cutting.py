"""Words to utterances: ends of sentences, pauses, and lengths."""

from collections.abc import Sequence

import pytest

from fusion.inference.cutting import (
    CuttingConfig,
    Line,
    cut_at_pauses,
    cut_words,
    lengthen,
    place_words,
    shorten,
)
from fusion.inference.recogniser import Passage, Recognised, Word
from fusion.inference.voice import SpeechRegion

CONFIG = CuttingConfig()


def region(start_ms: int, end_ms: int, *pauses: tuple[int, int]) -> SpeechRegion:
    return SpeechRegion(start_ms=start_ms, end_ms=end_ms, pauses=pauses)


def heard(words: Sequence[tuple[str, float, float]]) -> Recognised:
    """Words with their seconds from the first region's start."""
    told = tuple(Word(text=f" {text}", start_s=start, end_s=end) for text, start, end in words)
    return Recognised(passages=(Passage(words=told),))


def evenly(text: str, start_s: float, end_s: float) -> list[tuple[str, float, float]]:
    """The words of a text, each as long as the others."""
    words = text.split()
    step = (end_s - start_s) / len(words)
    return [
        (word, start_s + number * step, start_s + (number + 1) * step)
        for number, word in enumerate(words)
    ]


def cut(
    words: Sequence[tuple[str, float, float]],
    *regions: SpeechRegion,
    config: CuttingConfig = CONFIG,
) -> list[tuple[int, int, str]]:
    groups = cut_words(place_words(heard(words), regions), regions, config)
    return [
        (group[0].start_ms, group[-1].end_ms, "".join(word.text for word in group).strip())
        for group in groups
    ]


# ----------------------------------------------------------------------------------------- places


def test_words_end_with_the_voice_that_says_them() -> None:
    """The recogniser has the first begin 0.3 s early and the last end 1 s late."""
    words = [("It", 0.0, 0.9), ("is", 0.9, 1.2), ("over.", 1.2, 3.0)]
    assert cut(words, region(1_000, 3_100)) == [(1_000, 3_100, "It is over.")]
    placed = place_words(
        heard([*words, ("No.", 2.7, 4.5)]), [region(0, 2_000), region(3_000, 4_000)]
    )
    assert [(word.start_ms, word.end_ms, word.region) for word in placed][2:] == [
        (1_200, 2_000, 0),
        (3_000, 4_000, 1),
    ]


def test_words_recognised_without_speech_are_left_out() -> None:
    words = [("Hello.", 0.1, 0.9), *evenly("Thank you for watching.", 3.0, 5.0), ("Bye.", 8.1, 8.9)]
    assert cut(words, region(0, 1_000), region(8_000, 9_000)) == [
        (0, 1_000, "Hello."),
        (8_000, 9_000, "Bye."),
    ]


def test_a_word_just_beside_its_voice_belongs_to_it() -> None:
    assert cut([("Hello.", 1.05, 1.15)], region(0, 1_000)) == [(0, 1_000, "Hello.")]


def test_a_mark_by_itself_belongs_to_the_word_before() -> None:
    words = [("So", 0.0, 0.5), ("-", 0.5, 0.6), ("what?", 0.6, 1.0), (".", 1.0, 1.0)]
    assert cut(words, region(0, 1_000)) == [(0, 1_000, "So - what? .")]
    assert cut([(".", 0.0, 0.5)], region(0, 1_000)) == []


# -------------------------------------------------------------------------------------- sentences


def test_sentences_are_utterances_and_meet_in_the_pause_of_the_voice() -> None:
    words = [*evenly("I saw him.", 0.0, 1.5), *evenly("He was late!", 1.5, 3.0)]
    assert cut(words, region(0, 3_000)) == [
        (0, 1_500, "I saw him."),
        (1_500, 3_000, "He was late!"),
    ]
    assert cut(words, region(0, 3_000, (1_300, 1_400), (2_600, 2_700))) == [
        (0, 1_300, "I saw him."),
        (1_400, 3_000, "He was late!"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Mr. Green went home",
        "the U.S. Army was there",
        "I ... do not know",
        "see e.g. this one here",
        "about 3.5 miles away from",
    ],
)
def test_not_every_dot_ends_a_sentence(text: str) -> None:
    assert [told for _, _, told in cut(evenly(text, 0, 3), region(0, 3_000))] == [text]


@pytest.mark.parametrize("text", ["Who is it? Nobody.", "“I left.” “You did?”", "It is you. You!"])
def test_marks_and_quotes_end_sentences(text: str) -> None:
    assert len(cut(evenly(text, 0, 4), region(0, 4_000))) == 2


def test_a_long_pause_ends_an_utterance_and_a_short_one_does_not() -> None:
    words = [*evenly("I think", 0.0, 1.0), *evenly("that he", 1.4, 2.4), *evenly("left", 3.1, 4.0)]
    regions = region(0, 1_000), region(1_400, 2_400), region(3_100, 4_000)
    assert cut(words, *regions) == [(0, 2_400, "I think that he"), (3_100, 4_000, "left")]


# ---------------------------------------------------------------------------------------- lengths


def test_a_long_sentence_is_cut_in_its_longest_pause_first() -> None:
    words = evenly(" ".join("abcdefghijklmnopqrst"), 0.0, 20.0)
    pauses = (4_900, 5_100), (11_900, 12_200), (15_000, 15_100)
    parts = cut(words, region(0, 20_000, *pauses))
    assert [(start, end) for start, end, _ in parts] == [(0, 11_900), (12_200, 20_000)]
    assert parts[0][2] == "a b c d e f g h i j k l"


def test_without_a_pause_a_long_sentence_is_cut_after_a_comma_or_near_its_middle() -> None:
    words = "a b c d e, f g h i j k l m n o p"
    assert [told for _, _, told in cut(evenly(words, 0, 16), region(0, 16_000))] == [
        "a b c d e,",
        "f g h i j k l m n o p",
    ]
    plain = words.replace(",", "")
    assert [len(told) for _, _, told in cut(evenly(plain, 0, 16), region(0, 16_000))] == [15, 15]


def test_a_short_sentence_is_joined_to_its_nearer_neighbour() -> None:
    words = [("Who?", 0.0, 1.0), ("Me.", 1.3, 1.5), ("Why?", 1.55, 2.5)]
    regions = region(0, 1_000), region(1_300, 1_500), region(1_550, 2_500)
    assert cut(words, *regions) == [(0, 1_000, "Who?"), (1_300, 2_500, "Me. Why?")]


def test_a_short_sentence_far_from_others_stays_by_itself() -> None:
    words = [("Who?", 0.0, 1.0), ("Me.", 2.0, 2.3)]
    assert cut(words, region(0, 1_000), region(2_000, 2_300))[1] == (2_000, 2_300, "Me.")


def test_an_utterance_that_is_too_short_takes_of_the_silence_around_it() -> None:
    lines = [Line(start_ms=100, end_ms=200), Line(start_ms=400, end_ms=700)]
    assert lengthen(lines, 400, lower_ms=0, upper_ms=720) == [
        Line(start_ms=0, end_ms=400),
        Line(start_ms=400, end_ms=720),
    ]
    assert lengthen(lines[:1], 400, lower_ms=0, upper_ms=300) == [Line(start_ms=0, end_ms=300)]
    # What has no room on its right goes on to the left, and the other way round.
    late, early = Line(start_ms=1_000, end_ms=1_100), Line(start_ms=50, end_ms=150)
    assert lengthen([late], 400, lower_ms=0, upper_ms=1_150) == [Line(start_ms=750, end_ms=1_150)]
    assert lengthen([early], 400, lower_ms=0, upper_ms=9_000) == [Line(start_ms=0, end_ms=400)]


def test_a_word_that_is_given_a_minute_makes_no_utterance_of_a_minute() -> None:
    assert shorten([Line(start_ms=5, end_ms=60_000)], 12_000) == [Line(start_ms=5, end_ms=12_005)]


# ---------------------------------------------------------------------------------- without words


def test_a_voice_is_cut_at_its_longest_pauses_until_every_piece_fits() -> None:
    long = region(0, 26_000, (300, 2_300), (9_900, 10_100), (13_000, 13_400), (20_000, 20_300))
    pieces = [(line.start_ms, line.end_ms) for line in cut_at_pauses(long, CONFIG)]
    assert pieces == [(0, 9_900), (10_100, 13_000), (13_400, 20_000), (20_300, 26_000)]


def test_a_voice_without_pauses_is_cut_where_it_is_weakest_and_else_in_the_middle() -> None:
    lines = cut_at_pauses(SpeechRegion(start_ms=0, end_ms=20_000, weakest_ms=8_000), CONFIG)
    assert [(line.start_ms, line.end_ms) for line in lines] == [(0, 8_000), (8_000, 20_000)]
    lines = cut_at_pauses(SpeechRegion(start_ms=0, end_ms=20_000), CONFIG)
    assert [(line.start_ms, line.end_ms) for line in lines] == [(0, 10_000), (10_000, 20_000)]


@pytest.mark.parametrize(
    "wrong", [{"max_utterance_ms": 700}, {"min_utterance_ms": 0}, {"pause_ms": -1}]
)
def test_lengths_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CuttingConfig(**wrong)
