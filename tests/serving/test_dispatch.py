"""What happens to jobs when their worker does what it should not; the worker is a stand-in."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from serving import dispatch
from serving.config import Limits
from serving.dispatch import Dispatcher
from serving.jobs import Job, JobStore
from serving.problems import Busy
from serving.process import WorkerEnded, WorkerReady

DIES: list[dict[str, Any]] = []
DONE = [{"is": "done"}]


class StandIn:
    """A worker that says of each job what the test planted: DIES is its death."""

    plan: ClassVar[list[Sequence[dict[str, Any]]]] = []
    worked_on: ClassVar[list[str]] = []
    gate = threading.Event()

    def __init__(self, choice: object, on_end: Any) -> None:
        self.pid = 1
        self.has_ended = False
        self._said: list[dict[str, Any]] = []

    def await_ready(self, timeout_s: float) -> WorkerReady:
        model = {"name": "stand-in", "fingerprint": "0"}
        return WorkerReady(model=model, notice="", reads_words=True)

    def begin(self, folder: Path) -> None:
        self.worked_on.append(folder.name)
        self._said = list(self.plan.pop(0)) if self.plan else list(DONE)

    def next(self, timeout_s: float) -> dict[str, Any]:
        self.gate.wait(10)
        if not self._said:
            self.has_ended = True
            raise WorkerEnded("SIGSEGV")
        return self._said.pop(0)

    def cancel(self, folder: Path) -> None:
        self._said.insert(0, {"is": "cancelled"})
        self.gate.set()

    def end(self) -> None:
        self.gate.set()


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path)


@pytest.fixture
def dispatcher(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dispatcher]:
    monkeypatch.setattr(dispatch, "WorkerProcess", StandIn)
    StandIn.plan, StandIn.worked_on = [], []
    StandIn.gate = threading.Event()
    StandIn.gate.set()
    made = Dispatcher(store, {}, Limits(queued_jobs=2, queued_media_s=10))
    made.start()
    yield made
    made.stop(drain_s=0.1)


def submit(dispatcher: Dispatcher, store: JobStore, *, seconds: int = 1) -> str:
    incoming = store.begin()
    incoming.folder.media.write_bytes(b"media")
    job = Job(
        id=incoming.id,
        file="talk.mp4",
        media_type="video/mp4",
        num_bytes=5,
        duration_ms=1000 * seconds,
        created_s=time.time(),
    )
    place = dispatcher.hold_place()
    try:
        return dispatcher.submit(incoming, job, place).id
    finally:
        place.release()


def await_end(dispatcher: Dispatcher, job_id: str) -> str:
    for _ in range(1000):
        state = dispatcher.status(job_id).state
        if state in ("succeeded", "failed"):
            return state
        time.sleep(0.005)
    raise AssertionError(state)


def test_a_job_whose_worker_dies_is_tried_once_more(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    StandIn.plan = [DIES, DONE]
    job_id = submit(dispatcher, store)
    assert await_end(dispatcher, job_id) == "succeeded"
    assert StandIn.worked_on == [job_id, job_id]


def test_the_second_death_fails_it_and_the_next_job_is_worked_on(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    StandIn.plan = [DIES, DIES, DONE]
    bad, good = submit(dispatcher, store), submit(dispatcher, store)
    assert await_end(dispatcher, bad) == "failed"
    error = dispatcher.status(bad).job.error
    assert error is not None
    assert error.detail == "talk.mp4: the worker ended 2 times on it, last by SIGSEGV"
    assert await_end(dispatcher, good) == "succeeded"
    assert StandIn.worked_on == [bad, bad, good]


def test_deaths_are_remembered_by_the_next_server(dispatcher: Dispatcher, store: JobStore) -> None:
    StandIn.plan = [DIES]
    StandIn.gate.clear()
    job_id = submit(dispatcher, store)
    while not StandIn.worked_on:
        time.sleep(0.005)
    dispatcher.drain()  # no other worker begins it
    StandIn.gate.set()
    while store.get(job_id).num_deaths == 0:
        time.sleep(0.005)
    root = store.folder(job_id).path.parents[1]
    assert [job.num_deaths for job in JobStore(root).unfinished()] == [1]


def test_a_running_job_is_cancelled_and_erased(dispatcher: Dispatcher, store: JobStore) -> None:
    StandIn.gate.clear()
    running, waiting = submit(dispatcher, store), submit(dispatcher, store)
    while dispatcher.status(running).state != "running":
        time.sleep(0.005)
    assert dispatcher.status(waiting).num_before == 1
    dispatcher.erase(running)
    assert not store.folder(running).path.exists()
    assert await_end(dispatcher, waiting) == "succeeded"


def test_too_many_jobs_and_too_much_media_are_refused_with_a_time(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    StandIn.gate.clear()
    running = submit(dispatcher, store, seconds=300)  # nothing waits: it is taken
    while dispatcher.status(running).state != "running":
        time.sleep(0.005)
    submit(dispatcher, store, seconds=9)
    with pytest.raises(Busy, match="9 s of media are waiting already") as refused:
        submit(dispatcher, store, seconds=2)
    assert refused.value.retry_after_s == 90  # of 300 s, at 0.3 s of work for each
    submit(dispatcher, store, seconds=1)
    with pytest.raises(Busy, match="2 jobs are waiting already"):
        dispatcher.hold_place()


def test_what_waits_at_the_end_waits_at_the_next_start(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    StandIn.gate.clear()
    ids = [submit(dispatcher, store)]
    while dispatcher.status(ids[0]).state != "running":
        time.sleep(0.005)
    ids.append(submit(dispatcher, store))
    dispatcher.drain()
    with pytest.raises(Busy, match="being ended"):
        dispatcher.hold_place()
    root = store.folder(ids[0]).path.parents[1]
    assert [job.id for job in JobStore(root).unfinished()] == ids


def test_jobs_are_counted_by_their_state_and_lost_workers_are(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    def figures() -> dict[str, float]:
        lines = dispatcher.metrics.render().decode().splitlines()
        told = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in told}

    StandIn.plan = [DIES, DIES, DONE]
    StandIn.gate.clear()
    bad, good = submit(dispatcher, store), submit(dispatcher, store)
    while dispatcher.status(bad).state != "running":
        time.sleep(0.005)
    assert figures()['meld_jobs{state="running"}'] == 1
    assert figures()['meld_jobs{state="queued"}'] == 1
    StandIn.gate.set()
    await_end(dispatcher, good)
    told = figures()
    states = [told[f'meld_jobs{{state="{each}"}}'] for each in ("queued", "succeeded", "failed")]
    assert states == [0, 1, 1]
    assert told["meld_workers_lost_total"] == 2
    assert told["meld_queue_wait_seconds_count"] == 2  # not once more after a death
