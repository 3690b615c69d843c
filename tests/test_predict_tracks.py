"""Subtitles inside a media file are its utterances, where nothing else says what is spoken."""

from pathlib import Path

import pytest
from av.stream import Disposition

import meld as face
from fusion.inference.predict_media import PreparedMedia, WordsConfig, prepare_media
from pipeline.errors import WeightsMissing
from tests.media import Track, tone, write_clip, write_subtitled

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def model(minilm_folder: Path) -> face.Model:
    return face.load()  # text alone


@pytest.mark.parametrize(("file", "codec"), [("a.mp4", "mov_text"), ("a.mkv", "subrip")])
def test_a_track_is_read_unless_something_else_says_what_is_spoken(
    model: face.Model, tmp_path: Path, file: str, codec: str
) -> None:
    cues = [(250, 750, "I am so happy!"), (1500, 900, "JOEY: Leave me alone.")]
    tracks = [
        Track(codec, [(0, 2000, "Oui")], language="fre", disposition=Disposition.default),
        Track(codec, cues, language="eng"),
    ]
    path = write_subtitled(tmp_path / file, tracks)
    timeline = model.timeline(path)
    told = [
        (each.spoken.span.start_ms, each.spoken.span.end_ms, each.spoken.speaker, each.spoken.text)
        for each in timeline.utterances
    ]
    assert told == [
        (250, 1000, None, "I am so happy!"),
        (1500, 2400, "Joey", "Leave me alone."),
    ]
    assert all(each.prediction is not None for each in timeline.utterances)
    where = timeline.to_dict()["segmentation"]
    assert (where["source"], where["file"]) == ("subtitles", None)
    assert where["notes"] == [f"the words are those of the file's subtitle track 2 ({codec}, eng)"]
    path.with_suffix(".srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nBeside it\n")
    assert [each.spoken.text for each in model.timeline(path).utterances] == ["Beside it"]
    assert [each.spoken.text for each in model.timeline(path, text="Told").utterances] == ["Told"]


def test_the_recogniser_of_a_service_hears_only_what_has_no_words(
    model: face.Model, tmp_path: Path
) -> None:
    pytest.importorskip("faster_whisper", reason="the extra asr is not installed")
    with_track = write_subtitled(tmp_path / "a.mkv", [Track("subrip", [(0, 900, "Hello!")])])
    without = write_clip(tmp_path / "b.mkv", num_frames=24, sound=tone([440]))

    def prepare(path: Path, words: WordsConfig) -> PreparedMedia:
        return prepare_media(path, words, model._predictor, recogniser="no-such-model")

    assert prepare(with_track, WordsConfig()).segmentation.source == "subtitles"
    assert prepare(without, WordsConfig(text="Hi")).segmentation.source == "whole"
    with pytest.raises(WeightsMissing, match="no-such-model"):
        prepare(without, WordsConfig())
    with pytest.raises(WeightsMissing, match="another-one"):  # who is named is taken
        prepare(without, WordsConfig(asr="another-one"))
