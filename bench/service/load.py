"""Many requests at once: bursts, and clients with different clips."""

import asyncio
import json
import math
import time
from collections import Counter
from contextlib import suppress
from statistics import median

from bench.service.client import Answer, ask, await_end, events, head, send, upload_request
from bench.service.connections import Wire
from bench.service.connections import burst as many_at_once
from bench.service.figures import Figure, at_most, exactly, told
from bench.service.inputs import own
from bench.service.server import Server, serving
from bench.service.settings import Setting

QUEUE = 8
BURST = 100
_BURSTS_REFUSED = 5
CLIENTS = 200
_SECONDS_UNTIL_UNUSED = 31


class Probe:
    """Requests an address repeatedly, each time on a new connection."""

    def __init__(self, port: int, path: str) -> None:
        self.seconds: list[float] = []
        self.failures = 0
        self._task = asyncio.ensure_future(self._run(port, path))

    async def _run(self, port: int, path: str) -> None:
        while True:
            try:
                answer = await ask(port, path)
                self.seconds.append(answer.first_s)
                self.failures += answer.status != 200
            except (OSError, EOFError, TimeoutError):
                self.failures += 1
            await asyncio.sleep(0.02)

    async def end(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


async def burst(setting: Setting) -> list[Figure]:
    """Sends 100 uploads at once to a service with a queue of 8."""
    requests = [
        upload_request(own(setting.clips[number % len(setting.clips)], number), text="Hello")
        for number in range(BURST)
    ]
    probe = head("GET", "/readyz", {"Connection": "close"})
    wires: list[Wire] = []
    probes: list[Wire] = []
    with serving(setting.work / "burst", *setting.options, limits={"queued_jobs": QUEUE}) as server:
        await _warm(server, setting)
        for _ in range(setting.rounds):
            found = many_at_once(server.port, requests, probe)
            wires += found.wires
            probes += found.probes
            for wire in found.wires:
                if wire.status == 202:
                    job = json.loads(wire.received.partition(b"\r\n\r\n")[2])["id"]
                    await await_end(server.port, job)
                    await ask(server.port, f"/v1/jobs/{job}", method="DELETE")
        grown_kb, cpu_ms, refused = await _refuse_all(server, requests, probe)
    refusals_s = [wire.first_s or 0 for wire in wires if wire.is_refusal]
    ready_s = [wire.first_s or math.inf for wire in probes]
    accepted = sum(wire.status == 202 for wire in wires)
    return [
        told("uploads at once", BURST),
        told("bursts", setting.rounds),
        told("median refusal", 1000 * median(refusals_s), "ms"),
        at_most("slowest refusal", 1000 * max(refusals_s), 100, "ms"),
        told("median /readyz during the burst", 1000 * median(ready_s), "ms"),
        at_most("slowest /readyz during the burst", 1000 * max(ready_s), 50, "ms"),
        told("accepted", accepted),
        told("refused with Retry-After", len(refusals_s)),
        exactly("other answers, or cut off", len(wires) - accepted - len(refusals_s), 0),
        told("further uploads refused while the queue was full", refused),
        at_most("growth of the server's memory for each", grown_kb, 1, "kB"),
        told("server's CPU time for each, probes included", cpu_ms, "ms"),
    ]


async def _refuse_all(
    server: Server, requests: list[bytes], probe: bytes
) -> tuple[float, float, int]:
    """Kilobytes of memory growth and milliseconds of CPU per refused upload, and their number."""
    slow = head("POST", "/v1/jobs", {"Content-Type": "video/mp4", "Content-Length": "100000"})
    held = []
    for _ in range(QUEUE):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(slow)
        held.append(writer)
    await asyncio.sleep(0.3)
    many_at_once(server.port, requests, probe)
    before = server.costs()
    refused = 0
    for _ in range(_BURSTS_REFUSED):
        refused += sum(w.is_refusal for w in many_at_once(server.port, requests, probe).wires)
    after = server.costs()
    for writer in held:
        writer.close()
    refused = max(refused, 1)
    grown_kb, cpu_ms = (after.rss - before.rss) / 1000, 1000 * (after.cpu_s - before.cpu_s)
    return grown_kb / refused, cpu_ms / refused, refused


async def clients(setting: Setting) -> list[Figure]:
    """Runs 200 clients at once with different clips; a refused client tries again."""
    kinds: Counter[str] = Counter()
    waits_s: list[float] = []

    async def one(server: Server, number: int) -> None:
        clip = own(setting.clips[number % len(setting.clips)], number)
        request = upload_request(clip, text=clip.text)
        while True:
            began = time.perf_counter()
            try:
                answer = await send(server.port, request)
            except (OSError, EOFError, TimeoutError) as error:
                kinds[f"reset: {type(error).__name__}"] += 1
                return
            if answer.is_refusal:
                kinds["refused"] += 1
                await asyncio.sleep(min(int(answer.headers["retry-after"]), 2))
                continue
            kinds[_kind(answer)] += 1
            if answer.status != 202:
                return
            job = answer.json["id"]
            async for _ in events(server.port, job):  # polling would add load
                pass
            timeline = (await ask(server.port, f"/v1/jobs/{job}/timeline")).json
            [utterance] = timeline["utterances"]
            is_own = timeline["media"]["file"] == clip.name and utterance["text"] == clip.text
            kinds["own clip's answer" if is_own else "another clip's answer"] += 1
            waits_s.append(time.perf_counter() - began)
            return

    with serving(setting.work / "clients", *setting.options, limits={"queued_jobs": 32}) as server:
        await _warm(server, setting)
        before = server.costs()
        probe = Probe(server.port, "/livez")
        began = time.perf_counter()
        await asyncio.gather(*(one(server, number) for number in range(CLIENTS)))
        took_s = time.perf_counter() - began
        await probe.end()
        await asyncio.sleep(_SECONDS_UNTIL_UNUSED)
        await _warm(server, setting)  # decoders that nobody needs any more end with it
        after = await server.settle(before)
    resets = sum(count for kind, count in kinds.items() if kind.startswith("reset"))
    return [
        told("clients", CLIENTS),
        exactly("own clip's answer", kinds["own clip's answer"], CLIENTS),
        exactly("another clip's answer", kinds["another clip's answer"], 0),
        exactly("resets", resets, 0),
        told("refusals with Retry-After in between", kinds["refused"]),
        told("all done in", took_s, "s"),
        told("slowest from acceptance to answer", max(waits_s, default=0), "s"),
        at_most("slowest /livez during the trial", 1000 * max(probe.seconds), 100, "ms"),
        exactly("/livez that failed", probe.failures, 0),
        at_most("growth of the server's memory", (after.rss - before.rss) / 1e6, 50, "MB"),
        at_most("additional file descriptors", after.descriptors - before.descriptors, 0),
    ]


async def _warm(server: Server, setting: Setting) -> None:
    """Sends one upload first, so that its imports and allocations are not measured."""
    answer = await send(server.port, upload_request(setting.clips[0], text="Hello"))
    await await_end(server.port, answer.json["id"])


def _kind(answer: Answer) -> str:
    return "refused" if answer.is_refusal else str(answer.status)
