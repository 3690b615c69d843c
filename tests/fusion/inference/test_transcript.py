"""Transcripts with times, as tables and as lines."""

from pathlib import Path

import pytest

from fusion.inference.segments import SpokenSpan, fit_into
from fusion.inference.transcript import read_transcript
from pipeline.errors import InputError
from pipeline.schema import MediaSpan


def told(span: SpokenSpan) -> tuple[int, int | None, str | None, str]:
    return span.span.start_ms, span.span.end_ms, span.speaker, span.text


def read(folder: Path, text: str) -> list[tuple[int, int | None, str | None, str]]:
    path = folder / "talk.txt"
    path.write_text(text)
    heard = read_transcript(path)
    assert {span.text_source for span in heard.spans} == {"given"}
    return [told(span) for span in heard.spans]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_in_melds_shape_is_read_by_its_columns(tmp_path: Path, separator: str) -> None:
    rows = [
        ["Sr No.", "Utterance", "Speaker", "Emotion", "StartTime", "EndTime"],
        ["1", '"Hi, you"', "Joey", "joy", '"00:00:01,500"', '"00:00:02,000"'],
        ["2", "Hello", "", "", "4.25", ""],
        ["", "", "", "", "", ""],
    ]
    text = "\n".join(separator.join(row) for row in rows) + "\n"
    assert read(tmp_path, text) == [
        (1500, 2000, "Joey", "Hi, you"),
        (4250, None, None, "Hello"),
    ]


def test_lines_are_read_in_the_ways_that_programs_print_them(tmp_path: Path) -> None:
    text = """[00:01.500 --> 00:03.000]  How are you?
00:04 - 00:05.5 Joey: Fine.

0:07 And you?
(00:09) Great
"""
    assert read(tmp_path, text) == [
        (1500, 3000, None, "How are you?"),
        (4000, 5500, "Joey", "Fine."),
        (7000, 9000, None, "And you?"),  # until the next begins
        (9000, None, None, "Great"),  # until the file ends
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Utterance,Speaker\nHi,Joey\n", "no column StartTime"),
        ("Utterance,StartTime\nHi,soon\n", "row 2: 'soon' is no time"),
        ("Utterance,StartTime,EndTime\nHi,3,2\n", "row 2: it ends at 2.000 s"),
        ('Utterance,StartTime\n"Hi,1\n', "row 2: a quote is not closed"),
        ("0:01 Hi\nno time here\n", "row 2: 'no time here' begins with no time"),
        ("\n\n", "no row with spoken words"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_row(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(tmp_path, text)


def spoken(start_ms: int, end_ms: int | None) -> SpokenSpan:
    return SpokenSpan(
        span=MediaSpan(start_ms=start_ms, end_ms=end_ms), text="words", text_source="given"
    )


def test_utterances_are_cut_to_the_file_and_to_what_was_asked_for() -> None:
    spans = [spoken(0, 900), spoken(1000, 3000), spoken(9000, None), spoken(12_000, 13_000)]

    def borders(**asked: int) -> list[tuple[int, int | None]]:
        heard = fit_into(spans, 10_000, **asked)
        return [(each.span.start_ms, each.span.end_ms) for each in heard.spans]

    assert borders() == [(0, 900), (1000, 3000), (9000, 10_000)]
    assert borders(start_ms=900, end_ms=2000) == [(1000, 2000)]
    assert borders(start_ms=9500) == [(9500, 10_000)]
    assert fit_into(spans, 10_000).notes == (
        "1 utterances start after the end of the media (10.0 s) and are left out: are these words "
        "of this file?",
    )
