"""`POST /v1/predict`: a short clip, whose timeline is the answer."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.media import grey, write_clip
from tests.serving.answers import problem, stored, wait_for
from tests.serving.conftest import HOME, SRT
from tests.serving.stand_in import DIES, StandIn, submit

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from serving.admission import Admission
    from serving.dispatch import Dispatcher
    from serving.jobs import JobStore
    from serving.serve import Service

Send = Callable[..., Any]

VIDEO = {"Content-Type": "video/mp4"}


@pytest.mark.heavy
def test_the_answer_is_the_timeline_of_a_job_and_nothing_is_kept(
    client: "TestClient", service: "Service", send: Send, clip: Path
) -> None:
    job = send(subtitles=SRT)
    wait_for(client, job)
    wanted = client.get(f"{job.headers['Location']}/timeline").json()
    before = stored(service)
    files = {
        "media": ("talk.mp4", clip.read_bytes(), "video/mp4"),
        "subtitles": ("talk.srt", SRT.encode(), "application/x-subrip"),
    }
    answer = client.post("/v1/predict", files=files)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == wanted
    raw = client.post(
        "/v1/predict?text=Hello&filename=a.mp4", content=clip.read_bytes(), headers=VIDEO
    )
    assert raw.json()["media"]["file"] == "a.mp4"
    assert [each["text"] for each in raw.json()["utterances"]] == ["Hello"]
    assert stored(service) == before


@pytest.mark.heavy
def test_what_is_too_large_or_too_long_is_refused(
    client: "TestClient", service: "Service", tmp_path: Path
) -> None:
    before = stored(service)
    large = client.post("/v1/predict", content=b"x" * (2**19 + 1), headers=VIDEO)
    assert problem(large) == (413, "too_large")
    long = write_clip(
        tmp_path / "long.mp4", num_frames=100, picture=lambda number: grey(number % 50)
    )
    lasts = client.post("/v1/predict?text=Hi", content=long.read_bytes(), headers=VIDEO)
    assert problem(lasts) == (413, "too_large")
    assert lasts.json()["detail"] == (
        "media lasts 4 s; 3 s are the most that is answered at once; send it as a job"
    )
    assert problem(client.post("/v1/predict", content=b"no media", headers=VIDEO))[0] == 422
    other = client.post("/v1/predict", content=b"x", headers={"Content-Type": "text/html"})
    assert problem(other) == (415, "wrong_kind")
    assert stored(service) == before


@pytest.mark.heavy
def test_why_it_failed_is_the_answer(client: "TestClient", service: "Service", clip: Path) -> None:
    before = stored(service)
    files = {
        "media": ("talk.mp4", clip.read_bytes(), "video/mp4"),
        "subtitles": ("talk.srt", b"these are no subtitles", "application/x-subrip"),
    }
    answer = client.post("/v1/predict", files=files)
    assert problem(answer) == (422, "input_error")
    assert answer.json()["detail"].startswith("talk.srt: ")
    assert stored(service) == before


# ------------------------------------------------------------------- with a worker that stands in


@pytest.fixture
def app(start_app: Callable[..., "Admission"]) -> "Admission":
    return start_app(predict_wait_s=0.2)


@pytest.fixture
def clip_client(app: "Admission") -> "TestClient":
    from starlette.testclient import TestClient

    return TestClient(app, base_url=HOME)


def folders(store: "JobStore") -> list[str]:
    root = store.folder("x").path.parents[1]
    return [path.name for part in ("jobs", "incoming") for path in (root / part).iterdir()]


def test_a_clip_that_cannot_be_begun_in_time_is_refused_with_a_time(
    clip_client: "TestClient", dispatcher: "Dispatcher", store: "JobStore", clip: Path
) -> None:
    StandIn.gate.clear()
    running = submit(dispatcher, store, seconds=100)
    refused = clip_client.post("/v1/predict?text=Hi", content=clip.read_bytes(), headers=VIDEO)
    assert problem(refused) == (503, "busy")
    assert "within 0.2 s" in refused.json()["detail"]
    assert refused.headers["Retry-After"] == "30"  # of 100 s, at 0.3 s of work for each
    assert folders(store) == [running]
    StandIn.gate.set()
    later = clip_client.post("/v1/predict?text=Hi", content=clip.read_bytes(), headers=VIDEO)
    assert later.json() == {"of": StandIn.worked_on[-1]}
    assert folders(store) == [running]


@pytest.mark.heavy
def test_a_full_queue_refuses_before_the_body(
    clip_client: "TestClient", dispatcher: "Dispatcher", clip: Path
) -> None:
    places = [dispatcher.hold_place() for _ in range(2)]
    refused = clip_client.post("/v1/predict?text=Hi", content=clip.read_bytes(), headers=VIDEO)
    assert problem(refused) == (503, "busy")
    for place in places:
        place.release()


def test_a_worker_that_dies_on_it_is_replaced_once_and_then_told_of(
    clip_client: "TestClient", store: "JobStore", clip: Path
) -> None:
    StandIn.plan = [DIES]
    once = clip_client.post("/v1/predict?text=Hi", content=clip.read_bytes(), headers=VIDEO)
    assert once.status_code == 200
    StandIn.plan = [DIES, DIES]
    twice = clip_client.post("/v1/predict?text=Hi", content=clip.read_bytes(), headers=VIDEO)
    assert problem(twice) == (500, "meld_error")
    assert folders(store) == []


def upload_to(path: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    """A request, without a socket."""
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"text=Hi",
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"localhost"), (b"content-type", b"video/mp4"), *headers],
    }


def test_a_client_that_goes_away_cancels_it(
    app: "Admission", dispatcher: "Dispatcher", store: "JobStore", clip: Path
) -> None:
    StandIn.gate.clear()
    sent: list[Any] = []

    async def ask() -> None:
        bodies = [{"type": "http.request", "body": clip.read_bytes(), "more_body": False}]

        async def receive() -> Any:
            if bodies:
                return bodies.pop()
            while not StandIn.worked_on:  # it goes once its clip is worked on
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await asyncio.wait_for(app(upload_to("/v1/predict"), receive, send), 20)

    asyncio.run(ask())
    assert len(StandIn.worked_on) == 1
    assert folders(store) == []
    assert not any(b"timeline" in json.dumps(str(each)).encode() for each in sent)
    assert [each["status"] for each in sent if "status" in each] == [400]  # which nobody reads
    assert dispatcher.metrics.render().count(b'outcome="cancelled"} 1.0') == 1


@pytest.mark.parametrize("headers", [[], [(b"idempotency-key", b"monday-1")]])
def test_a_job_whose_client_went_before_its_answer_is_kept_only_if_it_can_be_asked_for(
    app: "Admission", store: "JobStore", clip: Path, headers: list[tuple[bytes, bytes]]
) -> None:
    """As the page's does, whose visitor cancels."""
    StandIn.gate.clear()
    statuses: list[int] = []
    messages = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": clip.read_bytes(), "more_body": False},
    ]

    async def receive() -> Any:
        return messages.pop()

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    asyncio.run(app(upload_to("/v1/jobs", *headers), receive, send))
    assert (len(folders(store)), statuses) == ((1, [202]) if headers else (0, [400]))
