"""Measures the time from the end of speech to the final answer of a live session.

    python -m bench.live MEDIA [--times 3] [--model RUN]

A new `meld serve` receives the sound of the file in real time, --times times, each time followed
by two seconds of silence. The lag is `lag_ms` of the message `utterance.end`: from the end of the
voice to the answer. Nothing else may run on the machine.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect

from bench.service.server import serving
from fusion.inference.voice import RATE_HZ
from pipeline.decode.spans import decode_media
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan

_PIECE = RATE_HZ // 10
_SILENCE_S = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("media", type=Path)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    sound = read_pcm(arguments.media, arguments.times)
    options = [] if arguments.model is None else ["--model", str(arguments.model)]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "live", *options) as server,
    ):
        told = asyncio.run(listen(server.port, sound))
    ends = [each for each in told if each["type"] == "utterance.end"]
    lags_s = np.array([each["lag_ms"] for each in ends]) / 1000
    provisional = [
        each for each in told if each["type"] == "measurement.result" and not each["final"]
    ]
    report = {
        "seconds_of_sound": round(len(sound) / 2 / RATE_HZ, 1),
        "turns": len(ends),
        "utterances": sum(len(each["utterances"]) for each in ends),
        "provisional": len(provisional),
        "lag_s": {
            "p50": round(float(np.quantile(lags_s, 0.5)), 2),
            "p95": round(float(np.quantile(lags_s, 0.95)), 2),
            "max": round(float(lags_s.max()), 2),
        },
        "load_average": os.getloadavg()[0],
        "closed": told[-1],
    }
    print(json.dumps(report, indent=2))


def read_pcm(media: Path, times: int) -> bytes:
    """The sound of the file, repeated with silence in between: 16-bit mono PCM at 16 kHz."""
    decoded = decode_media(media, MediaSpan(), DecodeConfig(max_duration_s=600), ["audio"])
    assert decoded.waveform is not None, f"{media} has no sound"
    waveform: NDArray[np.float32] = decoded.waveform
    samples = (np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()
    return (samples + bytes(2 * RATE_HZ * _SILENCE_S)) * times


async def listen(port: int, sound: bytes) -> list[dict[str, Any]]:
    """Sends the sound; returns all messages of the service."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/live/tickets", method="POST")
    with urllib.request.urlopen(request) as answer:
        ticket = json.loads(answer.read())
    address = f"ws://127.0.0.1:{port}{ticket['address']}"
    async with connect(address, subprotocols=ticket["protocols"], max_size=None) as socket:
        told = [json.loads(await socket.recv())]
        await socket.send(json.dumps({"type": "session.update"}))
        while told[-1]["type"] != "session.updated":  # the recogniser is loaded now
            told.append(json.loads(await socket.recv()))
        sending = asyncio.create_task(play(socket, sound))
        async for message in socket:
            told.append(json.loads(message))
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
