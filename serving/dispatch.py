"""Dispatches jobs to the worker, tracks their progress, and handles failures.

Each worker has a thread that gives it the accepted jobs, one at a time and the oldest first; one
more erases those whose time is over or whose room is needed. A worker that ends in the middle of a
job is replaced while the others go on, and the job is tried once more.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import MeldError, StorageError
from pipeline.system.resources import share_cores
from serving.config import Limits
from serving.jobs import Incoming, Job, JobError, JobStore
from serving.logs import Event
from serving.metrics import Metrics
from serving.problems import Busy, DiskFull, NoSuchJob, code_of
from serving.process import Message, WorkerEnded, WorkerProcess, WorkerReady

log = logging.getLogger(__name__)

SECONDS_TO_LOAD = 600.0
_SECONDS_TO_CANCEL = 2.0
_SECONDS_TO_READ_WORDS = 60.0
_SECONDS_BETWEEN_SWEEPS = 30.0
_SECONDS_BEFORE_ANOTHER_WORKER = 5.0
_SECONDS_AFTER_A_BAD_DISK = 5.0
_MOST_DEATHS = 2
MOST_WORDS_WAITING = 32
# Seconds of work a second of media takes, until the first job says.
_FIRST_GUESS = 0.3
SECONDS_OF_GRACE = 10.0  # before an upload's average speed counts
_LONGEST_RETRY_S = 3600

State = Literal["queued", "running", "succeeded", "failed"]
Stage = Literal["hearing", "predicting"]


@dataclass
class _Running:
    """The job that is worked on; milliseconds of media done, and in all."""

    job: Job
    since_s: float
    stage_since_s: float = 0.0
    stage: Stage | None = None
    done_ms: int = 0
    total_ms: int = 0
    is_unwanted: bool = False


@dataclass(eq=False)
class _Seat:
    """A worker's place: whoever sits there, or is loaded for it, and the job that is worked on.

    num_words: requests for words alone that were given to it and are not answered
    num_live: the same for those of live sessions
    """

    worker: WorkerProcess | None = None
    is_ready: bool = False
    running: _Running | None = None
    num_words: int = 0
    num_live: int = 0


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """num_before: jobs that are worked on first; stage and the times: of a running one"""

    job: Job
    state: State
    num_before: int = 0
    stage: Stage | None = None
    done_ms: int = 0
    total_ms: int = 0
    retry_after_s: int | None = None


class Place:
    """A place in the queue, held for an upload until it is a job or nothing.

    num_bytes: of the upload, that have come; is_whole: all of it
    is_lost:   another upload was given the place
    """

    def __init__(self, give_back: "Callable[[Place], None]") -> None:
        self._give_back = give_back
        self._is_held = True
        self.began_s = time.monotonic()
        self.num_bytes = 0
        self.is_whole = self.is_lost = False

    @property
    def bytes_per_s(self) -> float:
        """Infinite for an upload that is whole, or too young to tell."""
        took_s = time.monotonic() - self.began_s - SECONDS_OF_GRACE
        return math.inf if self.is_whole or took_s <= 0 else self.num_bytes / took_s

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._give_back(self)


class Dispatcher:
    def __init__(
        self,
        store: JobStore,
        choice: Mapping[str, Any],
        limits: Limits,
        *,
        num_workers: int = 1,
    ) -> None:
        """choice: the settings of a `WorkChoice`"""
        self._store = store
        self._choice = choice
        self._limits = limits
        self._changed = threading.Condition(threading.RLock())
        self._waiting = deque(job.id for job in store.unfinished())
        self._places: set[Place] = set()  # of uploads
        self._written_ms = 0  # of media whose jobs are being written
        self._has_passed = False
        self._seats = [_Seat() for _ in range(num_workers)]
        self._num_threads = share_cores(num_workers)
        self._is_draining = False
        self._drained_since_s: float | None = None
        self._is_stopped = threading.Event()
        self._speed = _FIRST_GUESS
        self.ready: WorkerReady | None = None
        self.metrics = Metrics()
        self.metrics.watch(jobs=self._count, workers=lambda: self.num_ready)
        self._threads = [
            threading.Thread(target=self._work, args=[seat], daemon=True) for seat in self._seats
        ]
        self._threads.append(threading.Thread(target=self._sweep, daemon=True))

    def start(self) -> WorkerReady:
        """Returns once the first worker has loaded the model; the others do meanwhile.

        Raises MeldError where it cannot be loaded.
        """
        self._launch(self._seats[0])
        for thread in self._threads:
            thread.start()
        assert self.ready is not None
        self.metrics.tell_build(self.ready.model)
        return self.ready

    def drain(self) -> None:
        """Nothing new is taken on or begun."""
        # No lock: a signal's handler calls this.
        self._drained_since_s = self._drained_since_s or time.monotonic()
        self._is_draining = True

    def stop(self, *, drain_s: float) -> None:
        """Running jobs may finish within `drain_s` of the first `drain`; what is unfinished stays
        accepted."""
        self.drain()
        assert self._drained_since_s is not None
        left_s = max(self._drained_since_s + drain_s - time.monotonic(), 0)
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._running, left_s)
            self._is_stopped.set()
            workers = [seat.worker for seat in self._seats if seat.worker is not None]
        for worker in workers:
            worker.end()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:  # there was a model to begin with
                thread.join()

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def is_ready(self) -> bool:
        """Whether there is a worker, and whether jobs are taken on."""
        return not self._is_draining and self.num_ready > 0

    @property
    def num_ready(self) -> int:
        """Workers that have the model loaded."""
        return sum(seat.is_ready for seat in self._seats)

    @property
    def worker_pids(self) -> list[int]:
        return [seat.worker.pid for seat in self._seats if seat.worker is not None]

    @property
    def _running(self) -> list[_Running]:
        return [seat.running for seat in self._seats if seat.running is not None]

    # -------------------------------------------------------------------------- for requests

    def hold_place(self) -> Place:
        """Before anything of an upload is read. In a full queue the slowest upload loses its place,
        if it is slower than it may be then.

        Raises Busy.
        """
        with self._changed:
            self._check_open()
            if len(self._waiting) + len(self._places) >= self._limits.queued_jobs:
                self._take_from_slowest()
            place = Place(self._give_back_place)
            self._places.add(place)
        return place

    def _take_from_slowest(self) -> None:
        """Raises Busy."""
        slowest = min(self._places, key=lambda place: place.bytes_per_s, default=None)
        if slowest is None or slowest.bytes_per_s >= self._limits.full_min_bytes_per_s:
            raise Busy(
                f"{self._limits.queued_jobs} jobs are waiting already; try again later",
                self.seconds_until_place(),
            )
        slowest.is_lost = True
        slowest.release()

    def submit(self, incoming: Incoming, job: Job, place: Place) -> Job:
        """Raises Busy where too much media waits already, StorageError."""
        with self._changed:
            self._check_open()
            waiting_ms = self._written_ms
            waiting_ms += sum(self._store.get(each).duration_ms for each in self._waiting)
            most_ms = self._limits.queued_media_s * 1000
            if waiting_ms and waiting_ms + job.duration_ms > most_ms:
                raise Busy(
                    f"{waiting_ms / 1000:.0f} s of media are waiting already, and "
                    f"{self._limits.queued_media_s:.0f} s are the most; try again later",
                    self.seconds_until_place(),
                )
            self._written_ms += job.duration_ms
        # The disk is waited for without the lock, which the loop of all requests takes.
        try:
            accepted = self._store.accept(incoming, job)
        except BaseException:
            with self._changed:
                self._written_ms -= job.duration_ms
            raise
        with self._changed:
            self._written_ms -= job.duration_ms
            place.release()
            self._waiting.append(accepted.id)
            self._changed.notify_all()
        media_s = job.duration_ms / 1000
        log.info(Event("job_accepted", job=job.id, bytes=job.num_bytes, media_s=media_s))
        return accepted

    def status(self, job_id: str) -> JobStatus:
        """Raises NoSuchJob."""
        with self._changed:
            job = self._store.get(job_id)
            if job.ended is not None:
                return JobStatus(job=job, state=job.ended)
            seat = self._seat_of(job_id)
            running = None if seat is None else seat.running
            if running is not None:
                left_ms = max(running.total_ms or job.duration_ms, 1) - running.done_ms
                return JobStatus(
                    job=job,
                    state="running",
                    stage=running.stage,
                    done_ms=running.done_ms,
                    total_ms=running.total_ms or job.duration_ms,
                    retry_after_s=self._retry_after(left_ms),
                )
            before = list(self._waiting)
            before = before[: before.index(job_id)] if job_id in before else []
            before_ms = sum(self._store.get(each).duration_ms for each in before)
            return JobStatus(
                job=job,
                state="queued",
                num_before=len(before) + len(self._running),
                total_ms=job.duration_ms,
                retry_after_s=self._retry_after(before_ms / len(self._seats) + job.duration_ms),
            )

    def erase(self, job_id: str, *, by: str = "client") -> None:
        """Cancels what is not finished. by: for the log. Raises NoSuchJob, StorageError."""
        with self._changed:
            has_ended = self._store.get(job_id).ended is not None
            with suppress(ValueError):
                self._waiting.remove(job_id)
            seat = self._seat_of(job_id)
            if seat is not None:
                running, worker = seat.running, seat.worker
                assert running is not None
                assert worker is not None
                running.is_unwanted = True
                worker.cancel(self._folder(job_id))
                if not self._changed.wait_for(self._is_over(job_id), _SECONDS_TO_CANCEL):
                    worker.end()  # it is deep in a batch; the next one is loaded anew
                    self._changed.wait_for(self._is_over(job_id))
        self._store.erase(job_id)
        if not has_ended:
            self.metrics.jobs_finished.labels("cancelled").inc()
        log.info(Event("job_erased", job=job_id, by=by, had_ended=has_ended))

    def read_words(self, turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predicts words without media. Raises Busy, and what `predict_words` raises."""
        with self._changed:
            self._check_open()
            seat = self._seat_for_words()
            worker = seat.worker
            assert worker is not None
            seat.num_words += 1
        asked = worker.read_words(turns)
        try:
            return asked.result(_SECONDS_TO_READ_WORDS)
        except FutureTimeout as error:
            asked.cancel()  # or the worker would go on, for nobody
            raise Busy(
                f"not read within {_SECONDS_TO_READ_WORDS:g} s: the model is busy, or these are "
                "many words; try again later, or send fewer at a time",
                5,
            ) from error
        except WorkerEnded as error:
            raise Busy("the model was lost; try again soon", 5) from error
        finally:
            with self._changed:
                seat.num_words -= 1

    def _seat_for_words(self) -> _Seat:
        """Of the workers that are ready, rather one without a job. Raises Busy."""
        ready = [seat for seat in self._seats if seat.is_ready]
        if not ready:
            raise Busy("the model is being loaded; try again soon", 5)
        free = [seat for seat in ready if seat.num_words < MOST_WORDS_WAITING]
        if not free:
            most = MOST_WORDS_WAITING * len(ready)
            raise Busy(f"{most} such requests are waiting already", 2)
        return min(free, key=lambda seat: (seat.running is not None, seat.num_words))

    def _seat_of(self, job_id: str) -> _Seat | None:
        """Where it is worked on."""
        for seat in self._seats:
            if seat.running is not None and seat.running.job.id == job_id:
                return seat
        return None

    def ask_live(self, request: Mapping[str, Any]) -> "Future[Any]":
        """What somebody says who speaks now (`LiveWork`). Raises Busy where there is no worker yet;
        the future raises MeldError, and WorkerEnded."""
        with self._changed:
            ready = [seat for seat in self._seats if seat.is_ready]
            if not ready:
                raise Busy("the model is being loaded; try again soon", 5)
            seat = min(ready, key=lambda seat: (seat.num_live, seat.running is not None))
            worker = seat.worker
            assert worker is not None
            seat.num_live += 1

        def give_back(_: "Future[Any]") -> None:
            with self._changed:
                seat.num_live -= 1

        asked = worker.ask_live(request)
        asked.add_done_callback(give_back)
        return asked

    def _check_open(self) -> None:
        if self._is_draining:
            raise Busy("the service is being ended; try again when it is back", 30)

    def _give_back_place(self, place: Place) -> None:
        with self._changed:
            self._places.discard(place)

    def seconds_until_place(self) -> int:
        """Until the next running job is done, which makes another's place free."""
        left_ms = [(each.total_ms or each.job.duration_ms) - each.done_ms for each in self._running]
        return self._retry_after(min(left_ms, default=0))

    def _retry_after(self, media_ms: float) -> int:
        return min(max(math.ceil(media_ms / 1000 * self._speed), 1), _LONGEST_RETRY_S)

    def _count(self) -> dict[str, int]:
        """Jobs by state."""
        with self._changed:
            unfinished = {job.id for job in self._store.unfinished()}
            running = sum(each.job.id in unfinished for each in self._running)
            return {
                **self._store.count_ended(),
                "running": running,
                "queued": len(unfinished) - running,
            }

    def _folder(self, job_id: str) -> Path:
        return self._store.folder(job_id).path

    def _is_over(self, job_id: str) -> Callable[[], bool]:
        return lambda: self._seat_of(job_id) is None

    # ------------------------------------------------------------- the threads of the workers

    def _launch(self, seat: _Seat) -> None:
        """Raises MeldError."""
        worker = WorkerProcess(self._choice, on_end=self._wake, num_threads=self._num_threads)
        with self._changed:
            seat.worker = worker
            if self._is_stopped.is_set():  # who stopped it did not know of this one
                worker.end()
        try:
            self.ready = worker.await_ready(SECONDS_TO_LOAD)
        except WorkerEnded as error:
            raise MeldError(f"the worker does not start ({error})") from error
        seat.is_ready = True

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self, seat: _Seat) -> None:
        while not self._is_stopped.is_set():
            worker = seat.worker
            if worker is None or worker.has_ended:
                self._replace_worker(seat)
                continue
            running = self._take(seat, worker)
            if running is not None:
                self._work_on(seat, worker, running)

    def _replace_worker(self, seat: _Seat) -> None:
        seat.is_ready = False
        try:
            self._launch(seat)
        except MeldError as error:
            if not self._is_stopped.is_set():
                log.error("no worker: %s", error)
            self._is_stopped.wait(_SECONDS_BEFORE_ANOTHER_WORKER)

    def _take(self, seat: _Seat, worker: WorkerProcess) -> _Running | None:
        """The next job; None where there is no worker for it any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._is_stopped.is_set()
                    or worker.has_ended
                    or (self._waiting and not self._is_draining)
                )
            )
            if self._is_stopped.is_set() or worker.has_ended:
                return None
            job = self._store.get(self._choose())
            seat.running = running = _Running(job=job, since_s=time.monotonic())
        waited_s = max(time.time() - job.created_s, 0.0)
        if not job.num_deaths:
            self.metrics.queue_wait.observe(waited_s)
        log.info(Event("job_begun", job=job.id, waited_s=round(waited_s, 3)))
        return running

    def _choose(self) -> str:
        """The oldest job; but a clip whose client waits is taken first, though not twice in a row,
        so that short clips do not block long jobs."""
        first = self._waiting[0]
        awaited = (each for each in self._waiting if self._store.get(each).is_awaited)
        chosen = first if self._has_passed else next(awaited, first)
        self._has_passed = chosen != first
        self._waiting.remove(chosen)
        return chosen

    def _work_on(self, seat: _Seat, worker: WorkerProcess, running: _Running) -> None:
        again: Literal["first", "last"] | None = None
        try:
            try:
                self._see_through(worker, running)
            except WorkerEnded as error:
                seat.is_ready = False
                again = self._mourn(running, str(error))
        except StorageError as error:  # there is no room, or how it ended cannot be written
            log.error("%s", error)
            self._is_stopped.wait(_SECONDS_AFTER_A_BAD_DISK)
            again = "last"
        finally:
            with self._changed:
                # In one step: no other worker takes it while it seems to be worked on here.
                seat.running = None
                if again is not None and not running.is_unwanted:
                    self._waiting.insert(
                        0 if again == "first" else len(self._waiting), running.job.id
                    )
                self._changed.notify_all()

    def _see_through(self, worker: WorkerProcess, running: _Running) -> None:
        """Raises WorkerEnded, StorageError."""
        worker.begin(self._folder(running.job.id))
        while True:
            message = worker.next(self._limits.stalled_s)
            if message["is"] != "progress":
                self._end(running, message)
                return
            with self._changed:
                self._go_on(running, message["stage"])
                running.done_ms = message["done_ms"]
                running.total_ms = message["total_ms"]

    def _go_on(self, running: _Running, stage: Stage | None) -> None:
        """To another stage, or to the end."""
        now_s = time.monotonic()
        if stage != running.stage:
            if running.stage is not None:
                self.metrics.stage.labels(running.stage).observe(now_s - running.stage_since_s)
            running.stage, running.stage_since_s = stage, now_s

    def _end(self, running: _Running, message: Message) -> None:
        """Raises StorageError."""
        job = running.job
        if running.is_unwanted or message["is"] == "cancelled":
            return
        if message["is"] == "failed":
            if message["code"] == code_of(DiskFull) and not job.is_awaited:
                raise DiskFull(message["detail"])  # it is no fault of the job's, which can wait
            self._finish(running, JobError(code=message["code"], detail=message["detail"]))
            return
        took_s = time.monotonic() - running.since_s
        self._speed += 0.3 * (took_s / max(job.duration_ms / 1000, 1.0) - self._speed)
        self._finish(running)
        with self._changed:
            self._go_on(running, None)
        self.metrics.media_seconds.inc(job.duration_ms / 1000)
        for part, seconds in message.get("seconds", {}).items():
            self.metrics.stage.labels(part).observe(seconds)
        for modality, reason, number in message.get("lost", ()):
            self.metrics.modalities_lost.labels(modality, reason).inc(number)

    def _finish(self, running: _Running, error: JobError | None = None) -> None:
        """Raises StorageError."""
        job = running.job
        self._store.end(job, error)
        outcome = "succeeded" if error is None else "failed"
        self.metrics.jobs_finished.labels(outcome).inc()
        took_s = round(time.monotonic() - running.since_s, 3)
        code = None if error is None else error.code
        log.info(Event("job_ended", job=job.id, outcome=outcome, code=code, took_s=took_s))

    def _mourn(self, running: _Running, how: str) -> Literal["first"] | None:
        """Where in the queue the job is to wait for another worker. Raises StorageError."""
        if running.is_unwanted or self._is_stopped.is_set():
            return None
        job = replace(running.job, num_deaths=running.job.num_deaths + 1)
        self.metrics.workers_lost.inc()
        log.error(Event("worker_lost", job=job.id, how=how, deaths=job.num_deaths))
        if job.num_deaths >= _MOST_DEATHS:
            detail = f"{job.file}: the worker ended {job.num_deaths} times on it, last by {how}"
            running.job = job
            self._finish(running, JobError(code="meld_error", detail=detail))
            return None
        self._store.update(job)
        return "first"

    # ------------------------------------------------------------------ the thread that erases

    def _sweep(self) -> None:
        while not self._is_stopped.wait(_SECONDS_BETWEEN_SWEEPS):
            self.erase_old(time.time())

    def erase_old(self, now_s: float) -> None:
        """What ended longer ago than it is kept, and then the oldest until the rest has room. The
        last one to end has it always: its client is about to fetch it."""
        oldest_s = now_s - self._limits.retention_hours * 3600
        kept = []
        for job in self._store.ended():
            assert job.finished_s is not None
            if job.finished_s < oldest_s:
                self._erase_ended(job, by="age")
            else:
                kept.append(job)
        sizes = [self._store.num_bytes(job.id) for job in kept]
        too_many = sum(sizes) - self._limits.retention_bytes
        for job, num_bytes in zip(kept[:-1], sizes, strict=False):
            if too_many <= 0:
                return
            self._erase_ended(job, by="room")
            too_many -= num_bytes

    def _erase_ended(self, job: Job, *, by: str) -> None:
        try:
            self._store.erase(job.id)
        except NoSuchJob:  # a client was faster
            return
        except StorageError as error:
            log.error("%s", error)
        else:
            log.info(Event("job_erased", job=job.id, by=by, had_ended=True))
