"""Subtitle files as people have them: encodings, tags, sounds in brackets, broken cues."""

import time
from pathlib import Path

import pytest

from fusion.inference.segments import Heard, SpokenSpan
from fusion.inference.subtitles import choose_track, read_subtitles
from pipeline.decode.subtitles import SubtitleCue, SubtitleTrack
from pipeline.errors import InputError

SRT = """1
00:00:01,000 --> 00:00:02,500
How you doin'?

2
00:00:03,000 --> 00:00:04,250
<i>Fine,</i> thanks.
"""


LATER = "2\n00:00:03,000 --> 00:00:04,000\nBye\n"


def told(span: SpokenSpan) -> tuple[int, int | None, str | None, str]:
    return span.span.start_ms, span.span.end_ms, span.speaker, span.text


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_cues_keep_their_milliseconds_and_lose_their_tags(tmp_path: Path, encoding: str) -> None:
    heard = read_subtitles(write(tmp_path, "talk.srt", SRT, encoding))
    assert [told(span) for span in heard.spans] == [
        (1000, 2500, None, "How you doin'?"),
        (3000, 4250, None, "Fine, thanks."),
    ]
    assert {span.text_source for span in heard.spans} == {"subtitles"}
    assert heard.notes == ()


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_windows_and_old_macs_change_nothing(tmp_path: Path, end: str) -> None:
    there = read_subtitles(write(tmp_path, "a.srt", SRT))
    assert read_subtitles(write(tmp_path, "b.srt", SRT.replace("\n", end))) == there


@pytest.mark.parametrize("head", ["WEBVTT\n\n", "1\n"])
def test_escaped_characters_are_read_as_what_they_stand_for(tmp_path: Path, head: str) -> None:
    cue = (
        "00:00:01.000 --> 00:00:02.000\n"
        "<v Tom &amp; Jerry>R&amp;B&nbsp;&lt;3, I don&#39;t &#x266A; &amp;c.; AT&T &nothing;\n"
    )
    [span] = read_subtitles(write(tmp_path, "talk.vtt", head + cue)).spans
    assert span.text == "R&B <3, I don't &c.; AT&T &nothing;"
    assert span.speaker == "Tom & Jerry"


def test_cp1252_is_read_and_reported(tmp_path: Path) -> None:
    text = SRT.replace("Fine", "Très bien")
    heard = read_subtitles(write(tmp_path, "talk.srt", text, "cp1252"))
    assert heard.spans[1].text == "Très bien, thanks."
    assert heard.notes == ("not UTF-8; read as cp1252",)


def test_the_speaker_is_taken_from_the_file(tmp_path: Path) -> None:
    vtt = """WEBVTT

NOTE a comment --> is no cue

intro
00:01.000 --> 00:02.000 align:start
<v Joey Tribbiani>How <b>you</b> doin'?</v>

00:00:03.000 --> 00:00:04.000
MONICA: Hi!

00:00:05.000 --> 00:00:06.000
Remember: be kind.
"""
    ass = """[Script Info]
ScriptType: v4.00+
[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20
[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:01.00,0:00:02.00,Default,Ross,0,0,0,,{\\an8}We were\\Non a break!
Comment: 0,0:00:02.00,0:00:03.00,Default,,0,0,0,,not said
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,{\\p1}m 0 0 l 100 0{\\p0}
"""
    assert [told(span) for span in read_subtitles(write(tmp_path, "a.vtt", vtt)).spans] == [
        (1000, 2000, "Joey Tribbiani", "How you doin'?"),
        (3000, 4000, "Monica", "Hi!"),
        (5000, 6000, None, "Remember: be kind."),
    ]
    assert [told(span) for span in read_subtitles(write(tmp_path, "a.ass", ass)).spans] == [
        (1000, 2000, "Ross", "We were on a break!")
    ]


def test_what_nobody_says_is_no_utterance(tmp_path: Path) -> None:
    srt = """1
00:00:01,000 --> 00:00:02,000
[APPLAUSE]

2
00:00:03,000 --> 00:00:04,000
♪ ♪

3
00:00:05,000 --> 00:00:06,000
- (laughs) No way!
- Yes!
"""
    heard = read_subtitles(write(tmp_path, "talk.srt", srt))
    assert [told(span) for span in heard.spans] == [(5000, 6000, None, "No way! Yes!")]


def test_a_cue_that_is_over_before_it_starts_is_left_out_and_reported(tmp_path: Path) -> None:
    text = SRT + "\n3\n00:00:09,000 --> 00:00:08,000\nNever.\n"
    heard = read_subtitles(write(tmp_path, "talk.srt", text))
    assert len(heard.spans) == 2
    assert heard.notes == ("cue 3: end before start; left out",)


def test_cues_come_in_order_of_their_start_and_may_overlap(tmp_path: Path) -> None:
    text = SRT + "\n3\n00:00:00,500 --> 00:00:03,500\nFirst of all.\n"
    starts = [span.span.start_ms for span in read_subtitles(write(tmp_path, "a.srt", text)).spans]
    assert starts == [500, 1000, 3000]


@pytest.mark.parametrize("words", ["<v" + "." * 28, "{" * 200_000, "[" * 200_000, "<" * 200_000])
def test_markup_that_never_ends_takes_no_time(tmp_path: Path, words: str) -> None:
    """A handful of bytes must not occupy a service for hours."""
    path = tmp_path / "a.srt"
    path.write_text(f"1\n00:00:01,000 --> 00:00:02,000\n{words}\n\n{LATER}")
    began = time.process_time()
    heard = read_subtitles(path)
    assert time.process_time() - began < 2
    assert heard.spans[-1].text == "Bye"
    too_long = ("cue 1: more than 4000 characters; left out",)
    assert heard.notes == (too_long if len(words) > 4000 else ())


def test_a_librarys_warnings_are_not_shown(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "a.ass"
    path.write_text(
        "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name\nStyle: Default\n\n"
        "[Events]\n"
        "Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
        "Dialogue: none,0:00:01.00,0:00:02.00,Default,,none,0,0,,Hello\n"
    )
    assert [each.text for each in read_subtitles(path).spans] == ["Hello"]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no subtitles of a known kind"),
        ("Dear diary,\nnothing happened.\n", "no subtitles of a known kind"),
        ("1\n00:00:01,000 --> 00:00:02,000\n[music]\n", "none with spoken words"),
        ("{1}{25}Frames\n", "microdvd|known kind"),
    ],
)
def test_what_is_no_subtitle_file_is_reported_in_one_line(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        read_subtitles(write(tmp_path, "talk.srt", text))
    assert str(caught.value).startswith(f"{tmp_path}/talk.srt: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_binary_are_distinguished(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_subtitles(tmp_path / "none.srt")
    with pytest.raises(InputError, match="not a regular file"):
        read_subtitles(tmp_path)
    binary = tmp_path / "film.srt"
    binary.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(InputError, match="binary"):
        read_subtitles(binary)


# -------------------------------------------------------------------- tracks inside a media file


def track(number: int, *texts: str, **more: object) -> SubtitleTrack:
    """A cue a second."""
    cues = tuple(
        SubtitleCue(start_ms=1000 * place, end_ms=1000 * place + 900, text=text)
        for place, text in enumerate(texts)
    )
    return SubtitleTrack(number=number, codec="subrip", cues=cues, **more)  # type: ignore[arg-type]


def test_a_track_in_english_comes_before_the_default_and_that_before_the_first() -> None:
    french = track(1, "Oui", language="fre", is_default=True)
    english = track(2, "Yes", language="eng")
    comment = track(3, "I wrote this", language="eng", is_commentary=True)
    unknown = track(4, "Da")
    for tracks, wanted in (
        ((french, english, comment), "Yes"),
        ((comment, french), "Oui"),
        ((unknown, french), "Oui"),
        ((comment, unknown), "Da"),
    ):
        [span] = choose_track(tracks).spans
        assert span.text == wanted
    assert choose_track([french, english]).notes == (
        "the words are those of the file's subtitle track 2 (subrip, eng)",
    )


def test_tracks_that_do_not_say_what_is_spoken_are_passed_over_and_named() -> None:
    pictures = SubtitleTrack(number=1, codec="hdmv_pgs_subtitle", language="eng", is_pictures=True)
    forced = track(2, "Halt!", language="eng", is_forced=True)
    sounds = track(3, "[applause]", language="eng")
    assert choose_track([]) == Heard(spans=())
    nothing = choose_track([pictures, forced, sounds])
    assert nothing.spans == ()
    assert nothing.notes == (
        "the file's subtitle track 1 (hdmv_pgs_subtitle, eng) is skipped: bitmap subtitles, which "
        "are not read",
        "the file's subtitle track 2 (subrip, eng) is skipped: only for foreign-language parts",
        "the file's subtitle track 3 (subrip, eng): 1 cues, none with spoken words",
    )
    found = choose_track([pictures, track(2, "Yes")])
    assert [told(span) for span in found.spans] == [(0, 900, None, "Yes")]
    assert found.notes[0] == "the words are those of the file's subtitle track 2 (subrip)"
    assert "track 1 (hdmv_pgs_subtitle, eng) is skipped" in found.notes[1]


def test_a_cue_without_an_end_lasts_until_the_next_and_markup_is_no_words() -> None:
    cues = (
        SubtitleCue(start_ms=-200, end_ms=None, text="{\\i1}JOEY: Hi{\\i0}"),
        SubtitleCue(start_ms=1000, end_ms=None, text="<v Ross>Two\\Nlines"),
        SubtitleCue(start_ms=2000, end_ms=2500, text="Bye", name="Joey"),
    )
    heard = choose_track([SubtitleTrack(number=1, codec="ass", cues=cues, num_damaged=2)])
    assert [told(span) for span in heard.spans] == [
        (0, 1000, "Joey", "Hi"),
        (1000, 2000, "Ross", "Two lines"),
        (2000, 2500, "Joey", "Bye"),
    ]
    assert heard.notes[1:] == (
        "2 cues of it are damaged and left out",
        "cue 1: start before the file; cut at its start",
    )
