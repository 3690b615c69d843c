"""A worker that says what a test planted, and jobs for it."""

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from serving.jobs import Job, JobStore
from serving.process import WorkerEnded, WorkerReady
from tests.serving.answers import wait_until

if TYPE_CHECKING:
    from serving.dispatch import Dispatcher

DIES: list[dict[str, Any]] = []
DONE = [{"is": "done"}]
HELD_UP = [{"is": "held up"}, *DONE]


class StandIn:
    """A worker that says of each job what the test planted: DIES is its death, and HELD_UP lasts
    until `held` is set. With the gate closed, none says anything."""

    plan: ClassVar[list[Sequence[dict[str, Any]]]] = []
    worked_on: ClassVar[list[str]] = []
    gate = threading.Event()
    held = threading.Event()

    def __init__(self, choice: object, on_end: Any, *, num_threads: int) -> None:
        self.pid = 1
        self.has_ended = self.has_job = False
        self._said: list[dict[str, Any]] = []

    def await_ready(self, timeout_s: float) -> WorkerReady:
        model = {"name": "stand-in", "fingerprint": "0"}
        return WorkerReady(model=model, notice="", reads_words=True)

    def begin(self, folder: Path) -> None:
        self._folder, self.has_job = folder, True
        self._said = list(self.plan.pop(0)) if self.plan else list(DONE)
        self.worked_on.append(folder.name)  # last: who sees it may plan for the next

    def next(self, timeout_s: float) -> dict[str, Any]:
        self.gate.wait(10)
        if not self._said:
            self.has_ended = True
            raise WorkerEnded("SIGSEGV")
        message = self._said.pop(0)
        if message["is"] == "held up":
            self.held.wait(10)
            message = self._said.pop(0)
        if message["is"] == "done":
            (self._folder / "timeline.json").write_text(json.dumps({"of": self._folder.name}))
        return message

    def cancel(self, folder: Path) -> None:
        self._said.insert(0, {"is": "cancelled"})
        self.gate.set()

    def read_words(self, turns: Sequence[Any]) -> "Future[list[Any]]":
        """Who reads them."""
        future: Future[list[Any]] = Future()
        future.set_result([self])
        return future

    def end(self) -> None:
        self.gate.set()
        self.held.set()


def submit(
    dispatcher: "Dispatcher", store: JobStore, *, seconds: int = 1, is_awaited: bool = False
) -> str:
    incoming = store.begin()
    incoming.folder.media.write_bytes(b"media")
    job = Job(
        id=incoming.id,
        file="talk.mp4",
        media_type="video/mp4",
        num_bytes=5,
        duration_ms=1000 * seconds,
        created_s=time.time(),
        is_awaited=is_awaited,
    )
    place = dispatcher.hold_place()
    try:
        return dispatcher.submit(incoming, job, place).id
    finally:
        place.release()


def await_running(dispatcher: "Dispatcher", job_id: str) -> None:
    wait_until(lambda: dispatcher.status(job_id).state == "running")


def await_end(dispatcher: "Dispatcher", job_id: str) -> str:
    wait_until(lambda: dispatcher.status(job_id).state in ("succeeded", "failed"))
    return dispatcher.status(job_id).state
