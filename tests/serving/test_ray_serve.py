"""The service on a local Ray: two services behind one front, asked as any other."""

import json
import os
import re
import signal
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.fusion.inference.planted import plant_speech
from tests.media import tone, write_clip
from tests.serving.conftest import SRT

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("aiohttp_cors", reason="ray[serve] is not installed")
pytest.importorskip("websockets", reason="the extra serve is not installed")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync import client

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
    """While its service is away it is 503, with the time to ask again, and nothing else."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        told = front.get(f"/v1/jobs/{job['id']}")
        if told.status_code == 200 and told.json()["state"] in ("succeeded", "failed"):
            return told.json()
        if told.status_code != 200:
            assert (told.status_code, told.json()["code"]) == (503, "busy"), told.text
            assert int(told.headers["retry-after"]) > 0
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

    job = send().json()
    owner = zlib.crc32(job["id"].encode()) % 2
    os.kill(process_of(owner), signal.SIGKILL)
    new = send()
    assert new.status_code == 202, new.text
    assert ended(front, job)["state"] == "succeeded"
    assert ended(front, new.json())["state"] == "succeeded"
    assert ray.is_initialized()


def test_an_upload_whose_service_is_lost_may_be_sent_again(front: Any, media: bytes) -> None:
    """It is told so, and nobody who asks the other service notices."""
    key = "its-service-ends"
    owner = zlib.crc32(key.encode().hex().encode()) % 2
    pid = process_of(owner)

    def body() -> Iterator[bytes]:
        yield media[:1000]
        os.kill(pid, signal.SIGKILL)
        yield media[1000:]

    headers = {"Content-Type": "video/mp4", "Idempotency-Key": key}
    lost = front.post("/v1/jobs?text=Hi", content=body(), headers=headers)
    assert (lost.status_code, lost.json()["code"]) == (503, "busy"), lost.text
    assert "retry-after" in lost.headers
    assert front.get(f"/services/{1 - owner}/readyz").status_code == 200
    deadline = time.monotonic() + 120
    while (again := front.post("/v1/jobs?text=Hi", content=media, headers=headers)).status_code:
        if again.status_code != 503 or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert again.status_code == 202, again.text
    assert ended(front, again.json())["state"] == "succeeded"


# --------------------------------------------------------------------------------- live sessions


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    parts = (1_500, "Where is the dog?", 1_200, "What did you say to him yesterday evening?", 1_000)
    planted = plant_speech(tmp_path_factory.mktemp("talk") / "talk.wav", parts)
    return planted.samples().astype("<i2").tobytes()


def test_a_live_session_is_that_of_the_service_that_gave_its_ticket(
    front: Any, talk: bytes
) -> None:
    """Tickets are given by turns; that of one service is worth nothing at the other."""
    before = [num_sessions(front, number) for number in (0, 1)]
    for _ in range(2):
        ticket = front.post("/v1/live/tickets").json()
        with client.connect(socket_of(front), subprotocols=ticket["protocols"]) as session:
            session.send('{"type": "session.update"}')
            told = []
            while not told or told[-1]["type"] != "session.updated":
                told.append(json.loads(session.recv(timeout=60)))
            for at in range(0, len(talk), 3200):
                session.send(b"\x01" + talk[at : at + 3200])
            session.send('{"type": "session.close"}')
            told += rest(session)
        finals = [each for each in told if each["type"] == "measurement.result" and each["final"]]
        assert [each["utterance"]["text"] for each in finals] == [
            "Where is the dog?",
            "What did you say to him yesterday evening?",
        ]
        assert told[-1]["reason"] == "client"
        assert (session.close_code, session.close_reason) == (1000, "client")
    after = [num_sessions(front, number) for number in (0, 1)]
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1]


def test_nobody_comes_in_without_a_ticket_and_a_wrong_message_is_refused_by_its_code(
    front: Any,
) -> None:
    protocols = ["meld.live.v1", "meld.ticket.of-my-own"]
    with pytest.raises(InvalidStatus) as refused:
        client.connect(socket_of(front), subprotocols=protocols)  # type: ignore[arg-type]
    assert refused.value.response.status_code in (401, 403)
    ticket = front.post("/v1/live/tickets").json()
    with client.connect(socket_of(front), subprotocols=ticket["protocols"]) as session:
        session.send(b"\x07")
        assert rest(session)[-1]["reason"] == "refused"
    assert session.close_code == 1008


def rest(session: Any) -> list[Any]:
    """What comes until it is closed."""
    told = []
    with suppress(ConnectionClosed):
        while True:
            told.append(json.loads(session.recv(timeout=60)))
    return told


def socket_of(front: Any) -> str:
    return f"ws://{front.base_url.netloc.decode()}/v1/live"


def num_sessions(front: Any, service: int) -> int:
    """That were ended by their clients."""
    figures = front.get(f"/services/{service}/metrics").text
    found = re.search(r'^meld_live_ended_total\{reason="client"\} (\S+)$', figures, re.MULTILINE)
    return 0 if found is None else round(float(found[1]))


def process_of(service: int) -> int:
    from ray import serve

    handle = serve.get_deployment_handle(f"service-{service}", app_name="meld")
    pid: int = handle.pid.remote().result()
    return pid
