"""Compares `meld predict` on a long file with the sum of its parts, measured one by one.

    python -m bench.long_file --clips FOLDER [--minutes 60] [--model RUN] [--given-words]

The clips of the folder are joined without re-encoding and repeated. Without --given-words, speech
is recognised in the file; with it, the recognised utterances are given as subtitles, and nothing is
recognised. Nothing else may run on the machine.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pysubs2
from numpy.typing import NDArray

from bench.memory import PeakMemory
from fusion.inference.load import ModelChoice
from fusion.inference.media import UTTERANCES_PER_BATCH
from fusion.inference.predictor import Predictor
from fusion.inference.recogniser import load_recogniser
from fusion.inference.speech import SpeechConfig, take_stretch
from fusion.inference.voice import RATE_HZ, RegionFinder, SpeechRegion, VoiceDetector, read_sound
from pipeline.decode.clip import as_clip
from pipeline.decode.spans import decode_spans
from pipeline.recipe import DecodeConfig
from pipeline.schema import MEDIA, ClipFeatures, ClipKey, DecodedMedia, MediaSpan, Utterance

RECOGNISER = "tiny.en"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """One `meld predict` in a new process, from import to exit."""

    seconds: float
    peak_bytes: int
    timeline: bytes


def main() -> None:
    arguments = _parse()
    work: Path = arguments.out
    work.mkdir(parents=True, exist_ok=True)
    clips = sorted(arguments.clips.rglob("*.mp4"))
    long = join_looped(clips, work / "long.mp4", minutes=arguments.minutes)
    short = join_looped(clips, work / "short.mp4", minutes=1)
    model = [] if arguments.model is None else ["--model", str(arguments.model)]
    for path in (short, long):
        path.with_suffix(".srt").unlink(missing_ok=True)
    if arguments.given_words:
        for path in (short, long):  # recognised once, for the words
            heard = predict(path, work / "heard", [])
            write_subtitles(json.loads(heard.timeline), path.with_suffix(".srt"))
    results: dict[str, Any] = {"minutes": arguments.minutes, "heard": not arguments.given_words}
    small = predict(short, work / "whole", model)
    whole = predict(long, work / "whole", model)
    results["whole_s"] = whole.seconds
    results["peak_mb_above_one_minute"] = (whole.peak_bytes - small.peak_bytes) / 1e6
    results["utterances"] = len(json.loads(whole.timeline)["utterances"])
    broken = predict_killed(long, work / "broken", model, whole.seconds, arguments.kills)
    results["killed_and_resumed_is_the_same"] = broken == whole.timeline
    parts = measure_parts(
        long, ModelChoice(run=arguments.model), json.loads(whole.timeline), arguments.given_words
    )
    results["parts_s"] = parts
    results["over_its_parts"] = whole.seconds / sum(parts.values())
    print(json.dumps(results, indent=2))


def join_looped(clips: Sequence[Path], out: Path, *, minutes: float) -> Path:
    """Joins the clips and repeats them, without re-encoding their packets."""
    if out.exists():
        return out
    at_s = 0.0
    with av.open(str(out), "w") as joined:
        streams: dict[str, Any] = {}
        for path in itertools.cycle(clips):
            if at_s >= minutes * 60:
                break
            length_s = 0.0
            with av.open(str(path)) as clip:
                wanted = clip.streams.video[0], clip.streams.audio[0]
                for stream in wanted:
                    if stream.type not in streams:
                        streams[stream.type] = joined.add_stream_from_template(stream)
                    end = (stream.start_time or 0) + (stream.duration or 0)
                    length_s = max(length_s, float(end * (stream.time_base or 0)))
                for packet in clip.demux(wanted):
                    if packet.size:
                        shift = round(at_s / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                        packet.stream = streams[packet.stream.type]
                        joined.mux(packet)
            at_s = float(math.ceil(at_s + length_s + 0.1))  # after hidden packets at the start
    return out


def write_subtitles(timeline: dict[str, Any], path: Path) -> None:
    cues = pysubs2.SSAFile()
    for each in timeline["utterances"]:
        cues.append(pysubs2.SSAEvent(each["start_ms"], each["end_ms"], each["text"] or "..."))
    cues.save(str(path))


def predict(path: Path, out: Path, options: Sequence[str]) -> Whole:
    started = time.perf_counter()
    process = _start(path, out, options)
    memory = PeakMemory(process.pid)
    status = process.wait()
    memory.close()
    if status != 0:
        raise SystemExit(f"meld predict {path} ended with status {status}")
    return Whole(
        seconds=time.perf_counter() - started,
        peak_bytes=memory.peak_bytes,
        timeline=_written(path, out).read_bytes(),
    )


def predict_killed(
    path: Path, out: Path, options: Sequence[str], seconds: float, kills: int
) -> bytes:
    """The timeline of a prediction that is killed several times, at even intervals."""
    for _ in range(kills):
        process = _start(path, out, options)
        try:
            process.wait(seconds / (kills + 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if _written(path, out).exists():
            raise SystemExit("the prediction finished before it was killed")
    return predict(path, out, options).timeline


def _start(path: Path, out: Path, options: Sequence[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "cli", "predict", str(path), "--out", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _written(path: Path, out: Path) -> Path:
    return out / f"{path.name}.meld.json"


def measure_parts(
    path: Path, model: ModelChoice, timeline: dict[str, Any], given_words: bool
) -> dict[str, float]:
    """Seconds of each part, measured separately."""
    clock = _Clock()
    with clock.measures("start, imports and model in a process"):
        _load_in_a_process(model)
    predictor = model.load()
    if not given_words:
        _hear(path, predictor.decode or DecodeConfig(), timeline["media"]["duration_ms"], clock)
    _predict(path, predictor, timeline["utterances"], clock)
    return clock.seconds


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def measures(self, part: str) -> "_Part":
        return _Part(self, part)


class _Part:
    def __init__(self, clock: _Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        took = time.perf_counter() - self._started
        self._clock.seconds[self._name] = self._clock.seconds.get(self._name, 0) + took


def _load_in_a_process(model: ModelChoice) -> None:
    code = "import sys, meld; meld.load(sys.argv[1] if len(sys.argv) > 1 else None)"
    run = [] if model.run is None else [str(model.run)]
    subprocess.run([sys.executable, "-c", code, *run], check=True)


def _hear(path: Path, decode: DecodeConfig, duration_ms: int, clock: _Clock) -> None:
    with clock.measures("sound decoded"):
        blocks = list(read_sound(path, decode, duration_ms=duration_ms))
    detector, finder = VoiceDetector.load(), RegionFinder(SpeechConfig().voice)
    regions: list[SpeechRegion] = []
    with clock.measures("voice detector"):
        for block in blocks:
            regions += finder.take(detector.take(block))
        regions += finder.finish(duration_ms)
    sound = np.concatenate(blocks)
    with load_recogniser(RECOGNISER) as recogniser, clock.measures("recogniser"):
        for samples in _stretches(sound, regions):
            recogniser.recognise(samples, None)


def _stretches(
    sound: NDArray[np.float32], regions: list[SpeechRegion]
) -> Iterator[NDArray[np.float32]]:
    while stretch := take_stretch(regions, None, SpeechConfig()):
        start, end = (ms * RATE_HZ // 1000 for ms in (stretch[0].start_ms, stretch[-1].end_ms))
        yield sound[start:end]


def _predict(
    path: Path, predictor: Predictor, utterances: Sequence[dict[str, Any]], clock: _Clock
) -> None:
    spans = [MediaSpan(start_ms=each["start_ms"], end_ms=each["end_ms"]) for each in utterances]
    wanted = [name for name in predictor.modalities if name in MEDIA]
    decoded: Iterator[DecodedMedia] = (DecodedMedia(span=span) for span in spans)
    if wanted:
        decoded = decode_spans(path, spans, predictor.decode or DecodeConfig(), wanted)
    features: list[ClipFeatures] = []
    for start in range(0, len(spans), UTTERANCES_PER_BATCH):
        with clock.measures("pictures and sound decoded"):
            media = list(islice(decoded, UTTERANCES_PER_BATCH))
        rows = range(start, start + len(media))
        clips = [
            as_clip(_row(row, utterances[row]["text"]), each)
            for row, each in zip(rows, media, strict=True)
        ]
        with clock.measures("encoders"):
            features += predictor.encode(clips)
    with clock.measures("fusion"):
        for start in range(0, len(features), UTTERANCES_PER_BATCH):
            rows = range(start, min(start + UTTERANCES_PER_BATCH, len(features)))
            predictor.predict_turns(features, rows)


def _row(number: int, text: str) -> Utterance:
    return Utterance(key=ClipKey("test", 0, number), text=text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.long_file", description=__doc__)
    parser.add_argument("--clips", type=Path, required=True, help="folder of clips, H.264 and AAC")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--model", type=Path, help="a run; without it the bundled model")
    parser.add_argument("--given-words", action="store_true", help="subtitles, no recognition")
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
