"""What tests ask a service, and how they read what it answers."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.serving.conftest import HOME

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from serving.serve import Service


def wait_until(is_so: Callable[[], object], *, seconds: float = 30) -> None:
    """Looks again and again, and so long at the most."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"not so in {seconds:g} s"
        time.sleep(0.005)


def wait_for(client: "TestClient", answer: Any) -> Any:
    """The job of an accepted upload, once it has ended."""
    assert answer.status_code == 202, answer.text
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        job = client.get(answer.headers["Location"]).json()
        if job["state"] in ("succeeded", "failed"):
            return job
        time.sleep(0.05)
    raise AssertionError(f"not done: {job}")


def events(client: "TestClient", address: str, **headers: str) -> list[dict[str, str]]:
    """All events of a stream that ends."""
    text = client.get(f"{address}/events", headers=headers).text
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def problem(answer: Any) -> tuple[int, str]:
    """Status and code of an answer that is a problem, and says so in every way."""
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:meld:problem:{body['code']}"
    assert body["title"]
    assert body["detail"]
    return answer.status_code, body["code"]


def check_same(found: Any, wanted: Any) -> None:
    """Equal, but for rounding: processes with other numbers of threads add in another order, and
    probabilities are told to the sixth digit."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            check_same(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            check_same(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=5e-6)
    else:
        assert found == wanted


def await_rest(service: "Service") -> None:
    """Until no job is left that an earlier test did not wait for."""
    dispatcher = service.dispatcher
    wait_until(lambda: not service.store.unfinished() and not dispatcher._running, seconds=300)


def stored(service: "Service") -> set[str]:
    """Files that the service keeps, but for its lock, once it is at rest."""
    await_rest(service)
    root = service.store.folder("x").path.parents[1]
    return {str(path) for path in root.rglob("*") if path.is_file() and path.name != "lock"}


def children(pid: int, program: str) -> list[int]:
    """Processes that a process started, whose command has this word. One may end meanwhile."""
    found = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):
            if program in child.cmdline():
                found.append(child.pid)
    return found


@contextmanager
def worker_stands_still(service: "Service") -> Iterator[None]:
    """Jobs that are sent meanwhile wait, however fast the worker is."""
    [worker] = service.dispatcher.worker_pids
    os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def parts_of(service: "Service") -> Any:
    inner: Any = service.app
    return inner._app.state.parts


@contextmanager
def with_key(service: "Service", key: str) -> Iterator["TestClient"]:
    """The same service, as others get it that have a key."""
    from starlette.testclient import TestClient

    from serving.admission import Admission, Keys
    from serving.app import create_app

    app = create_app(replace(parts_of(service), keys=Keys(key)))
    assert isinstance(app, Admission)
    with TestClient(app, base_url=HOME) as client:
        yield client
