"""A timeline and its files say the same of planted predictions."""

import csv
import io
import json
import re

import jsonschema
import pysubs2
import pytest

from fusion.inference.media import PredictedUtterance
from fusion.inference.prediction import Alone, HeadPrediction, Part, Prediction
from fusion.inference.segments import SpokenSpan
from fusion.inference.timeline import (
    SCHEMA_FILE,
    MediaDescription,
    ModelDescription,
    Segmentation,
    Timeline,
)
from fusion.prediction.timeline_files import CSV_COLUMNS, clock, to_csv, to_srt, to_vtt
from pipeline.schema import EMOTIONS, SENTIMENTS, MediaSpan

SENTIMENT_OF = {"joy": "positive", "anger": "negative", "neutral": "neutral"}


def head(names: tuple[str, ...], label: str, confidence: float) -> HeadPrediction:
    rest = (1 - confidence) / (len(names) - 1)
    return HeadPrediction(
        label=label, probabilities={name: confidence if name == label else rest for name in names}
    )


def predicted(
    number: int,
    start_ms: int,
    end_ms: int,
    emotion: str | None,
    confidence: float = 0.75,
    *,
    text: str = "words",
    speaker: str | None = None,
    face: str = "neutral",
) -> PredictedUtterance:
    """emotion None: nothing was there to predict from."""
    prediction = None
    if emotion is not None:
        sentiment = SENTIMENT_OF[emotion]
        prediction = Prediction(
            emotion=head(EMOTIONS, emotion, confidence),
            sentiment=head(SENTIMENTS, sentiment, confidence),
            parts=(
                Part(
                    modality="text",
                    support=0.9,
                    share=0.75,
                    alone=Alone(emotion=emotion, sentiment=sentiment),
                ),
                Part(
                    modality="video",
                    support=-0.3,
                    share=0.25,
                    alone=Alone(emotion="joy", sentiment=face),
                ),
            ),
        )
    return PredictedUtterance(
        number=number,
        spoken=SpokenSpan(
            span=MediaSpan(start_ms=start_ms, end_ms=end_ms),
            text=text,
            text_source="subtitles",
            speaker=speaker,
        ),
        prediction=prediction,
        missing={"audio": "the file has no sound"},
    )


def timeline(*utterances: PredictedUtterance) -> Timeline:
    return Timeline(
        media=MediaDescription(file="talk.mp4", duration_ms=60_000, sha256="0" * 64),
        model=ModelDescription(
            name="planted",
            fingerprint="1" * 64,
            recipe="2" * 64,
            modalities=("text", "video", "audio"),
        ),
        segmentation=Segmentation(source="subtitles", file="talk.srt"),
        utterances=utterances,
    )


@pytest.fixture
def planted() -> Timeline:
    return timeline(
        predicted(1, 0, 1000, "joy", 0.5, speaker="Joey", text="A <b> & --> c"),
        predicted(2, 1000, 4000, "neutral", 0.9, speaker="Ross"),
        predicted(3, 5000, 6001, "anger", 0.8, speaker="Ross", face="positive"),
        predicted(4, 7000, 8000, None),
        predicted(5, 3_600_000, 3_601_000, "joy", 0.6),
    )


def test_the_json_is_what_its_schema_says(planted: Timeline) -> None:
    written = json.loads(planted.to_json())
    jsonschema.validate(written, json.loads(SCHEMA_FILE.read_text()))
    assert written["utterances"][2]["emotion"]["probabilities"]["anger"] == 0.8
    assert written["utterances"][2]["modalities"] == {
        "text": {
            "present": True,
            "share": 0.75,
            "support": 0.9,
            "alone": {"emotion": "anger", "sentiment": "negative"},
        },
        "video": {
            "present": True,
            "share": 0.25,
            "support": -0.3,
            "alone": {"emotion": "joy", "sentiment": "positive"},
        },
        "audio": {"present": False, "reason": "the file has no sound"},
    }


def test_a_field_of_another_kind_does_not_pass_the_schema(planted: Timeline) -> None:
    written = json.loads(planted.to_json())
    written["utterances"][0]["start_ms"] = 0.5
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, json.loads(SCHEMA_FILE.read_text()))


def test_an_utterance_without_a_prediction_is_a_row_with_its_reason(planted: Timeline) -> None:
    failed = json.loads(planted.to_json())["utterances"][3]
    assert failed["emotion"] is None
    assert failed["error"] == "nothing to predict from (audio: the file has no sound)"
    assert planted.num_failed == planted.summary.num_failed == 1


def test_the_summary_counts_time_and_not_utterances(planted: Timeline) -> None:
    summary = planted.summary
    assert summary.shares.spoken_ms == 1000 + 3000 + 1001 + 1000
    assert summary.shares.sentiment["neutral"] == pytest.approx(3000 / 6001)
    assert summary.speakers["Ross"].emotion["anger"] == pytest.approx(1001 / 4001)
    assert sum(summary.shares.emotion.values()) == pytest.approx(1)
    assert summary.moments == ("u0003", "u0005", "u0001")  # 0.8, 0.6, 0.5; neutral is none
    assert summary.turns == ("u0003", "u0005")  # neutral ones between do not matter
    assert summary.divided == ("u0003",)  # the words are angry and the face is glad


def test_nothing_said_is_a_timeline_too() -> None:
    written = json.loads(timeline().to_json())
    jsonschema.validate(written, json.loads(SCHEMA_FILE.read_text()))
    assert written["summary"]["spoken_ms"] == 0


def test_csv_and_json_say_the_same(planted: Timeline) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(planted))))
    assert list(rows[0]) == list(CSV_COLUMNS)
    for row, told in zip(rows, json.loads(planted.to_json())["utterances"], strict=True):
        assert (row["id"], int(row["start_ms"]), int(row["end_ms"]), row["text"]) == (
            told["id"],
            told["start_ms"],
            told["end_ms"],
            told["text"],
        )
        if told["emotion"] is None:
            assert row["emotion"] == row["emotion_joy"] == ""
            assert row["error"] == told["error"]
        else:
            assert row["emotion"] == told["emotion"]["label"]
            for name in EMOTIONS:
                assert float(row[f"emotion_{name}"]) == told["emotion"]["probabilities"][name]
            assert float(row["video_share"]) == told["modalities"]["video"]["share"]
        assert row["audio_present"] == "false"


@pytest.mark.parametrize("write", [to_srt, to_vtt])
def test_subtitles_have_the_times_and_words_of_the_json_for_another_reader(
    planted: Timeline, write: object
) -> None:
    text = write(planted)  # type: ignore[operator]
    read = pysubs2.SSAFile.from_string(text, keep_unknown_html_tags=True)
    spans = [each.spoken.span for each in planted.utterances]
    assert [(cue.start, cue.end) for cue in read] == [(s.start_ms, s.end_ms) for s in spans]
    assert "[anger 80 %] Ross: words" in text
    assert "[no prediction] words" in text


def test_words_cannot_break_out_of_a_cue(planted: Timeline) -> None:
    assert to_vtt(planted).count("-->") == to_srt(planted).count("-->") == 5
    assert "A &lt;b&gt; &amp; --&gt; c" in to_vtt(planted)


def test_a_clock_shows_hours_and_milliseconds() -> None:
    assert clock(3_723_004) == "01:02:03.004"
    assert re.fullmatch(r"\d+:\d\d:\d\d,\d\d\d", clock(360_000_000, ","))
