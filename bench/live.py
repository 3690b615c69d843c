"""Measures live sessions of `meld serve`: the time from the end of speech to the final answer.

    python -m bench.live MEDIA [--times 3] [--sessions 1] [--kill-worker-after S] [--model RUN]

A new service receives the sound of the file in real time, --times times, each time followed by two
seconds of silence; with --sessions, from several clients that begin one after another within
--within seconds. The lag is `lag_ms` of the message `utterance.end`: from the end of the voice to
the answer. "provisional_after_s" are the seconds from the start of a turn, or from the provisional
answer before it, to a provisional answer. Lags are only worth something on a machine on which
nothing else runs. The exit status is 3 if a goal is missed.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from bench.service.client import ask
from bench.service.server import Server, serving
from fusion.inference.voice import RATE_HZ
from pipeline.decode.spans import decode_media
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan

_PIECE = RATE_HZ // 10
_SILENCE_S = 2


Message = dict[str, Any]
_GOAL_S = 1.5  # p95, of one session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("media", type=Path)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--within", type=float, default=5.0, metavar="S")
    parser.add_argument("--kill-worker-after", type=float, metavar="S", help="SIGKILL, once")
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    sound = read_pcm(arguments.media, arguments.times)
    options = [] if arguments.model is None else ["--model", str(arguments.model)]
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "live", *options) as server,
    ):
        sessions = asyncio.run(listen_all(server, sound, arguments))
    report = {
        "seconds_of_sound": round(len(sound) / 2 / RATE_HZ, 1),
        "sessions": len(sessions),
        "load_before": load,
        "load_after": os.getloadavg()[0],
        **describe(sessions),
    }
    print(json.dumps(report, indent=2))
    goals = judge(report, arguments)
    for goal, is_met in goals.items():
        print(f"{'met' if is_met else 'MISSED'}: {goal}")
    sys.exit(0 if all(goals.values()) else 3)


def describe(sessions: Sequence[Sequence[Message]]) -> Message:
    told = [each for session in sessions for each in session]
    ends = [each for each in told if each["type"] == "utterance.end"]
    closed = Counter(str(session[-1].get("reason", session[-1]["type"])) for session in sessions)
    codes = Counter(str(each.get("code")) for each in told if each["type"] == "error")
    return {
        "turns": len(ends),
        "utterances": sum(len(each["utterances"]) for each in ends),
        "lag_s": quantiles([each["lag_ms"] / 1000 for each in ends]),
        "provisional_after_s": quantiles([gap for each in sessions for gap in gaps_s(each)]),
        "errors": dict(codes),
        "closed": dict(closed),
    }


def gaps_s(session: Sequence[Message]) -> list[float]:
    """Between the start of a turn and its provisional answers, as they arrived."""
    found, last_s = [], None
    for each in session:
        is_provisional = each["type"] == "measurement.result" and not each["final"]
        if is_provisional and last_s is not None:
            found.append(each["at_s"] - last_s)
        if is_provisional or each["type"] == "utterance.start":
            last_s = each["at_s"]
        if each["type"] == "utterance.end":
            last_s = None
    return found


def quantiles(values: Sequence[float]) -> Message | None:
    if not values:
        return None
    at = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    found = {name: round(float(np.quantile(values, share)), 2) for name, share in at.items()}
    return {"number": len(values), **found}


def judge(report: Message, arguments: argparse.Namespace) -> dict[str, bool]:
    """Whether each goal is met. With several sessions, or a killed worker, the lag is told only."""
    # Too many for the machine: those that are too far behind are closed, as is documented.
    reasons = ("client",) if arguments.sessions == 1 else ("client", "lagging")
    closed = sum(report["closed"].get(reason, 0) for reason in reasons)
    goals = {f"every session ends by {' or '.join(reasons)}": closed == arguments.sessions}
    if arguments.sessions == 1 and arguments.kill_worker_after is None:
        lag = report["lag_s"]
        goals[f"p95 of the lag <= {_GOAL_S} s"] = lag is not None and lag["p95"] <= _GOAL_S
    if arguments.kill_worker_after is not None:
        goals["no error is told"] = not report["errors"]
    return goals


async def listen_all(
    server: Server, sound: bytes, arguments: argparse.Namespace
) -> list[list[Message]]:
    """The messages of each session."""

    async def one(number: int) -> list[Message]:
        await asyncio.sleep(arguments.within * number / arguments.sessions)
        return await listen(server.port, sound)

    async def kill() -> None:
        await asyncio.sleep(arguments.kill_worker_after)
        server.kill_worker()

    killing = None if arguments.kill_worker_after is None else asyncio.create_task(kill())
    sessions = await asyncio.gather(*map(one, range(arguments.sessions)))
    if killing is not None:
        await killing
    return sessions


def read_pcm(media: Path, times: int) -> bytes:
    """The sound of the file, repeated with silence in between: 16-bit mono PCM at 16 kHz."""
    decoded = decode_media(media, MediaSpan(), DecodeConfig(max_duration_s=600), ["audio"])
    if decoded.waveform is None:
        raise SystemExit(f"{media}: {'; '.join(each.message for each in decoded.failures)}")
    waveform: NDArray[np.float32] = decoded.waveform
    samples = (np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()
    return (samples + bytes(2 * RATE_HZ * _SILENCE_S)) * times


async def listen(port: int, sound: bytes) -> list[Message]:
    """Sends the sound; returns all messages of the service, with `at_s`, when each arrived."""
    ticket = (await ask(port, "/v1/live/tickets", method="POST")).json
    address = f"ws://127.0.0.1:{port}{ticket['address']}"
    async with connect(address, subprotocols=ticket["protocols"], max_size=None) as socket:
        told = [json.loads(await socket.recv())]
        await socket.send(json.dumps({"type": "session.update"}))
        while told[-1]["type"] != "session.updated":  # the recogniser is loaded now
            told.append(json.loads(await socket.recv()))
        sending = asyncio.create_task(play(socket, sound))
        async for message in socket:
            told.append({**json.loads(message), "at_s": time.monotonic()})
        sending.cancel()  # it may have been closed before all was sent
        with suppress(asyncio.CancelledError, ConnectionClosed):
            await sending
    return told


async def play(socket: ClientConnection, sound: bytes) -> None:
    """Sends the sound in real time."""
    began_s = time.monotonic()
    for number, start in enumerate(range(0, len(sound), 2 * _PIECE)):
        await asyncio.sleep(max(0.0, began_s + number * _PIECE / RATE_HZ - time.monotonic()))
        await socket.send(b"\x01" + sound[start : start + 2 * _PIECE])
    await socket.send(json.dumps({"type": "session.close"}))


if __name__ == "__main__":
    main()
