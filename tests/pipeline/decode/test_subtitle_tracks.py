"""Subtitle tracks inside a media file, in the containers that have them."""

from pathlib import Path

import pytest
from av.stream import Disposition

from pipeline.decode.subtitles import SubtitleCue, read_subtitle_tracks
from pipeline.errors import ClipError
from tests.media import Track, tone, write_clip, write_subtitled

HELLO = "Hello there!"


def ass(text: str, name: str = "") -> str:
    return f"0,0,Default,{name},0,0,0,,{text}"


@pytest.mark.parametrize(
    ("file", "codec", "written", "read"),
    [
        ("a.mp4", "mov_text", HELLO, HELLO),
        ("a.mov", "mov_text", HELLO, HELLO),
        ("a.mkv", "subrip", f"<i>{HELLO}</i>", "{\\i1}" + HELLO + "{\\i0}"),
        ("a.mkv", "ass", ass(HELLO), HELLO),
        ("a.webm", "webvtt", f"<v Joey>{HELLO}", f"<v Joey>{HELLO}"),
        ("a.mkv", "webvtt", HELLO, HELLO),
    ],
)
def test_cues_of_every_kind_of_text_track_keep_their_milliseconds(
    tmp_path: Path, file: str, codec: str, written: str, read: str
) -> None:
    cues = [(501, 333, written), (1003, 997, written)]
    path = write_subtitled(tmp_path / file, [Track(codec, cues, language="eng")])
    [track] = read_subtitle_tracks(path)
    assert (track.number, track.codec, track.language) == (1, codec, "eng")
    assert track.cues == (
        SubtitleCue(start_ms=501, end_ms=834, text=read),
        SubtitleCue(start_ms=1003, end_ms=2000, text=read),
    )
    assert not track.is_pictures


@pytest.mark.parametrize(("file", "codec"), [("a.mkv", "subrip"), ("a.ts.mkv", "subrip")])
def test_cues_are_on_the_files_clock(tmp_path: Path, file: str, codec: str) -> None:
    path = write_subtitled(tmp_path / file, [Track(codec, [(500, 400, HELLO)])], starts_s=7.25)
    [track] = read_subtitle_tracks(path)
    assert [(cue.start_ms, cue.end_ms) for cue in track.cues] == [(500, 900)]


def test_the_speaker_is_read_from_the_field_of_the_track(tmp_path: Path) -> None:
    path = write_subtitled(
        tmp_path / "a.mkv", [Track("ass", [(0, 400, ass("Hi, you,\\Ntwo!", "Joey"))])]
    )
    [track] = read_subtitle_tracks(path)
    [cue] = track.cues
    assert (cue.name, cue.text) == ("Joey", "Hi, you,\\Ntwo!")


def test_every_track_is_reported_and_pictures_of_words_are_not_read(tmp_path: Path) -> None:
    path = write_subtitled(
        tmp_path / "a.mkv",
        [
            Track("dvbsub", [(0, 400, "no picture")], language="ger"),
            Track("subrip", [(0, 400, "Oui")], language="fre", disposition=Disposition.default),
            Track("subrip", [(0, 400, "Hi")], disposition=Disposition.forced),
        ],
    )
    pictures, french, forced = read_subtitle_tracks(path)
    assert (pictures.codec, pictures.language, pictures.cues) == ("dvb_subtitle", "ger", ())
    assert pictures.is_pictures
    assert (french.language, french.is_default, french.is_forced) == ("fre", True, False)
    assert (forced.number, forced.is_default, forced.is_forced) == (3, False, True)
    assert [cue.text for cue in forced.cues] == ["Hi"]


def test_a_file_without_subtitles_has_none_and_a_bad_file_is_refused(tmp_path: Path) -> None:
    assert read_subtitle_tracks(write_clip(tmp_path / "a.mp4", sound=tone([440]))) == ()
    (tmp_path / "b.mp4").write_text("Dear diary")
    with pytest.raises(ClipError, match="not MP4"):
        read_subtitle_tracks(tmp_path / "b.mp4")


def test_a_damaged_cue_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    path = write_subtitled(
        tmp_path / "a.mkv", [Track("subrip", [(0, 400, "Hi"), (500, 400, "x" * 70_000)])]
    )
    [track] = read_subtitle_tracks(path)
    assert [cue.text for cue in track.cues] == ["Hi"]
    assert track.num_damaged == 1
