"""Dialogues in windows: which tokens each utterance's features are the mean of."""

import pytest

from pipeline.encoders.windows import Frame, SaidTokens, UtteranceTokens, cut_dialogue

CLS, SEP = 1, 2
FRAME = Frame(first=(CLS,), after_each=(SEP,), size=20)


def said(first: int, own: int, speaker: int = 1) -> SaidTokens:
    """A speaker's tokens, all 100, then `own` tokens counted from `first`."""
    ids = (*[100] * speaker, *range(first, first + own))
    return SaidTokens(ids, speaker)


def own_tokens(found: UtteranceTokens | None) -> list[int]:
    assert found is not None
    return [token for part in found.passages for token in part.window.ids[part.start : part.end]]


def test_a_short_dialogue_is_one_window_that_all_utterances_share() -> None:
    found = cut_dialogue([said(10, 3), said(20, 2), said(30, 4)], FRAME)
    windows = {part.window for each in found if each for part in each.passages}
    assert [window.ids for window in windows] == [
        (CLS, 100, 10, 11, 12, SEP, 100, 20, 21, SEP, 100, 30, 31, 32, 33, SEP)
    ]
    [window] = windows
    assert window.turns == (-1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2)
    assert [own_tokens(each) for each in found] == [[10, 11, 12], [20, 21], [30, 31, 32, 33]]


def test_the_next_window_reads_the_utterances_before_it_again() -> None:
    found = cut_dialogue([said(10, 5), said(20, 5), said(30, 5), said(40, 3)], FRAME)
    # 7 tokens each: two fill a window of 19, and the last of them fits beside the third.
    second = found[2].passages[0].window if found[2] else None
    assert found[0].passages[0].window == found[1].passages[0].window  # type: ignore[union-attr]
    assert second is not None
    assert second.ids[1:8] == (100, 20, 21, 22, 23, 24, SEP)
    assert own_tokens(found[1]) == [20, 21, 22, 23, 24]
    assert own_tokens(found[3]) == [40, 41, 42]


def test_what_just_fits_beside_the_next_utterance_is_read_again() -> None:
    found = cut_dialogue([said(10, 5), said(20, 5), said(30, 10)], FRAME)
    assert found[2] is not None
    # Of 19 tokens the third takes 12, and the second 7.
    assert found[2].passages[0].window.ids == (
        *(CLS, 100, *range(20, 25), SEP),
        *(100, *range(30, 40), SEP),
    )


def test_every_token_counts_once_however_the_dialogue_is_cut() -> None:
    lengths = [3, 9, 1, 6, 6, 2, 14, 5, 1, 1]
    found = cut_dialogue([said(100 * k, own) for k, own in enumerate(lengths)], FRAME)
    for k, own in enumerate(lengths):
        assert own_tokens(found[k]) == list(range(100 * k, 100 * k + own))
    assert all(
        len(part.window.ids) <= FRAME.size for each in found if each for part in each.passages
    )


def test_where_windows_are_cut_follows_from_what_was_said_before_alone() -> None:
    dialogue = [said(100 * k, own) for k, own in enumerate([3, 9, 1, 6, 6, 2])]
    whole = cut_dialogue(dialogue, FRAME)
    for count in range(1, len(dialogue)):
        last = cut_dialogue(dialogue[:count], FRAME)[-1]
        then = whole[count - 1]
        assert last is not None
        assert then is not None
        [here], [there] = last.passages, then.passages
        assert here.window.ids == there.window.ids[: len(here.window.ids)]
        assert (here.start, here.end) == (there.start, there.end)


def test_an_utterance_longer_than_a_window_is_read_alone_in_several() -> None:
    frame = Frame(first=(CLS,), after_each=(SEP,), size=80)
    found = cut_dialogue([said(10, 3), said(1000, 200), said(20, 2)], frame)
    assert own_tokens(found[1]) == list(range(1000, 1200))
    assert len(found[1].passages) > 2  # type: ignore[union-attr]
    assert own_tokens(found[2]) == [20, 21]


def test_an_utterance_without_tokens_is_in_no_window() -> None:
    found = cut_dialogue([said(10, 3), said(20, 0), said(30, 2)], FRAME)
    assert found[1] is None
    assert found[2] is not None
    assert found[2].passages[0].window.ids == (CLS, 100, 10, 11, 12, SEP, 100, 30, 31, SEP)


@pytest.mark.parametrize("extra", [0, 5])
def test_tokens_beyond_the_longest_text_are_reported(extra: int) -> None:
    from pipeline.encoders.tokens import MAX_TEXT_TOKENS

    [found] = cut_dialogue([said(0, MAX_TEXT_TOKENS + extra)], FRAME_OF_MANY)
    assert found is not None
    assert (found.num_tokens, found.unread) == (MAX_TEXT_TOKENS, extra)


FRAME_OF_MANY = Frame(first=(CLS,), after_each=(SEP,), size=320)
