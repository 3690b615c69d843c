"""The service is killed, stopped, and used for a long time."""

import asyncio
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bench.service.client import ask, await_end, events, head, send, upload_request
from bench.service.figures import Figure, at_least, at_most, exactly, percentile, told
from bench.service.films import Film, film_upload, make_film
from bench.service.inputs import own
from bench.service.load import Probe
from bench.service.server import Server, serving
from bench.service.settings import Setting

_JOBS_AT_ONCE = 3
_ENDED = ("succeeded", "failed")


async def crashes(setting: Setting) -> list[Figure]:
    """Kills the server or a worker at random moments during jobs, while more jobs are sent."""
    rng = random.Random(setting.seed)
    film = make_film(setting.work, setting.clips, minutes=2, cue_ms=500)
    unbroken = predict_alone(film, setting)
    data = setting.work / "crashes"
    keys: dict[str, str | None] = {}  # the Idempotency-Key of an upload -> the job
    bereaved: set[str] = set()
    killed = {"server": 0, "worker": 0, "while it started": 0}
    while sum(killed.values()) < setting.kills:
        with serving(data, *setting.options, limits={"queued_jobs": 32}) as server:
            while sum(killed.values()) < setting.kills:
                await _top_up(server, film, keys, rng)
                await asyncio.sleep(rng.uniform(0.05, 2.5))
                running = await _running(server, keys)
                is_servers = rng.random() < 0.5 or running is None or running in bereaved
                if is_servers:
                    sending = asyncio.ensure_future(_send_one(server, film, keys, rng))
                    await asyncio.sleep(rng.uniform(0, 0.3))
                    killed["server"] += 1
                    server.kill()
                    with suppress(OSError, EOFError, TimeoutError):
                        await sending
                    break
                # The second death of its worker fails a job, as intended; this trial avoids it.
                bereaved.add(str(running))
                killed["worker"] += server.kill_worker()
    wrong, lost = 0, 0
    with serving(data, *setting.options, limits={"queued_jobs": 32}) as server:
        for key, job in keys.items():
            if job is None:  # its answer was lost: the upload is sent again
                keys[key] = job = await _send(server, film, key)
            ended = await await_end(server.port, job)
            if ended.get("state") != "succeeded":
                lost += 1
                print(ended, file=sys.stderr)
                continue
            timeline = await ask(server.port, f"/v1/jobs/{job}/timeline")
            wrong += timeline.body != unbroken
        on_disk = len(list((data / "jobs").iterdir()))
        for job in keys.values():
            await ask(server.port, f"/v1/jobs/{job}", method="DELETE")
        left = len(server.kept_files())
    return [
        told("kills of the server", killed["server"]),
        told("kills of the worker", killed["worker"]),
        told("accepted jobs", len(keys)),
        exactly("jobs lost or failed", lost, 0),
        exactly("timelines that differ from the uninterrupted one", wrong, 0),
        exactly("jobs on the disk", on_disk, len(keys)),
        exactly("files left after erasing", left, 0),
    ]


async def _top_up(
    server: Server, film: Film, keys: dict[str, str | None], rng: random.Random
) -> None:
    while await _unfinished(server, keys) < _JOBS_AT_ONCE:
        await _send_one(server, film, keys, rng)


async def _send_one(
    server: Server, film: Film, keys: dict[str, str | None], rng: random.Random
) -> None:
    key = f"upload-{rng.getrandbits(64):x}"
    keys[key] = None
    keys[key] = await _send(server, film, key)


async def _send(server: Server, film: Film, key: str) -> str:
    answer = await send(server.port, film_upload(film, Idempotency_Key=key))
    if answer.status != 202:
        raise SystemExit(f"an upload was answered {answer.status}: {answer.body!r}")
    return str(answer.json["id"])


async def _states(server: Server, keys: dict[str, str | None]) -> dict[str, str]:
    jobs = [job for job in keys.values() if job is not None]
    return {job: (await ask(server.port, f"/v1/jobs/{job}")).json["state"] for job in jobs[-8:]}


async def _unfinished(server: Server, keys: dict[str, str | None]) -> int:
    return sum(state not in _ENDED for state in (await _states(server, keys)).values())


async def _running(server: Server, keys: dict[str, str | None]) -> str | None:
    states = await _states(server, keys)
    return next((job for job, state in states.items() if state == "running"), None)


def predict_alone(film: Film, setting: Setting) -> bytes:
    """The timeline of `meld predict`, as JSON."""
    out = setting.work / "alone"
    command = [sys.executable, "-m", "cli", "predict", str(film.media), "--subtitles"]
    command += [str(film.subtitles), "--out", str(out), *setting.options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (out / f"{film.media.name}.meld.json").read_bytes()


# -------------------------------------------------------------------------------------- SIGTERM


async def sigterm(setting: Setting) -> list[Figure]:
    """Sends SIGTERM while one job runs, others wait, uploads arrive and events are streamed."""
    drain_s = 5.0
    film = make_film(setting.work, setting.clips, minutes=2, cue_ms=100)
    data = setting.work / "sigterm"
    accepted: list[str] = []
    limits = {"queued_jobs": 32, "drain_s": drain_s}
    with serving(data, *setting.options, limits=limits) as server:
        accepted += [(await send(server.port, film_upload(film))).json["id"] for _ in range(5)]
        listening = [asyncio.ensure_future(_listen(server.port, job)) for job in accepted]
        _, slow_upload = await asyncio.open_connection("127.0.0.1", server.port)
        headers = {"Content-Type": "video/mp4", "Content-Length": "1000000"}
        slow_upload.write(head("POST", "/v1/jobs", headers) + b"x" * 1000)
        sending = asyncio.ensure_future(_keep_sending(server.port, setting, accepted))
        await asyncio.sleep(1.5)
        status, took_s = await asyncio.to_thread(server.terminate)
        refused, cut_off = await sending
        await asyncio.gather(*listening, return_exceptions=True)
        slow_upload.close()
        left = len(server.incoming())
    lost = 0
    with serving(data, *setting.options, limits=limits) as server:
        for job in accepted:
            ended = await await_end(server.port, job)
            lost += ended.get("state") != "succeeded"
    return [
        exactly("exit status", status, 0),
        at_most("SIGTERM to exit", took_s, drain_s + 1, "s"),
        told("accepted jobs", len(accepted)),
        exactly("accepted jobs that the next service does not finish", lost, 0),
        told("uploads refused during shutdown", refused),
        exactly("uploads cut off without an answer", cut_off, 0),
        exactly("uploads left on the disk", left, 0),
    ]


async def _listen(port: int, job: str) -> None:
    with suppress(EOFError, OSError):
        async for _ in events(port, job):
            pass


async def _keep_sending(port: int, setting: Setting, accepted: list[str]) -> tuple[int, int]:
    """Sends uploads until the port is closed; returns (refused, cut off)."""
    refused = cut_off = number = 0
    while True:
        number += 1
        clip = own(setting.clips[number % len(setting.clips)], number)
        try:
            answer = await send(port, upload_request(clip, text="Hello"))
        except ConnectionRefusedError:
            return refused, cut_off
        except (OSError, EOFError, TimeoutError):
            cut_off += 1
            continue
        if answer.status == 202:
            accepted.append(answer.json["id"])
        refused += answer.is_refusal
        await asyncio.sleep(0.05)


# ----------------------------------------------------------------------------------------- long


async def hour(setting: Setting) -> list[Figure]:
    """A long file: memory, progress, cancelling."""
    film = make_film(setting.work, setting.clips, minutes=setting.minutes)
    short = make_film(setting.work, setting.clips, minutes=1)
    with serving(setting.work / "hour", *setting.options) as server:
        first = (await send(server.port, film_upload(short))).json["id"]
        await await_end(server.port, first)
        before = server.costs()
        began = time.perf_counter()
        job = (await send(server.port, film_upload(film))).json["id"]
        accepted_s = time.perf_counter() - began
        told_at, kinds, peak, worker_peak = [time.perf_counter()], 0, 0, 0
        async for event in events(server.port, job):
            told_at.append(event.at_s)
            kinds += event.kind == "utterance"
            costs = server.costs() if kinds % 20 == 0 else None
            if costs is not None:
                peak, worker_peak = max(peak, costs.rss), max(worker_peak, costs.worker_rss)
        took_s = told_at[-1] - told_at[0]
        gaps = [after - before for before, after in itertools.pairwise(told_at)]
        again = (await send(server.port, film_upload(film))).json["id"]
        async for event in events(server.port, again):
            if event.kind == "utterance":
                break
        began = time.perf_counter()
        erased = await ask(server.port, f"/v1/jobs/{again}", method="DELETE")
        cancel_s = time.perf_counter() - began
    return [
        told("minutes of media", setting.minutes),
        told("upload answered after", accepted_s, "s"),
        told("utterances", kinds),
        told("done after", took_s, "s"),
        at_most("longest without an event", max(gaps), 2, "s"),
        at_most("largest growth of the server's memory", (peak - before.rss) / 1e6, 100, "MB"),
        at_most(
            "largest growth of the worker's memory",
            (worker_peak - before.worker_rss) / 1e6,
            300,
            "MB",
        ),
        exactly("status of DELETE", erased.status, 204),
        at_most("cancelled and erased in", cancel_s, 2, "s"),
    ]


async def soak(setting: Setting) -> list[Figure]:
    """Long ordinary use: checks that memory, file descriptors and disk use stay constant."""
    rng = random.Random(setting.seed)
    seen: list[dict[str, float]] = []
    done = refused = wrong = 0
    with serving(setting.work / "soak", *setting.options) as server:
        probe = Probe(server.port, "/readyz")
        began = time.monotonic()
        while (at_s := time.monotonic() - began) < setting.soak_s:
            if not seen or at_s - seen[-1]["at_s"] >= setting.soak_s / 60:
                costs = server.costs()
                seen.append({"at_s": at_s, **vars(costs), "files": len(server.kept_files())})
            clip = own(rng.choice(setting.clips), done)
            answer = await send(server.port, upload_request(clip, text=clip.text))
            if answer.status != 202:
                refused += 1
                await asyncio.sleep(0.5)
                continue
            job = answer.json["id"]
            told_words = [
                event.data["text"]
                async for event in events(server.port, job)
                if event.kind == "utterance"
            ]
            wrong += told_words != [clip.text]
            await ask(server.port, f"/v1/jobs/{job}/timeline?format=html")
            await ask(server.port, f"/v1/jobs/{job}", method="DELETE")
            done += 1
        await probe.end()
    (setting.work / "soak-costs.json").write_text(json.dumps(seen))
    # The first third is the warm-up.
    late = seen[len(seen) // 3 :]
    return [
        told("minutes", setting.soak_s / 60),
        at_least("jobs done and erased", done, 1),
        exactly("jobs with the words of another", wrong, 0),
        told("refused", refused),
        at_most("server's memory grows by", _slope(late, "rss") / 1e6, 5, "MB an hour"),
        at_most("worker's memory grows by", _slope(late, "worker_rss") / 1e6, 20, "MB an hour"),
        at_most("file descriptors, largest increase", _rise(late, "descriptors"), 8),
        at_most("files, largest increase", _rise(late, "files"), 10),
        told("p99 of /readyz", 1000 * percentile(probe.seconds, 0.99), "ms"),
        exactly("/readyz that failed", probe.failures, 0),
    ]


def _slope(seen: Sequence[dict[str, Any]], name: str) -> float:
    """Growth per hour, from the medians of the first and the last third."""
    third = max(len(seen) // 3, 1)
    first, last = seen[:third], seen[-third:]
    middle = [
        sorted(part, key=lambda each: float(each[name]))[len(part) // 2] for part in (first, last)
    ]
    apart_s = last[len(last) // 2]["at_s"] - first[len(first) // 2]["at_s"]
    return float(3600 * (middle[1][name] - middle[0][name]) / max(apart_s, 1))


def _rise(seen: Sequence[dict[str, Any]], name: str) -> float:
    values = [each[name] for each in seen]
    return float(max(values) - values[0])
