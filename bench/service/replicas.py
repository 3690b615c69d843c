"""Two services behind Ray Serve's front: what the second one gains, and what a lost one costs."""

import asyncio
import itertools
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import psutil

from bench.service.client import ask, await_end, events, send, upload_request
from bench.service.comparing import free_port, take
from bench.service.figures import Figure, at_least, exactly, told
from bench.service.inputs import Clip, own
from bench.service.server import serving
from bench.service.settings import Setting
from serving.jobs import shard_of

_CLIENTS = 4
_SECONDS_TO_START = 300.0
_SECONDS_TO_RETURN = 120.0
_JOBS = 12
_ONE, _BOTH, _PLAIN = "one of the two services", "both services", "meld serve"


async def replicas(setting: Setting) -> list[Figure]:
    """Two services on a local Ray: jobs a minute of one and of both, and one that is killed."""
    clips = setting.clips[: setting.num_clips]
    seconds: dict[str, list[float]] = {_ONE: [], _BOTH: [], _PLAIN: []}
    with (
        serving(setting.work / "replicas-plain", *setting.options) as plain,
        _front(setting) as (port, process),
    ):
        keys = (f"a-clip-of-the-first-service-{number}" for number in itertools.count())
        # Which service owns a job says the front by its key, where it has one.
        of_first = (key for key in keys if shard_of(key.encode().hex(), 2) == 0)
        for _ in range(2):
            await take(port, clips[:4], _CLIENTS)
        await take(plain.port, clips[:2], 2)
        for number in range(setting.rounds):
            order = list(seconds) if number % 2 == 0 else list(reversed(seconds))
            for name in order:
                where = plain.port if name == _PLAIN else port
                took_s = await take(where, clips, _CLIENTS, keys=of_first if name == _ONE else None)
                seconds[name].append(took_s)
        lost = await _lose_one(port, process, clips)
    figures = [told("clips", len(clips)), told("clients", _CLIENTS), told("rounds", setting.rounds)]
    for name, each in seconds.items():
        figures.append(told(f"{name}: jobs a minute", 60 * len(clips) / median(each)))
        figures.append(told(f"{name}: spread", (max(each) - min(each)) / median(each)))
    gain = median(seconds[_ONE]) / median(seconds[_BOTH])
    return [*figures, at_least("both / one", gain, 1), *lost]


async def _lose_one(port: int, process: psutil.Process, clips: Sequence[Clip]) -> list[Figure]:
    """SIGKILL to a service in the middle of its jobs, while the events of all are listened to."""
    wanted = [await _predict_alone(port, clip) for clip in clips[:_JOBS]]
    jobs = []
    for number in range(_JOBS):
        clip = own(clips[number % len(clips)], number)
        answer = await send(port, upload_request(clip))
        jobs.append(answer.json["id"])
    lost, kinds = shard_of(jobs[0], 2), Counter[str]()

    async def listen(job: str) -> None:
        last = None
        try:
            async for each in events(port, job):
                last = each.kind
        except (OSError, EOFError, ValueError):
            last = "cut"
        whose = "lost" if shard_of(job, 2) == lost else "other"
        kinds[f"{whose} {'whole' if last == 'end' else 'cut'}"] += 1

    async def poll(statuses: Counter[int]) -> None:
        while True:
            statuses[(await ask(port, f"/v1/jobs/{jobs[0]}")).status] += 1
            await asyncio.sleep(0.1)

    listening = [asyncio.create_task(listen(job)) for job in jobs]
    await asyncio.sleep(1)
    statuses: Counter[int] = Counter()
    polling = asyncio.create_task(poll(statuses))
    _replica(process, lost).send_signal(signal.SIGKILL)
    began_s = time.monotonic()
    other = await send(port, upload_request(own(clips[0], _JOBS)))
    accepted_s = time.monotonic() - began_s
    await _await_ready(port, lost)
    back_s = time.monotonic() - began_s
    ends = [await await_end(port, job) for job in [*jobs, other.json["id"]]]
    await asyncio.gather(*listening)
    polling.cancel()
    same = 0
    for number, job in enumerate(jobs):
        timeline = (await ask(port, f"/v1/jobs/{job}/timeline")).json
        same += timeline["utterances"] == wanted[number % len(wanted)]
    return [
        told("jobs when one service was killed", len(jobs)),
        told("of them its own", sum(shard_of(job, 2) == lost for job in jobs)),
        exactly("a new upload meanwhile", other.status, 202),
        told("accepted after", accepted_s, "s"),
        told("the service is back after", back_s, "s"),
        exactly(
            "jobs that succeeded", sum(each["state"] == "succeeded" for each in ends), len(ends)
        ),
        exactly("timelines as without the loss", same, len(jobs)),
        told("streams of events of its jobs that were cut", kinds["lost cut"]),
        exactly("those of the other's that were cut", kinds["other cut"], 0),
        told("503 for its job meanwhile", statuses[503]),
        exactly(
            "other answers than 200 and 503",
            sum(statuses.values()) - statuses[200] - statuses[503],
            0,
        ),
    ]


async def _predict_alone(port: int, clip: Clip) -> Any:
    job = (await send(port, upload_request(clip))).json["id"]
    await await_end(port, job)
    return (await ask(port, f"/v1/jobs/{job}/timeline")).json["utterances"]


async def _await_ready(port: int, service: int) -> None:
    async with asyncio.timeout(_SECONDS_TO_RETURN):
        while (await ask(port, f"/services/{service}/readyz")).status != 200:
            await asyncio.sleep(0.2)


def _replica(process: psutil.Process, service: int) -> psutil.Process:
    """Ray names its workers after what they are."""
    name = f"service-{service}"
    for each in process.children(recursive=True):
        title = each.cmdline()[:1]
        if title and title[0].startswith("ray::ServeReplica") and name in title[0]:
            return each
    raise SystemExit(f"no process of {name} is there")


@contextmanager
def _front(setting: Setting) -> Iterator[tuple[int, psutil.Process]]:
    port = free_port()
    command = [sys.executable, "-m", "bench.service.front", str(port)]
    command += [str(setting.work / "replicas"), *setting.options]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"listens\n":
            raise SystemExit(f"{' '.join(command)} does not start; is ray[serve] installed?")
        yield port, psutil.Process(process.pid)
    finally:
        process.stdin.close()
        process.wait(120)  # running jobs may end first
