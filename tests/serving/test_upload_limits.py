"""What an upload may be, read from its headers once it is there."""

import asyncio
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.media import SIZE
from tests.serving.answers import problem
from tests.serving.conftest import HOME

if TYPE_CHECKING:
    from serving.dispatch import Dispatcher
    from serving.jobs import JobStore


@pytest.mark.parametrize("address", ["/v1/jobs", "/v1/predict"])
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_media_s": 1.5}, "talk.mp4 lasts 2 s; 1.5 s are the most"),
        ({"max_pixels": 20_000}, f"talk.mp4 has {SIZE[0] * SIZE[1]} pixels a frame; 20000 are"),
        ({"max_frames": 49}, "talk.mp4 has 50 frames; 49 are the most"),
        ({"max_streams": 1}, "talk.mp4 has 2 streams; 1 are the most"),
    ],
)
def test_an_upload_above_a_limit_is_refused_and_not_kept(
    start_app: Callable[..., Any],
    store: "JobStore",
    clip: Path,
    address: str,
    limits: dict[str, float],
    said: str,
) -> None:
    from starlette.testclient import TestClient

    with TestClient(start_app(**limits), base_url=HOME) as client:
        files = {"media": ("talk.mp4", clip.read_bytes(), "video/mp4")}
        refused = client.post(address, files=files, data={"text": "Hi"})
    assert problem(refused) == (413, "too_large")
    assert refused.json()["detail"].startswith(said)
    root = store.folder("x").path.parents[1]
    assert [path for part in ("jobs", "incoming") for path in (root / part).iterdir()] == []


def test_a_disk_that_is_full_before_an_upload_of_unknown_length_is_whole_is_507(
    start_app: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from starlette.testclient import TestClient

    from serving import upload

    def fail(file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upload, "_sync", fail)
    with TestClient(start_app(), base_url=HOME) as client:
        headers = {"Content-Type": "video/mp4"}
        refused = client.post("/v1/jobs", content=iter([b"media"]), headers=headers)
    assert problem(refused) == (507, "disk_full")


async def ask(app: Any, method: str, path: str, *body: Callable[[], bytes]) -> tuple[int, bytes]:
    """Status and content, without a socket. body: makes its parts when they are read"""
    headers = [(b"host", b"localhost"), (b"content-type", b"video/mp4")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": ""}
    left, answer = list(body), [0, b""]

    async def receive() -> dict[str, Any]:
        part = left.pop(0)() if left else b""
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(message: Any) -> None:
        answer[0] = message.get("status", answer[0])
        answer[1] += message.get("body", b"")

    await app(scope, receive, send)
    return answer[0], answer[1]


def test_who_asks_for_little_is_not_held_up_by_a_burst_of_uploads(
    start_app: Callable[..., Any], dispatcher: "Dispatcher"
) -> None:
    places = [dispatcher.hold_place() for _ in range(2)]  # all that there are
    app = start_app()
    ends: list[int] = []

    async def note(method: str, path: str) -> None:
        ends.append((await ask(app, method, path))[0])

    async def burst() -> None:
        uploads = [asyncio.ensure_future(note("POST", "/v1/jobs")) for _ in range(200)]
        for _ in range(3):  # it comes when the service is at work on them
            await asyncio.sleep(0)
        await asyncio.gather(note("GET", "/livez"), *uploads)

    asyncio.run(burst())
    for place in places:
        place.release()
    assert ends.count(503) == 200
    assert ends.index(200) < 50


def test_an_upload_whose_place_another_was_given_is_told_that_it_is_too_slow(
    start_app: Callable[..., Any], dispatcher: "Dispatcher"
) -> None:
    others: list[Any] = []

    def arrive_late() -> bytes:
        (slow,) = dispatcher._places
        slow.began_s -= 100
        others.extend(dispatcher.hold_place() for _ in range(2))  # all that there are
        return b"x"

    upload = ask(start_app(), "POST", "/v1/jobs", lambda: b"x" * 1000, arrive_late, lambda: b"x")
    status, content = asyncio.run(upload)
    assert (status, json.loads(content)["code"]) == (408, "too_slow")
    assert dispatcher._places == set(others)


def test_an_upload_at_a_limit_is_accepted(start_app: Callable[..., Any], clip: Path) -> None:
    from starlette.testclient import TestClient

    limits = {"max_pixels": SIZE[0] * SIZE[1], "max_frames": 50, "max_streams": 2}
    with TestClient(start_app(**limits), base_url=HOME) as client:
        files = {"media": ("talk.mp4", clip.read_bytes(), "video/mp4")}
        assert client.post("/v1/jobs", files=files, data={"text": "Hi"}).status_code == 202
