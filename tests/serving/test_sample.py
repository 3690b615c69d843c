"""The sample that the page offers: the talk of `pipeline/sample/talk.py`, as the package carries
it."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.decode.process import HERE
from pipeline.sample.plan import SPEAKERS
from pipeline.sample.talk import LINES
from tests.serving.answers import wait_for

if TYPE_CHECKING:
    from starlette.testclient import TestClient

SAMPLE = Path(__file__).parents[2] / "pipeline" / "sample" / "talk.mp4"


def test_the_sample_is_small_and_has_video_audio_and_subtitles() -> None:
    assert SAMPLE.stat().st_size < 250_000
    length = HERE.measure(SAMPLE)
    assert length.modalities == ("video", "audio")
    assert length.duration_ms == pytest.approx(15_000, abs=1000)
    [track] = HERE.subtitles(SAMPLE)
    assert [cue.text for cue in track.cues] == [
        f"{SPEAKERS[speaker].upper()}: {text}" for speaker, text, *_ in LINES
    ]


@pytest.mark.heavy
def test_the_service_offers_it_and_predicts_its_emotions(client: "TestClient") -> None:
    offered = client.get("/page/sample.mp4")
    assert (offered.headers["content-type"], offered.content) == ("video/mp4", SAMPLE.read_bytes())
    files = {"media": ("sample.mp4", offered.content, "video/mp4")}
    answer = client.post("/v1/jobs", files=files)
    wait_for(client, answer)
    told = client.get(f"{answer.headers['Location']}/timeline").json()["utterances"]
    assert [each["text"] for each in told] == [text for _, text, *_ in LINES]
    assert told[0]["emotion"]["label"] == "joy"
