"""Compares the service with `meld predict` and with a simple handler that calls the model."""

import asyncio
import json
import math
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.memory import PeakMemory
from bench.service.client import ask, await_end, events, head, send, upload_request
from bench.service.crashing import predict_alone
from bench.service.figures import Figure, at_least, at_most, exactly, told
from bench.service.films import film_upload, make_film
from bench.service.inputs import Clip
from bench.service.load import Probe
from bench.service.server import serving
from bench.service.settings import Setting

_PEERS_CLIPS = 10
_BOUNDARY = "a-part-begins-here"


async def same(setting: Setting) -> list[Figure]:
    """Checks that an upload gets the timeline of `meld predict`, and its utterances when ready."""
    film = make_film(setting.work, setting.clips, minutes=1, cue_ms=500)
    by_predict = predict_alone(film, setting)
    paths = _write(setting.clips[: setting.num_clips], setting.work / "same-clips")
    heard = setting.work / "same-heard"
    command = [sys.executable, "-m", "cli", "predict", *map(str, paths), "--out", str(heard)]
    # 3: of some of these clips the recogniser is not sure of any word, so nothing is predicted.
    finished = subprocess.run([*command, *setting.options], stderr=subprocess.PIPE, text=True)
    if finished.returncode not in (0, 3):
        raise SystemExit(f"meld predict ended with {finished.returncode}: {finished.stderr[-500:]}")
    equal = 0
    with serving(setting.work / "same", *setting.options, limits={"queued_jobs": 64}) as server:
        jobs = [
            (await send(server.port, upload_request(clip))).json["id"]
            for clip in setting.clips[: setting.num_clips]
        ]
        for job, path in zip(jobs, paths, strict=True):
            await await_end(server.port, job)
            answer = await ask(server.port, f"/v1/jobs/{job}/timeline")
            equal += answer.body == (heard / f"{path.name}.meld.json").read_bytes()
        firsts, batches, wholes = [], [], []
        for _ in range(setting.rounds):
            job = (await send(server.port, film_upload(film))).json["id"]
            accepted = time.perf_counter()
            at_s = [
                e.at_s - accepted async for e in events(server.port, job) if e.kind != "progress"
            ]
            firsts.append(at_s[0])
            wholes.append(at_s[-1])
            batches.append((at_s[-1] - at_s[0]) / max(len(at_s) / 16, 1))
        answer = await ask(server.port, f"/v1/jobs/{job}/timeline")
    most_s = 2 * median(batches) + 0.5
    return [
        exactly("clips without given words: timelines equal byte for byte", equal, len(paths)),
        exactly("film with subtitles: timeline equal byte for byte", answer.body == by_predict, 1),
        told("utterances of the film", film.num_utterances),
        told("film: acceptance to the end", median(wholes), "s"),
        told("film: one batch of 16", median(batches), "s"),
        at_most("film: acceptance to the first utterance", median(firsts), most_s, "s"),
    ]


async def throughput(setting: Setting) -> list[Figure]:
    """Jobs per minute of 1, 2 and 4 clients, alternating with `meld predict` on the same clips."""
    clips = setting.clips[: setting.num_clips]
    paths = _write(clips, setting.work / "throughput-clips")
    seconds: dict[str, list[float]] = {"meld predict": [], **{_clients(n): [] for n in (1, 2, 4)}}
    with (
        serving(setting.work / "throughput", *setting.options) as server,
        _alone(setting.options) as alone,
    ):
        await take(server.port, clips[:2], 2)
        _predict(alone, paths[:2])
        for number in range(setting.rounds):
            order = list(seconds) if number % 2 == 0 else list(reversed(seconds))
            for name in order:
                if name == "meld predict":
                    took_s = await asyncio.to_thread(_predict, alone, paths)
                else:
                    took_s = await take(server.port, clips, int(name.split()[0]))
                seconds[name].append(took_s)
    figures = [told("clips", len(clips)), told("rounds", setting.rounds)]
    base = median(seconds["meld predict"])
    for name, each in seconds.items():
        figures.append(told(f"{name}: jobs a minute", 60 * len(clips) / median(each)))
        figures.append(told(f"{name}: spread", (max(each) - min(each)) / median(each)))
        if name != "meld predict":
            share = base / median(each)
            is_goal = name == _clients(2)
            figures.append(
                at_least(f"{name} / meld predict", share, 0.9)
                if is_goal
                else told(f"{name} / meld predict", share)
            )
    return figures


def _clients(number: int) -> str:
    return f"{number} client{'s' if number > 1 else ''}"


async def take(
    port: int, clips: Sequence[Clip], number: int, *, keys: Iterator[str] | None = None
) -> float:
    """Seconds until all clips are predicted and erased, by several clients in parallel.

    keys: the uploads' Idempotency-Keys
    """
    left = list(clips)

    async def one() -> None:
        while left:
            key = None if keys is None else next(keys)
            answer = await send(port, upload_request(left.pop(0), key=key))
            job = answer.json["id"]
            async for _ in events(port, job):
                pass
            timeline = await ask(port, f"/v1/jobs/{job}/timeline")
            assert timeline.status == 200
            await ask(port, f"/v1/jobs/{job}", method="DELETE")

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(number)))
    return time.perf_counter() - began


@contextmanager
def _alone(options: Sequence[str]) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.service.alone", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _predict(alone: "subprocess.Popen[str]", paths: Sequence[Path]) -> float:
    assert alone.stdin is not None
    assert alone.stdout is not None
    alone.stdin.write(json.dumps([str(path) for path in paths]) + "\n")
    alone.stdin.flush()
    return float(alone.stdout.readline())


def _write(clips: Sequence[Clip], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for clip in clips:
        (folder / clip.name).write_bytes(clip.content)
    return [folder / clip.name for clip in clips]


# ----------------------------------------------------------------------------------------- peer


async def peer(setting: Setting) -> list[Figure]:
    """Sends ten clips at once and then an eleventh, to the service and to a simple handler."""
    clips = setting.clips[: _PEERS_CLIPS + 1]
    figures = [told("clips at one time", _PEERS_CLIPS)]
    with serving(setting.work / "peer", *setting.options) as server:
        await take(server.port, clips[:1], 1)
        figures += await _ten("meld serve", server.process.pid, server.port, "/livez", clips)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.service.peer", str(port), *setting.options]
    )
    try:
        await _await_peer(port)
        await _post(port, clips[0])
        figures += await _ten("handler", process.pid, port, "/health", clips)
    finally:
        process.kill()
        process.wait()
    return figures


async def _ten(
    name: str, process_id: int, port: int, alive: str, clips: Sequence[Clip]
) -> list[Figure]:
    memory = PeakMemory(process_id)
    probe = Probe(port, alive)
    one = _post if name == "handler" else _job
    began = time.perf_counter()
    ten = asyncio.gather(*(one(port, clip) for clip in clips[:-1]), return_exceptions=True)
    await asyncio.sleep(0.5)
    last = await asyncio.gather(one(port, clips[-1]), return_exceptions=True)
    answers = await ten
    took_s = time.perf_counter() - began
    await probe.end()
    memory.close()
    # Who gets no answer waits for ever.
    whole = [each for each in answers if isinstance(each, tuple)]
    firsts_s = sorted([each[0] for each in whole] + [math.inf] * (len(answers) - len(whole)))
    wholes_s = sorted([each[1] for each in whole] + [math.inf] * (len(answers) - len(whole)))
    [eleventh] = [each if isinstance(each, tuple) else (math.inf, math.inf) for each in last]
    num_answered = len(whole) + (eleventh[1] < math.inf)
    return [
        told(f"{name}: answered, the eleventh included", num_answered),
        told(f"{name}: median until the first answer", median(firsts_s), "s"),
        told(f"{name}: median until the timeline", median(wholes_s), "s"),
        told(f"{name}: first answer to the eleventh after", eleventh[0], "s"),
        told(f"{name}: timeline of the eleventh after", eleventh[1], "s"),
        told(f"{name}: clips a minute", 60 * num_answered / took_s),
        told(f"{name}: peak memory", memory.peak_bytes / 1e6, "MB"),
        told(f"{name}: slowest {alive} during the trial", max(probe.seconds, default=took_s), "s"),
        told(f"{name}: answers of {alive}", len(probe.seconds)),
    ]


async def _job(port: int, clip: Clip) -> tuple[float, float]:
    """Seconds until the clip is accepted, and until its timeline is ready."""
    began = time.perf_counter()
    job = (await send(port, upload_request(clip))).json["id"]
    accepted_s = time.perf_counter() - began
    async for _ in events(port, job):
        pass
    await ask(port, f"/v1/jobs/{job}/timeline")
    return accepted_s, time.perf_counter() - began


async def _post(port: int, clip: Clip) -> tuple[float, float]:
    body = (
        f"--{_BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="file"; filename="{clip.name}"\r\nContent-Type: video/mp4\r\n\r\n'
    ).encode()
    body += clip.content + f"\r\n--{_BOUNDARY}--\r\n".encode()
    headers = {
        "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    began = time.perf_counter()
    answer = await send(port, head("POST", "/predict", headers) + body)
    if answer.status != 200:
        raise RuntimeError(f"the handler answered {answer.status}")
    return answer.first_s, time.perf_counter() - began


async def _await_peer(port: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                await ask(port, "/health")
            except OSError:
                await asyncio.sleep(0.2)
            else:
                return


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
