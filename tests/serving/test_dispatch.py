"""What happens to jobs when their worker does what it should not; the worker is a stand-in."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from pipeline.errors import StorageError
from serving import dispatch
from serving.dispatch import Dispatcher
from serving.jobs import Job, JobStore
from serving.problems import Busy
from tests.serving.answers import wait_until
from tests.serving.stand_in import (
    DIES,
    DONE,
    HELD_UP,
    StandIn,
    await_end,
    await_running,
    submit,
)


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
    wait_until(lambda: StandIn.worked_on)
    dispatcher.drain()  # no other worker begins it
    StandIn.gate.set()
    wait_until(lambda: store.get(job_id).num_deaths)
    root = store.folder(job_id).path.parents[1]
    assert [job.num_deaths for job in JobStore(root).unfinished()] == [1]


@pytest.mark.parametrize("content", ["", "5", "null", "[" * 100_000, None])
def test_a_job_that_is_none_is_named_when_the_service_starts(
    dispatcher: Dispatcher, store: JobStore, content: str | None
) -> None:
    job_id = submit(dispatcher, store)
    assert await_end(dispatcher, job_id) == "succeeded"
    folder = store.folder(job_id)
    if content is None:  # it is another's
        folder.path.rename(folder.path.with_name("0" * 32))
    else:
        folder.job.write_text(content)
    with pytest.raises(StorageError, match=r"job\.json cannot be read \(.*; delete its folder"):
        JobStore(folder.path.parents[1])


def test_a_running_job_is_cancelled_and_erased(dispatcher: Dispatcher, store: JobStore) -> None:
    StandIn.gate.clear()
    running, waiting = submit(dispatcher, store), submit(dispatcher, store)
    await_running(dispatcher, running)
    assert dispatcher.status(waiting).num_before == 1
    dispatcher.erase(running)
    assert not store.folder(running).path.exists()
    assert await_end(dispatcher, waiting) == "succeeded"


def test_too_many_jobs_and_too_much_media_are_refused_with_a_time(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    StandIn.gate.clear()
    running = submit(dispatcher, store, seconds=300)  # nothing waits: it is taken
    await_running(dispatcher, running)
    submit(dispatcher, store, seconds=9)
    with pytest.raises(Busy, match="9 s of media are waiting already") as refused:
        submit(dispatcher, store, seconds=2)
    assert refused.value.retry_after_s == 90  # of 300 s, at 0.3 s of work for each
    submit(dispatcher, store, seconds=1)
    with pytest.raises(Busy, match="2 jobs are waiting already"):
        dispatcher.hold_place()


def test_in_a_full_queue_the_slowest_upload_loses_its_place_unless_it_is_fast_young_or_whole(
    start_dispatcher: Callable[..., Any],
) -> None:
    dispatcher = start_dispatcher(queued_jobs=5, full_min_bytes_per_s=1000)

    def begin(*, seconds: float, num_bytes: int, is_whole: bool = False) -> Any:
        place = dispatcher.hold_place()
        place.began_s -= seconds
        place.num_bytes, place.is_whole = num_bytes, is_whole
        return place

    slow = begin(seconds=30, num_bytes=15_000)
    slowest = begin(seconds=30, num_bytes=10_000)
    fast = begin(seconds=30, num_bytes=90_000)
    young = begin(seconds=5, num_bytes=0)
    whole = begin(seconds=900, num_bytes=10, is_whole=True)
    for loser in (slowest, slow):
        dispatcher.hold_place()
        assert loser.is_lost
    with pytest.raises(Busy, match="5 jobs are waiting"):
        dispatcher.hold_place()
    assert not any(place.is_lost for place in (fast, young, whole))
    slowest.release()  # its request ends; the place is another's now
    with pytest.raises(Busy):
        dispatcher.hold_place()


def test_jobs_that_wait_at_shutdown_wait_at_the_next_start(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    StandIn.gate.clear()
    ids = [submit(dispatcher, store)]
    await_running(dispatcher, ids[0])
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
    await_running(dispatcher, bad)
    assert figures()['meld_jobs{state="running"}'] == 1
    assert figures()['meld_jobs{state="queued"}'] == 1
    StandIn.gate.set()
    await_end(dispatcher, good)
    told = figures()
    states = [told[f'meld_jobs{{state="{each}"}}'] for each in ("queued", "succeeded", "failed")]
    assert states == [0, 1, 1]
    assert told["meld_workers_lost_total"] == 2
    assert told["meld_queue_wait_seconds_count"] == 2  # not once more after a death


def test_clips_whose_clients_wait_pass_the_jobs_but_not_two_in_a_row(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(queued_jobs=9)
    StandIn.gate.clear()
    running = submit(dispatcher, store)
    await_running(dispatcher, running)
    jobs = [submit(dispatcher, store) for _ in range(2)]
    clips = [submit(dispatcher, store, is_awaited=True) for _ in range(3)]
    StandIn.gate.set()
    await_end(dispatcher, clips[-1])
    assert StandIn.worked_on == [running, clips[0], jobs[0], clips[1], jobs[1], clips[2]]


def test_a_clip_whose_client_waited_for_a_server_that_was_killed_is_erased_by_the_next(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    StandIn.gate.clear()
    kept = submit(dispatcher, store)
    await_running(dispatcher, kept)
    submit(dispatcher, store, is_awaited=True)
    root = store.folder(kept).path.parents[1]
    after = JobStore(root)
    assert [job.id for job in after.unfinished()] == [kept]
    assert [path.name for path in (root / "jobs").iterdir()] == [kept]


def test_a_request_for_a_place_does_not_wait_for_the_disk(
    dispatcher: Dispatcher, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, written = threading.Event(), threading.Event()
    accept = store.accept

    def slow(*job: Any) -> Job:
        writing.set()
        assert written.wait(30)
        return accept(*job)

    monkeypatch.setattr(store, "accept", slow)
    sender = threading.Thread(target=submit, args=(dispatcher, store))
    sender.start()
    assert writing.wait(10)
    places: list[Any] = []
    asks = threading.Thread(target=lambda: places.append(dispatcher.hold_place()))
    asks.start()
    asks.join(10)
    has_waited = not places
    written.set()
    sender.join(10)
    assert not has_waited
    places[0].release()


def test_uploads_in_progress_count_as_waiting(
    dispatcher: Dispatcher, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandIn.gate.clear()
    running = submit(dispatcher, store, seconds=300)
    await_running(dispatcher, running)
    accept = store.accept

    def accept_slowly(*job: Any) -> Job:
        monkeypatch.setattr(store, "accept", accept)
        with pytest.raises(Busy, match="9 s of media are waiting already"):
            submit(dispatcher, store, seconds=2)
        return accept(*job)

    monkeypatch.setattr(store, "accept", accept_slowly)
    submit(dispatcher, store, seconds=9)


@pytest.mark.parametrize("plan", [[DIES], [DONE]])
def test_a_disk_that_refuses_once_costs_a_job_time_and_nothing_else(
    dispatcher: Dispatcher,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    plan: list[list[dict[str, Any]]],
) -> None:
    monkeypatch.setattr(dispatch, "_SECONDS_AFTER_A_BAD_DISK", 0.01)
    update = store.update

    def refuse(job: Any) -> None:
        monkeypatch.setattr(store, "update", update)
        raise StorageError("no space left on device")

    monkeypatch.setattr(store, "update", refuse)
    StandIn.plan = list(plan)
    job_id = submit(dispatcher, store)
    assert await_end(dispatcher, job_id) == "succeeded"
    assert StandIn.worked_on == [job_id, job_id]
    assert await_end(dispatcher, submit(dispatcher, store)) == "succeeded"


def test_a_job_that_fills_the_disk_waits_for_room(
    dispatcher: Dispatcher, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_SECONDS_AFTER_A_BAD_DISK", 0.01)
    full = {"is": "failed", "code": "disk_full", "detail": "no space left on device"}
    StandIn.plan = [[full], [full], DONE]
    job_id = submit(dispatcher, store)
    assert await_end(dispatcher, job_id) == "succeeded"
    assert StandIn.worked_on == [job_id] * 3


def test_a_clip_whose_client_waits_is_told_of_a_full_disk(
    dispatcher: Dispatcher, store: JobStore
) -> None:
    StandIn.plan = [[{"is": "failed", "code": "disk_full", "detail": "no space left on device"}]]
    job_id = submit(dispatcher, store, is_awaited=True)
    assert await_end(dispatcher, job_id) == "failed"
    error = dispatcher.status(job_id).job.error
    assert error is not None
    assert error.code == "disk_full"


# ------------------------------------------------------------------------------- what is erased


def end_with(dispatcher: Dispatcher, store: JobStore, num_bytes: int) -> str:
    """A job that takes so many bytes of the disk, but for what is written of it otherwise."""
    job_id = submit(dispatcher, store)
    store.folder(job_id).media.write_bytes(b"x" * num_bytes)
    await_end(dispatcher, job_id)
    return job_id


def kept(store: JobStore) -> list[str]:
    return [job.id for job in store.ended()]


def test_beyond_the_bytes_that_are_kept_those_that_ended_first_are_erased(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(retention_bytes=100_000)
    ids = [end_with(dispatcher, store, 30_000) for _ in range(5)]
    dispatcher.erase_old(time.time())
    assert kept(store) == ids[2:]
    assert not any(store.folder(each).path.exists() for each in ids[:2])
    ids.append(end_with(dispatcher, store, 80_000))
    dispatcher.erase_old(time.time())
    assert kept(store) == ids[5:]


def test_what_a_job_left_of_its_work_counts_too(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(retention_bytes=100_000)
    ids = [end_with(dispatcher, store, 1000) for _ in range(2)]
    for each in ids:
        left = store.folder(each).path / ".meld-predict" / "a-model"
        left.mkdir(parents=True)
        (left / "batch-000000.safetensors").write_bytes(b"x" * 60_000)
    dispatcher.erase_old(time.time())
    assert kept(store) == ids[1:]


def test_the_last_one_that_ended_is_kept_however_large_it_is(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(retention_bytes=1000)
    ids = [end_with(dispatcher, store, 5000) for _ in range(2)]
    dispatcher.erase_old(time.time())
    assert kept(store) == ids[1:]


def test_jobs_that_have_not_ended_are_never_erased_for_room(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(retention_bytes=1)
    ended = end_with(dispatcher, store, 10)
    StandIn.gate.clear()
    waiting = [submit(dispatcher, store) for _ in range(2)]
    dispatcher.erase_old(time.time())
    assert [store.get(each).id for each in (ended, *waiting)] == [ended, *waiting]


def test_jobs_of_earlier_servers_count_too(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(retention_bytes=100_000)
    ids = [end_with(dispatcher, store, 60_000) for _ in range(2)]
    after = JobStore(store.folder("x").path.parents[1])
    assert [after.num_bytes(each) > 60_000 for each in ids] == [True, True]
    assert kept(after) == ids


# -------------------------------------------------------------------------------- several workers


def test_several_workers_work_on_as_many_jobs_at_one_time(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(num_workers=2, queued_jobs=3)
    StandIn.gate.clear()
    ids = [submit(dispatcher, store) for _ in range(3)]
    wait_until(
        lambda: [dispatcher.status(each).state for each in ids] == ["running", "running", "queued"]
    )
    assert dispatcher.status(ids[2]).num_before == 2
    StandIn.gate.set()
    assert {await_end(dispatcher, each) for each in ids} == {"succeeded"}
    assert sorted(StandIn.worked_on) == sorted(ids)


def test_a_worker_that_dies_is_replaced_while_the_other_goes_on(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(num_workers=2)
    StandIn.plan = [HELD_UP, DIES]
    first = submit(dispatcher, store)
    wait_until(lambda: StandIn.worked_on)
    second = submit(dispatcher, store)
    assert await_end(dispatcher, second) == "succeeded"
    assert StandIn.worked_on == [first, second, second]
    assert dispatcher.status(first).state == "running"
    assert dispatcher.is_ready
    StandIn.held.set()
    assert await_end(dispatcher, first) == "succeeded"


def test_a_job_is_cancelled_where_it_is_worked_on(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(num_workers=2)
    StandIn.plan = [HELD_UP]
    other = submit(dispatcher, store)
    wait_until(lambda: StandIn.worked_on)
    StandIn.gate.clear()
    unwanted = submit(dispatcher, store)
    await_running(dispatcher, unwanted)
    dispatcher.erase(unwanted)
    assert not store.folder(unwanted).path.exists()
    assert dispatcher.status(other).state == "running"
    StandIn.held.set()
    assert await_end(dispatcher, other) == "succeeded"


def test_words_are_read_by_a_worker_that_has_no_job(
    start_dispatcher: Callable[..., Dispatcher], store: JobStore
) -> None:
    dispatcher = start_dispatcher(num_workers=2)
    StandIn.gate.clear()
    submit(dispatcher, store)
    wait_until(lambda: dispatcher.num_ready == 2 and StandIn.worked_on)
    readers = cast(list[Any], [dispatcher.read_words([{}])[0] for _ in range(4)])
    assert {reader.has_job for reader in readers} == {False}


def test_words_that_are_not_read_in_time_are_refused_and_forgotten(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless: Future[list[Any]] = Future()
    monkeypatch.setattr(dispatch, "_SECONDS_TO_READ_WORDS", 0.05)
    monkeypatch.setattr(StandIn, "read_words", lambda worker, turns: endless)
    with pytest.raises(Busy, match=r"not read within 0\.05 s: .* send fewer"):
        dispatcher.read_words([{}])
    assert endless.cancelled()


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.system import resources

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(resources, "num_cores", lambda: 8)
    assert [resources.share_cores(number) for number in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    assert resources.share_cores(2) == 3


class Clock:
    """The module time, whose monotonic clock goes on where a test says so."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


def test_the_time_that_requests_took_after_the_drain_began_is_part_of_it(
    dispatcher: Dispatcher, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandIn.gate.clear()
    await_running(dispatcher, submit(dispatcher, store))
    clock = Clock()
    monkeypatch.setattr(dispatch, "time", clock)
    dispatcher.drain()
    clock.now_s += 999.9  # as long as requests that are under way take
    began = time.monotonic()
    dispatcher.stop(drain_s=1000)
    assert time.monotonic() - began < 8  # the job would take ten seconds
