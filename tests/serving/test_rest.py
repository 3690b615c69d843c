"""The service over HTTP, in this process but for its worker: what clients get, and what they are
refused."""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from serving.config import Limits, LiveLimits, ServeConfig
from serving.jobs import Job, JobError
from serving.page import render_start
from tests.conftest import Meld
from tests.media import write_clip
from tests.serving.answers import (
    await_rest,
    children,
    events,
    problem,
    stored,
    wait_for,
    with_key,
)
from tests.serving.conftest import HOME, SRT

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from serving.serve import Service

Send = Callable[..., Any]

pytestmark = pytest.mark.heavy  # its worker is a process


# ------------------------------------------------------------------------------ what clients get


def test_a_clip_with_subtitles_has_the_timeline_that_meld_predict_writes(
    client: "TestClient", send: Send, clip: Path, tmp_path: Path, meld: Meld
) -> None:
    (tmp_path / "talk.srt").write_text(SRT)
    options = ("--subtitles", tmp_path / "talk.srt", "--format", "json,csv,srt,vtt")
    assert meld("predict", clip, *options, "--out", tmp_path / "out").status == 0
    answer = send(subtitles=SRT)
    assert wait_for(client, answer)["state"] == "succeeded"
    address = answer.headers["Location"]
    for name in ("json", "csv", "srt", "vtt"):
        given = client.get(f"{address}/timeline", params={"format": name})
        wanted = (tmp_path / "out" / f"talk.mp4.meld.{name}").read_text()
        assert given.text == wanted


def test_utterances_come_as_events_and_a_client_that_was_cut_off_gets_the_rest(
    client: "TestClient", send: Send
) -> None:
    address = send(subtitles=SRT).headers["Location"]
    every = events(client, address)
    told = [each for each in every if each["event"] == "utterance"]
    assert [each["id"] for each in told] == ["1", "2"]
    assert [json.loads(each["data"])["text"] for each in told] == [
        "I am so happy for you!",
        "Get out of here, now!",
    ]
    assert every[-1]["event"] == "end"
    assert json.loads(every[-1]["data"])["state"] == "succeeded"
    timeline = client.get(f"{address}/timeline").json()
    assert [json.loads(each["data"]) for each in told] == timeline["utterances"]

    rest = events(client, address, **{"Last-Event-ID": "1"})
    assert [(each["event"], each.get("id")) for each in rest] == [("utterance", "2"), ("end", None)]
    for strange in ("9" * 5000, "-1", "1.5", "u0001"):  # no id of ours: it gets all of them
        assert events(client, address, **{"Last-Event-ID": strange})[0].get("id") == "1", strange


def test_a_raw_body_with_its_words_in_the_address_is_one_utterance(
    client: "TestClient", clip: Path
) -> None:
    answer = client.post(
        "/v1/jobs",
        params={"filename": "../../etc/my talk.mp4", "text": "I hate this!"},
        content=clip.read_bytes(),
        headers={"Content-Type": "video/mp4"},
    )
    job = wait_for(client, answer)
    assert (job["file"], job["num_bytes"]) == ("my talk.mp4", clip.stat().st_size)
    assert job["duration_s"] == pytest.approx(2, abs=0.1)
    timeline = client.get(f"{answer.headers['Location']}/timeline").json()
    assert timeline["media"]["file"] == "my talk.mp4"
    assert [each["text"] for each in timeline["utterances"]] == ["I hate this!"]


def test_the_result_page_plays_the_media_by_ranges_and_runs_nothing_of_theirs(
    client: "TestClient", send: Send, clip: Path
) -> None:
    attack = "<script>alert(1)</script>"
    answer = send(text=attack, name=f"{attack}.mp4".replace("/", "_"))
    wait_for(client, answer)
    address = answer.headers["Location"]
    page = client.get(f"{address}/timeline", params={"format": "html"})
    assert 'src="media"' in page.text
    assert "<script>alert" not in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    part = client.get(f"{address}/media", headers={"Range": "bytes=4-11"})
    assert (part.status_code, part.content) == (206, clip.read_bytes()[4:12])
    assert part.headers["content-type"] == "video/mp4"
    assert part.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [("bytes=999999999-", 416, "wrong_range"), ("bytes=9-1", 400, "usage_error")],
)
def test_a_range_that_the_media_do_not_have_is_a_problem_like_any_other(
    client: "TestClient", send: Send, clip: Path, asked: str, status: int, code: str
) -> None:
    answer = send(text="Yes.")
    wait_for(client, answer)
    refused = client.get(f"{answer.headers['Location']}/media", headers={"Range": asked})
    assert problem(refused) == (status, code)
    if status == 416:
        assert refused.headers["content-range"] == f"bytes */{clip.stat().st_size}"


def test_a_range_in_a_unit_that_is_not_known_is_ignored(
    client: "TestClient", send: Send, clip: Path
) -> None:
    answer = send(text="Yes.")
    wait_for(client, answer)
    for part in ("media", "timeline"):
        address = f"{answer.headers['Location']}/{part}"
        whole = client.get(address, headers={"Range": "pages=1-2"})
        assert (whole.status_code, whole.content) == (200, client.get(address).content), part
    assert client.get(address, headers={"Range": "Bytes=0-1"}).status_code == 206


def test_a_file_that_was_erased_a_moment_ago_is_no_bug(
    client: "TestClient", service: "Service", send: Send
) -> None:
    answer = send(text="Hello")
    job = wait_for(client, answer)
    service.store.folder(job["id"]).media.unlink()
    gone = client.get(f"{answer.headers['Location']}/media")
    assert problem(gone) == (404, "no_such_job")


def test_words_alone_are_read_at_once_and_as_those_of_a_clip(
    client: "TestClient", send: Send
) -> None:
    turns = [{"text": "I am so happy for you!"}, {"text": "Get out!", "speaker": "Joey"}]
    read = client.post("/v1/text", json={"turns": turns}).json()
    assert [each["speaker"] for each in read["utterances"]] == [None, "Joey"]
    answer = send(text="I am so happy for you!")
    wait_for(client, answer)
    [same] = client.get(f"{answer.headers['Location']}/timeline").json()["utterances"]
    for head in ("emotion", "sentiment"):
        wanted = same[head]["probabilities"]
        assert read["utterances"][0][head]["probabilities"] == pytest.approx(wanted, abs=1e-5)
    assert "2024/1689" in read["notice"]


def test_the_model_tells_what_it_is(client: "TestClient") -> None:
    model = client.get("/v1/model").json()
    assert (model["name"], model["modalities"]) == ("meld-text", ["text"])
    assert len(model["labels"]["emotion"]) == 7
    assert model["card"].lstrip("-\n").startswith(("license", "#")) or "license" in model["card"]


def test_an_erased_job_leaves_nothing_behind(
    client: "TestClient", service: "Service", send: Send
) -> None:
    before = stored(service)
    address = send(subtitles=SRT).headers["Location"]
    assert client.delete(address).status_code == 204  # running, or waiting
    assert stored(service) == before
    for part in ("", "/timeline", "/events", "/media"):
        assert problem(client.get(f"{address}{part}")) == (404, "no_such_job")
    assert problem(client.delete(address)) == (404, "no_such_job")


def test_old_jobs_are_erased_automatically(
    client: "TestClient", service: "Service", send: Send
) -> None:
    answer = send(text="Hello")
    job = wait_for(client, answer)
    service.dispatcher.erase_old(time.time() + 23 * 3600)
    assert client.get(answer.headers["Location"]).status_code == 200
    service.dispatcher.erase_old(time.time() + 25 * 3600)
    assert client.get(answer.headers["Location"]).status_code == 404
    assert not any(job["id"] in path for path in stored(service))


def test_an_upload_that_is_sent_again_is_the_same_job(
    client: "TestClient", service: "Service", clip: Path
) -> None:
    def send_as(key: str) -> Any:
        headers = {"Content-Type": "video/mp4", "Idempotency-Key": key}
        return client.post("/v1/jobs?text=Hi", content=clip.read_bytes(), headers=headers)

    first, again, other = send_as("monday-1"), send_as("monday-1"), send_as("monday-2")
    assert first.headers["Location"] == again.headers["Location"] != other.headers["Location"]
    assert service.store.folder(first.json()["id"]).read().sent_as == "monday-1"
    assert problem(send_as("short")) == (422, "input_error")
    client.delete(first.headers["Location"])
    assert send_as("monday-1").headers["Location"] != first.headers["Location"]


def test_a_clip_without_words_is_heard_first(
    client: "TestClient", service: "Service", send: Send
) -> None:
    pytest.importorskip("faster_whisper", reason="the extra asr is not installed")
    assert client.get("/v1/model").json()["recogniser"] == {"name": "tiny.en", "languages": ["en"]}
    [worker] = service.dispatcher.worker_pids
    before = children(worker, "fusion.inference.whisper")
    answer = send(language="en")  # two tones
    told = events(client, answer.headers["Location"])
    assert json.loads(told[-1]["data"])["state"] == "succeeded"
    timeline = client.get(f"{answer.headers['Location']}/timeline").json()
    assert timeline["segmentation"]["source"] == "speech"
    assert timeline["segmentation"]["speech"]["settings"]["language"] == "en"
    assert timeline["utterances"] == []
    # A process for each file: what it leaks (faster-whisper #1055) ends with it.
    assert children(worker, "fusion.inference.whisper") == before


def test_media_without_sound_or_words_is_told_what_an_upload_can_name(
    client: "TestClient", tmp_path: Path
) -> None:
    pytest.importorskip("faster_whisper", reason="the extra asr is not installed")
    silent = write_clip(tmp_path / "silent.mp4", num_frames=25).read_bytes()
    answer = client.post(
        "/v1/predict?filename=the --end.mp4", content=silent, headers={"Content-Type": "video/mp4"}
    )
    assert problem(answer) == (422, "input_error")
    told = answer.json()["detail"]
    assert told.startswith("the --end.mp4: ")
    assert told.endswith("say where its utterances are: subtitles, or text where it is one")


def test_subtitles_that_have_no_name_are_named_by_their_part(
    client: "TestClient", clip: Path
) -> None:
    """As a browser sends a field of a form in which no file was chosen."""
    body = b"".join(
        b'--B\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n' % part
        for part in ((b"media", b"talk.mp4", clip.read_bytes()), (b"subtitles", b"", b""))
    )
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    answer = client.post("/v1/predict", content=body + b"--B--\r\n", headers=headers)
    assert problem(answer) == (422, "input_error")
    assert answer.json()["detail"].startswith("subtitles: no subtitles of a known kind")


def test_a_bug_is_a_problem_too(service: "Service", monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.testclient import TestClient

    def fail(*_: object) -> None:
        raise RuntimeError("secret words")

    monkeypatch.setattr(service.dispatcher, "read_words", fail)
    client = TestClient(service.app, base_url=HOME, raise_server_exceptions=False)
    answer = client.post("/v1/text", json={"turns": [{"text": "Hi"}]})
    assert problem(answer) == (500, "meld_error")
    assert "secret" not in answer.text


def test_a_method_that_an_address_has_not_is_told_those_that_it_has(client: "TestClient") -> None:
    answer = client.put(f"/v1/jobs/{'0' * 32}")
    assert problem(answer)[0] == 405
    assert answer.headers["allow"] == "DELETE, GET"
    assert client.put("/v1/jobs").headers["allow"] == "POST"


def test_openapi_says_that_words_come_from_one_place(client: "TestClient") -> None:
    described = client.get("/v1/openapi.json").json()["paths"]["/v1/jobs"]["post"]
    form = described["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["not"] == {"required": ["text", "subtitles"]}


def test_it_is_alive_and_ready(client: "TestClient") -> None:
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200


# ------------------------------------------------------------------------- what they are refused


def test_a_file_that_is_no_media_is_refused_when_it_is_sent_and_not_kept(
    client: "TestClient", service: "Service"
) -> None:
    before = stored(service)
    answer = client.post(
        "/v1/jobs?filename=notes.mp4", content=b"hello " * 99, headers={"Content-Type": "video/mp4"}
    )
    assert problem(answer) == (422, "input_error")
    assert "notes.mp4" in answer.json()["detail"]
    assert str(service.store.folder("x").path.parent.parent) not in answer.text
    assert stored(service) == before


def test_a_job_that_fails_says_why_in_the_clients_words(client: "TestClient", send: Send) -> None:
    answer = send(subtitles="these are no subtitles")
    job = wait_for(client, answer)
    assert job["state"] == "failed"
    assert job["error"]["code"] == "input_error"
    assert job["error"]["detail"].startswith("talk.srt: ")
    assert problem(client.get(f"{answer.headers['Location']}/timeline")) == (422, "input_error")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": "Hi", "subtitles": SRT}, "leave one out"),
        ({"text": "Hi", "no_text": "true"}, "leave one of the two out"),
        ({"no_text": "perhaps"}, "true or false"),
        ({"start": "soon"}, "number of seconds"),
        ({"start": "2", "end": "1"}, "after start"),
        ({"asr": "/etc/passwd"}, "known are"),
        ({"no_text": "true"}, "meld-text reads words alone"),
        ({"language": "tlh"}, "language tlh: the service's recogniser knows"),
        ({"language": "en", "text": "Hi"}, "with text no word is"),
        ({"language": "en", "no_text": "true"}, "with no_text no word is"),
    ],
)
def test_options_that_make_no_sense_are_named(
    client: "TestClient", send: Send, options: dict[str, str], said: str
) -> None:
    answer = send(**options)
    assert problem(answer) == (400, "usage_error")
    assert said in answer.json()["detail"]


def test_other_kinds_of_bodies_are_refused(client: "TestClient") -> None:
    for kind in ("text/html", "image/svg+xml", "video/<b>", ""):
        answer = client.post("/v1/jobs", content=b"x", headers={"Content-Type": kind})
        assert problem(answer) == (415, "wrong_kind")


def test_a_body_that_is_too_large_is_refused_by_its_length_or_while_it_comes(
    client: "TestClient", service: "Service"
) -> None:
    before = stored(service)
    large, headers = b"x" * (2**20 + 1), {"Content-Type": "video/mp4"}
    assert problem(client.post("/v1/jobs", content=large, headers=headers)) == (413, "too_large")

    def chunks() -> Iterator[bytes]:
        yield from (large[at : at + 2**16] for at in range(0, len(large), 2**16))

    assert problem(client.post("/v1/jobs", content=chunks(), headers=headers)) == (413, "too_large")
    assert stored(service) == before


def test_a_broken_form_is_refused_and_not_kept(client: "TestClient", service: "Service") -> None:
    before = stored(service)
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for body in (b"", b"no form", b'--b\r\nContent-Disposition: form-data; name="media"\r\n\r\nx'):
        answer = client.post("/v1/jobs", content=body, headers=headers)
        assert problem(answer) == (400, "usage_error")
    assert stored(service) == before


def test_a_full_queue_refuses_before_the_body_and_says_when_to_come_again(
    client: "TestClient", service: "Service", send: Send
) -> None:
    await_rest(service)
    places = [service.dispatcher.hold_place() for _ in range(3)]
    answer = send(text="Hi")
    assert problem(answer) == (503, "busy")
    assert int(answer.headers["Retry-After"]) >= 1
    assert client.get("/readyz").status_code == 200
    for place in places:
        place.release()
    assert send(text="Hi").status_code == 202


def test_places_of_refused_uploads_are_free_again(client: "TestClient", send: Send) -> None:
    for _ in range(5):
        assert send(no_text="perhaps").status_code == 400
    assert send(text="Hi").status_code == 202


def test_other_sites_cannot_use_a_service_without_a_key(
    client: "TestClient", service: "Service"
) -> None:
    """It listens to this machine alone."""
    led_here = client.get("/v1/model", headers={"Host": "evil.example"})
    assert problem(led_here) == (403, "wrong_origin")
    sent_from = client.post(
        "/v1/text", json={"turns": [{"text": "Hi"}]}, headers={"Origin": "https://evil.example"}
    )
    assert problem(sent_from) == (403, "wrong_origin")
    for name, half in (("Host", "[::1"), ("Origin", "http://[::1")):  # of an address of IPv6
        strange = client.post("/v1/text", json={}, headers={name: half})
        assert problem(strange) == (403, "wrong_origin"), name
    own = client.post("/v1/text", json={"turns": [{"text": "Hi"}]}, headers={"Origin": HOME})
    assert own.status_code == 200


def test_wrong_words_are_named(client: "TestClient") -> None:
    for body in ({}, {"turns": []}, {"turns": [{"text": 3}]}, {"turns": [{"words": "Hi"}]}):
        assert problem(client.post("/v1/text", json=body)) == (422, "input_error")
    for content, wanted in (
        (b"", (422, "input_error")),
        (b"{", (422, "input_error")),
        (b'{"turns": [{"text": "\\ud800"}]}', (422, "input_error")),  # half a character
        (b"[" * 10_000, (400, "usage_error")),  # deeper than anything is read
    ):
        headers = {"Content-Type": "application/json"}
        answer = client.post("/v1/text", content=content, headers=headers)
        assert problem(answer) == wanted


def test_an_address_that_is_none_is_a_problem_too(client: "TestClient") -> None:
    assert problem(client.get("/v1/nothing"))[0] == 404
    assert problem(client.get("/v1/jobs/..%2F..%2Fetc"))[0] == 404


# -------------------------------------------------------------------------------------- the key


def test_without_the_key_nothing_of_a_body_is_read(service: "Service") -> None:
    with with_key(service, "a-long-and-secret-key") as client:
        read = 0

        def body() -> Iterator[bytes]:
            nonlocal read
            for _ in range(2**10):
                read += 1
                yield b"x" * 2**10

        headers = {"Content-Type": "video/mp4", "Authorization": "Bearer wrong"}
        answer = client.post("/v1/jobs", content=body(), headers=headers)
        assert problem(answer) == (401, "unauthorised")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert client.get("/v1/jobs/" + "0" * 32).status_code == 401
        assert client.get("/livez").status_code == 200
        assert client.get("/").status_code == 200


def test_the_key_is_sent_with_each_request_or_entered_once_in_a_browser(
    service: "Service",
) -> None:
    key = "a-long-and-secret-key"
    with with_key(service, key) as client:
        assert client.get("/v1/model", headers={"Authorization": f"Bearer {key}"}).is_success
        assert problem(client.post("/v1/session", json={"key": "wrong"})) == (401, "unauthorised")
        entered = client.post("/v1/session", json={"key": key})
        cookie = entered.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert key not in cookie
        assert client.get("/v1/model").is_success
        # A browser sends those of other programs with it, whatever their port.
        own = entered.headers["set-cookie"].partition(";")[0]
        client.cookies.clear()
        for others in ('kernel={"id": 1}', "list[0]=a", "one; =", 'open="'):
            told = client.get("/v1/model", headers={"Cookie": f"{others}; {own}"})
            assert told.is_success, others


# ------------------------------------------------------------------------------------- the page


def test_the_page_says_what_is_recognised_and_how_long_it_is_kept(client: "TestClient") -> None:
    page = client.get("/")
    assert "Emotions are recognised here" in page.text
    assert "2024/1689" in page.text
    assert "erased 24 hours after the job ends" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in page.text
    assert "style=" not in page.text
    for name in ("start.js", "start.css", "style.css"):
        assert f"/page/{name}" in page.text
        assert client.get(f"/page/{name}").status_code == 200
    assert client.get("/page/start.html.jinja").status_code == 404


def test_a_browser_that_looks_for_an_icon_is_told_that_there_is_none(service: "Service") -> None:
    with with_key(service, "a-long-and-secret-key") as client:
        assert client.get("/favicon.ico").status_code == 204


def test_a_failed_jobs_words_are_those_of_its_error() -> None:
    from serving.problems import rebuild_error, status_of

    error = JobError(code="input_error", detail="talk.mp4: no sound")
    assert status_of(rebuild_error(error.code, error.detail)) == 422


def test_other_machines_need_a_key_unless_told_otherwise(tmp_path: Path) -> None:
    from pipeline.errors import UsageError

    for host in ("0.0.0.0", "::", "example.org", "192.168.1.2"):
        with pytest.raises(UsageError, match="--key-file"):
            ServeConfig(host=host)
        assert ServeConfig(host=host, without_key=True).host == host
        assert ServeConfig(host=host, key_file=tmp_path / "key").host == host
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        assert ServeConfig(host=host).is_private
        with pytest.raises(UsageError, match="--without-key: with --host"):
            ServeConfig(host=host, without_key=True)


def test_limits_are_checked() -> None:
    from pipeline.errors import UsageError

    with pytest.raises(UsageError, match=r"limits\.queued_jobs must be above 0"):
        Limits(queued_jobs=0)
    with pytest.raises(UsageError, match=r"limits\.stalled_s must be at most 1000000000, not inf"):
        Limits(stalled_s=math.inf)
    with pytest.raises(UsageError, match=r"limits\.retention_hours must be at most 1000000, not"):
        Limits(retention_hours=10_000_000)  # in a year of five digits
    with pytest.raises(UsageError, match=r"live\.ticket_s must be at most 1000000000, not inf"):
        LiveLimits(ticket_s=math.inf)


def test_what_is_kept_the_longest_has_a_date() -> None:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving.dispatch import JobStatus
    from serving.schemas import view_job

    now_s = time.time()
    ended = Job(
        id="0",
        file="talk.mp4",
        media_type="video/mp4",
        num_bytes=1,
        duration_ms=1000,
        created_s=now_s,
        ended="succeeded",
        finished_s=now_s,
    )
    limits = Limits(retention_hours=1_000_000)
    view = view_job(
        JobStatus(job=ended, state="succeeded"), retention_s=3600 * limits.retention_hours
    )
    assert view.erased_at is not None
    assert view.erased_at.year > 2130


@pytest.mark.parametrize(
    ("hours", "told"),
    [(72, "3 days"), (24, "24 hours"), (1, "1 hour"), (0.5, "30 minutes"), (1 / 60, "1 minute")],
)
def test_the_page_says_durations_as_people_do(hours: float, told: str) -> None:
    limits = Limits(retention_hours=hours)
    model = {"name": "m", "modalities": [], "random_weights": []}
    page = render_start(model=model, notice="", limits=limits, needs_key=False)
    assert f"are erased {told} after the job ends" in page
