"""What is left in memory of jobs, of requests that were refused, and of those that watch."""

import gc
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from starlette.testclient import TestClient

from serving.dispatch import Dispatcher
from tests.serving.conftest import HOME
from tests.serving.stand_in import StandIn, await_end

NUM = 20


def objects() -> Counter[str]:
    """How many there are of each type, and how much is in what holds others."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = type(each)
        found[f"{kind.__module__}.{kind.__qualname__}"] += 1
        if kind in (dict, list, set, deque):
            found[f"in a {kind.__name__}"] += len(each)
    return found


def left_by(work: Callable[[], object]) -> dict[str, int]:
    """Of which there is at least one more for every second time that it is done."""
    for _ in range(5):  # what is made once
        work()
    before = objects()
    for _ in range(NUM):
        work()
    after = objects()
    return {kind: n for kind, n in (after - before).items() if n >= NUM // 2}


@pytest.fixture
def send(start_app: Any, clip: Path) -> Any:
    media, numbers = clip.read_bytes(), iter(range(10**6))
    with TestClient(start_app(queued_jobs=2), base_url=HOME) as client:

        def ask(method: str, path: str, status: int, **settings: Any) -> Any:
            answer = client.request(method, path, **settings)
            assert answer.status_code == status, answer.text
            return answer

        def post(status: int) -> Any:
            number = next(numbers)
            return ask(
                "POST",
                f"/v1/jobs?filename={number}.mp4&text=Number {number}",
                status,
                content=media,
                headers={
                    "Content-Type": "video/mp4",
                    "Idempotency-Key": f"upload-{number}",
                    "X-Request-Id": f"request-{number}",
                },
            )

        yield ask, post


def test_of_a_job_that_was_erased_nothing_is_left(send: Any, dispatcher: Dispatcher) -> None:
    ask, post = send

    def see_one_through() -> None:
        job = post(202).json()["id"]
        await_end(dispatcher, job)
        for part in ("", "/events", "/timeline", "/media"):
            ask("GET", f"/v1/jobs/{job}{part}", 200)
        dispatcher.erase_old(0)
        ask("DELETE", f"/v1/jobs/{job}", 204)
        StandIn.worked_on.clear()

    assert left_by(see_one_through) == {}


def test_of_an_upload_that_was_refused_nothing_is_left(send: Any, dispatcher: Dispatcher) -> None:
    _, post = send
    places = [dispatcher.hold_place() for _ in range(2)]  # the queue is full
    assert left_by(lambda: post(503)) == {}
    for place in places:
        place.release()
