"""The service on a local Ray: two services behind one front, asked as any other."""

import os
import signal
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.media import tone, write_clip
from tests.serving.conftest import SRT

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("aiohttp_cors", reason="ray[serve] is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray-serve")


@pytest.fixture(scope="module")
def front(folder: Path, minilm_folder: Path) -> Iterator[Any]:
    """A client of the front."""
    import httpx2
    import ray
    from ray import serve

    from serving.ray_serve import Settings, build

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        settings = Settings(
            num_shards=2,
            data_dir=folder,
            without_key=True,
            config={"limits": {"queued_jobs": 1, "predict_bytes": 2**19}},
        )
        serve.run(build(settings), name="meld", route_prefix="/")
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("media") / "talk.mp4"
    return write_clip(path, num_frames=50, sound=tone([440, 660])).read_bytes()


Send = Callable[..., Any]


@pytest.fixture
def send(front: Any, media: bytes) -> Send:
    def post(**headers: str) -> Any:
        files = {
            "media": ("talk.mp4", media, "video/mp4"),
            "subtitles": ("talk.srt", SRT.encode(), "application/x-subrip"),
        }
        return front.post("/v1/jobs", files=files, headers=headers)

    return post


def ended(front: Any, job: Any) -> Any:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        told = front.get(f"/v1/jobs/{job['id']}")
        if told.status_code == 200 and told.json()["state"] in ("succeeded", "failed"):
            return told.json()
        time.sleep(0.2)
    raise AssertionError(told.text)


def test_each_job_is_found_where_it_was_accepted_and_both_services_get_some(
    front: Any, send: Send, folder: Path
) -> None:
    jobs = [send().json() for _ in range(4)]
    assert {ended(front, job)["state"] for job in jobs} == {"succeeded"}
    by_service = [{each.name for each in (folder / name / "jobs").iterdir()} for name in "01"]
    assert by_service[0] | by_service[1] == {job["id"] for job in jobs}
    assert all(by_service)
    timelines = [front.get(f"/v1/jobs/{job['id']}/timeline").json() for job in jobs]
    assert all(each["utterances"] == timelines[0]["utterances"] for each in timelines)
    with front.stream("GET", f"/v1/jobs/{jobs[0]['id']}/events") as events:
        told = "".join(events.iter_text())
    assert told.count("event: utterance") == 2
    assert "event: end" in told
    part = front.get(f"/v1/jobs/{jobs[0]['id']}/media", headers={"Range": "bytes=0-99"})
    assert (part.status_code, len(part.content)) == (206, 100)
    for job in jobs:
        assert front.delete(f"/v1/jobs/{job['id']}").status_code == 204
        assert front.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_words_clips_and_the_page_are_answered(front: Any, media: bytes) -> None:
    assert front.get("/livez").status_code == front.get("/readyz").status_code == 200
    assert front.get("/services/1/readyz").status_code == 200
    assert "meld_jobs" in front.get("/services/0/metrics").text
    assert front.get("/metrics").status_code == 400
    assert front.get("/").text.startswith("<!doctype html>")
    read = front.post("/v1/text", json={"turns": [{"text": "Oh my God!"}]})
    assert len(read.json()["utterances"]) == 1
    kind = {"Content-Type": "video/mp4"}
    clip = front.post("/v1/predict", params={"text": "Hi"}, content=media, headers=kind)
    assert clip.status_code == 200, clip.text
    assert (
        front.post("/v1/predict", content=b"x", headers={"Content-Type": "a/b"}).status_code == 415
    )


def test_an_upload_sent_again_is_the_same_job(front: Any, send: Send) -> None:
    first, again = (send(**{"Idempotency-Key": "an-upload-of-mine"}).json() for _ in range(2))
    assert first["id"] == again["id"]
    ended(front, first)


def test_a_killed_replica_is_replaced_and_its_job_goes_on(front: Any, send: Send) -> None:
    """While one is away, the other takes what is new."""
    import ray
    from ray import serve

    job = send().json()
    owner = zlib.crc32(job["id"].encode()) % 2
    handle = serve.get_deployment_handle(f"service-{owner}", app_name="meld")
    os.kill(handle.pid.remote().result(), signal.SIGKILL)
    new = send()
    assert new.status_code == 202, new.text
    assert ended(front, job)["state"] == "succeeded"
    assert ended(front, new.json())["state"] == "succeeded"
    assert ray.is_initialized()
