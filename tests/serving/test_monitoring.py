"""What those who run a service see of it: request ids, the log, and figures for monitoring."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving.answers import (
    await_rest,
    problem,
    wait_for,
    wait_until,
    with_key,
    worker_stands_still,
)

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from serving.serve import Service

Send = Callable[..., Any]

pytestmark = pytest.mark.heavy  # its worker is a process

OWN_ID = re.compile(r"[0-9a-f]{32}")


class Lines(logging.Handler):
    """What the log says while it is said: lines for people, and objects."""

    def __init__(self) -> None:
        super().__init__()
        from serving.logs import JsonLines

        self.setFormatter(JsonLines())
        self.plain: list[str] = []
        self.objects: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.plain.append(record.getMessage())
        self.objects.append(json.loads(self.format(record)))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["event"] == event]


@pytest.fixture
def log(service: "Service") -> Iterator[Lines]:
    await_rest(service)
    lines, logger = Lines(), logging.getLogger("serving")
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(before)
    logger.removeHandler(lines)


@pytest.fixture
def read(client: "TestClient", service: "Service") -> Callable[..., float]:
    """One figure: read("meld_jobs", state="queued")."""
    await_rest(service)
    from prometheus_client.parser import text_string_to_metric_families

    def find(name: str, **labels: str) -> float:
        families = text_string_to_metric_families(client.get("/metrics").text)
        for sample in (sample for family in families for sample in family.samples):
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
        return 0.0

    return find


# ------------------------------------------------------------------------------------ request ids


def test_every_answer_has_the_id_of_its_request(client: "TestClient") -> None:
    for path in ("/", "/livez", "/v1/model", "/v1/nothing", "/v1/jobs/0", "/page/start.js"):
        assert OWN_ID.fullmatch(client.get(path).headers["X-Request-Id"]), path
    first, second = (client.get("/livez").headers["X-Request-Id"] for _ in range(2))
    assert first != second


def test_a_clients_own_id_comes_back_and_stands_in_the_problem(client: "TestClient") -> None:
    headers = {"X-Request-Id": "monday-1.2_3"}
    assert client.get("/livez", headers=headers).headers["X-Request-Id"] == "monday-1.2_3"
    refused = client.get("/v1/jobs/0", headers=headers)
    assert problem(refused) == (404, "no_such_job")
    assert refused.json()["request_id"] == "monday-1.2_3"
    before_the_body = client.post("/v1/jobs", headers=headers, content=b"x")
    assert problem(before_the_body) == (415, "wrong_kind")
    assert before_the_body.json()["request_id"] == "monday-1.2_3"


@pytest.mark.parametrize("said", ["", "a b", "x" * 65, "a\tb", "<script>", "-x", "é"])
def test_an_id_that_is_not_short_and_plain_is_not_taken(client: "TestClient", said: str) -> None:
    answer = client.get("/livez", headers={"X-Request-Id": said.encode()})
    assert OWN_ID.fullmatch(answer.headers["X-Request-Id"])


# --------------------------------------------------------------------------------------- the log


def test_requests_and_jobs_are_in_the_log_by_their_ids(
    client: "TestClient", send: Send, log: Lines
) -> None:
    answer = send(text="Hello")
    job = wait_for(client, answer)
    [sent] = [each for each in log.of("request") if each["method"] == "POST"]
    assert (sent["route"], sent["status"]) == ("/v1/jobs", 202)
    assert sent["request"] == answer.headers["X-Request-Id"]
    [accepted] = log.of("job_accepted")
    assert accepted["request"] == sent["request"]
    assert (accepted["job"], accepted["media_s"]) == (job["id"], job["duration_s"])
    wait_until(lambda: log.of("job_ended"))  # a moment after it can be seen
    [ended] = log.of("job_ended")
    assert (ended["job"], ended["outcome"]) == (job["id"], "succeeded")
    asked = log.of("request")[-1]
    assert (asked["route"], asked["job"]) == ("/v1/jobs/{job_id}", job["id"])


def test_the_log_has_no_names_no_words_and_no_keys(
    client: "TestClient", service: "Service", send: Send, log: Lines
) -> None:
    key = "secret-key-of-this-service"
    wait_for(client, send(text="secret words", name="secret-name.mp4"))
    wait_for(client, send(subtitles="secret: no subtitles", name="secret-name.mp4"))
    client.post("/v1/text", json={"turns": [{"text": "secret words", "speaker": "secret one"}]})
    client.get("/secret-name.mp4?key=secret")
    client.get("/v1/jobs/secret-id?text=secret")
    client.request("SECRET", "/livez", headers={"X-Request-Id": "secret id"})
    client.post("/v1/jobs?filename=secret.mp4", content=b"secret" * 99, headers=VIDEO)
    with with_key(service, key) as locked:
        assert locked.get("/v1/model", headers={"Authorization": f"Bearer {key}"}).is_success
        locked.get("/v1/model", headers={"Authorization": "Bearer secret"})
    assert {each["event"] for each in log.objects} >= {"request", "job_accepted", "job_ended"}
    for line in [*log.plain, *map(json.dumps, log.objects)]:
        assert "secret" not in line.lower()


VIDEO = {"Content-Type": "video/mp4"}


def test_a_bug_is_one_line_with_its_traceback() -> None:
    from serving.logs import JsonLines

    try:
        raise RuntimeError("broken\nin two")
    except RuntimeError as error:
        caught = (RuntimeError, error, error.__traceback__)
    record = logging.LogRecord("uvicorn", 40, "f.py", 1, "it is %s", ("broken",), caught)
    line = JsonLines().format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert (said["event"], said["text"], said["level"]) == ("message", "it is broken", "error")
    assert said["exception"].endswith("RuntimeError: broken\nin two")


# --------------------------------------------------------------------------------------- figures


def grow_by(read: Callable[[], list[float]], before: list[float], by: list[float]) -> None:
    """Soon: a job is counted a moment after its end can be seen."""
    deadline = time.monotonic() + 30
    while True:
        grown = [after - was for after, was in zip(read(), before, strict=True)]
        if grown == pytest.approx(by) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert grown == pytest.approx(by)


def test_a_job_that_succeeds_is_counted_with_its_media_its_bytes_and_its_stages(
    client: "TestClient", send: Send, clip: Path, read: Callable[..., float]
) -> None:
    names = ("meld_media_seconds_total", "meld_upload_bytes_total")
    # Its words alone are read: nothing is decoded.
    stages = ("receiving", "measuring", "predicting", "encoding", "fusing")

    def all_of_it() -> list[float]:
        return [
            read("meld_jobs_finished_total", outcome="succeeded"),
            read("meld_jobs", state="succeeded"),
            read("meld_queue_wait_seconds_count"),
            *(read("meld_stage_seconds_count", stage=stage) for stage in stages),
            *map(read, names),
        ]

    before = all_of_it()
    answer = send(text="Hello")
    job = wait_for(client, answer)
    size = int(answer.request.headers["Content-Length"])
    assert size > clip.stat().st_size
    grow_by(all_of_it, before, [*[1] * 8, job["duration_s"], size])


def test_failed_and_cancelled_jobs_and_refusals_are_counted_by_reason(
    client: "TestClient", service: "Service", send: Send, read: Callable[..., float]
) -> None:
    def all_of_it() -> list[float]:
        reasons = ("wrong_kind", "no_such_job", "busy")
        return [
            *(read("meld_jobs_finished_total", outcome=name) for name in ("failed", "cancelled")),
            *(read("meld_requests_refused_total", reason=reason) for reason in reasons),
        ]

    before = all_of_it()
    wait_for(client, send(subtitles="these are no subtitles"))
    with worker_stands_still(service):
        begun, unfinished = (send(text="Hello").headers["Location"] for _ in range(2))
        wait_until(lambda: client.get(begun).json()["state"] == "running")
        client.delete(unfinished)
    client.post("/v1/jobs", content=b"x", headers={"Content-Type": "text/html"})
    client.get("/v1/jobs/0")
    places = [service.dispatcher.hold_place() for _ in range(3)]
    assert send(text="Hi").status_code == 503
    for place in places:
        place.release()
    grow_by(all_of_it, before, [1, 1, 1, 1, 1])


def test_what_a_modality_lacks_is_counted_by_a_stable_word(
    client: "TestClient", send: Send, read: Callable[..., float]
) -> None:
    cues = "1\n00:00:00,000 --> 00:00:01,000\n♪\n\n2\n00:00:01,000 --> 00:00:02,000\nHello!\n"
    before = read("meld_modalities_lost_total", modality="text")
    answer = send(subtitles=cues)
    wait_for(client, answer)
    utterances = client.get(f"{answer.headers['Location']}/timeline").json()["utterances"]
    lost = sum(not each["modalities"]["text"]["present"] for each in utterances)
    grow_by(lambda: [read("meld_modalities_lost_total", modality="text")], [before], [lost])


def test_figures_say_what_serves_and_every_state_and_outcome_is_there_from_the_start(
    client: "TestClient", service: "Service", read: Callable[..., float]
) -> None:
    model = client.get("/v1/model").json()
    assert read("meld_build_info", model=model["name"], bundle=model["fingerprint"]) == 1
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    for state in ("queued", "running", "succeeded", "failed"):
        assert f'meld_jobs{{state="{state}"}}' in answer.text
    for outcome in ("succeeded", "failed", "cancelled"):
        assert f'meld_jobs_finished_total{{outcome="{outcome}"}}' in answer.text


def test_figures_need_the_key_where_there_is_one(service: "Service") -> None:
    with with_key(service, "a-long-and-secret-key") as client:
        assert problem(client.get("/metrics")) == (401, "unauthorised")
        headers = {"Authorization": "Bearer a-long-and-secret-key"}
        assert client.get("/metrics", headers=headers).status_code == 200
