"""Measures extraction, training and start-up against their floors; prints one table.

    python -m bench [--clips 240] [--tutorial-clips 24] [--out bench/out]

Every ratio comes from one run on the same generated clips. Nothing else may run on the machine.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.floor import Floor, measure_floor
from bench.memory import PeakMemory
from bench.training import TrainingTimes, measure_training
from bench.tutorial import measure_tutorial
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.weights import find_text_encoder
from pipeline.recipe import DecodeConfig
from pipeline.sample.corpus import SampleConfig, make_sample
from pipeline.schema import MODALITIES, LocatedClip
from pipeline.system.device import native_precision

CLIPS_PER_DIALOGUE = 5.3
SMALL_DIALOGUES = 4  # about 20 clips, to measure the fixed cost of starting


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """One `meld extract` in a new process, from import to exit."""

    seconds: float
    steady_s: float
    steady_clips: int
    peak_bytes: int


def main() -> None:
    arguments = _parse()
    work: Path = arguments.out
    work.mkdir(parents=True, exist_ok=True)
    say(f"generating about {arguments.clips} clips in {work / 'data'}")
    dialogues = max(3, round(arguments.clips / CLIPS_PER_DIALOGUE))
    clips, data = _generate(work, dialogues)
    few_clips, few_data = _generate(work, SMALL_DIALOGUES)
    workers = len(os.sched_getaffinity(0))
    text_folder = _bert_base_shape(work / "bert-base-shape")
    say("extracting")
    extraction = _time_extraction(data, work / "bench-features", text_folder, len(clips))
    small = _time_extraction(few_data, work / "bench-features-small", text_folder, len(few_clips))
    say("measuring the floor")
    floor = _floor(clips, text_folder, workers)
    say("extracting as tutorials do")
    tutorial_s = measure_tutorial(clips[: arguments.tutorial_clips], text_folder, workers)
    say("training")
    training = measure_training(work, arguments.epochs, workers)
    help_s = _time_help()
    results = _results(len(clips), extraction, floor, tutorial_s, training, help_s)
    results |= _small_job(small, floor.seconds * len(few_clips) / len(clips), len(few_clips))
    (work / "results.json").write_text(json.dumps(results, indent=2))
    Console().print(_table(len(clips), workers, results))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--tutorial-clips", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    return parser.parse_args()


def _generate(work: Path, dialogues: int) -> tuple[list[LocatedClip], Path]:
    data = work / f"data-{dialogues}"
    make_sample(SampleConfig(out=data, dialogues=dialogues))
    return _locate(data), data


def _locate(data: Path) -> list[LocatedClip]:
    corpus = read_corpus(data, None)
    return [
        clip for split, rows in corpus.items() for clip in locate_clips(data, split, rows, "fixed")
    ]


def _bert_base_shape(folder: Path) -> Path:
    """Writes BERT base's config with the bundled tokenizer, which has the same vocabulary. Random
    weights cost the same time as trained ones."""
    from transformers import BertConfig

    folder.mkdir(parents=True, exist_ok=True)
    for file in find_text_encoder("minilm", None).iterdir():
        if file.name.startswith(("tokenizer", "vocab", "special_tokens")):
            shutil.copy(file, folder / file.name)
    BertConfig().save_pretrained(folder)
    return folder


def _time_extraction(data: Path, features: Path, text_folder: Path, num_clips: int) -> Extraction:
    shutil.rmtree(features, ignore_errors=True)
    module = "bench.extract_once"
    command = [sys.executable, "-m", module, str(data), str(features), str(text_folder)]
    started_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with closing(PeakMemory(process.pid)) as memory:
        output, _ = process.communicate()
    seconds = time.monotonic() - started_s
    if process.returncode:
        raise SystemExit(f"extraction failed with status {process.returncode}")
    marks = [(at_s, done) for at_s, done in json.loads(output.splitlines()[-1]) if done]
    return Extraction(
        seconds=seconds,
        steady_s=marks[-1][0] - marks[0][0],
        steady_clips=num_clips - marks[0][1],
        peak_bytes=memory.peak_bytes,
    )


def _floor(clips: list[LocatedClip], text_folder: Path, workers: int) -> Floor:
    request = EncoderRequest(text=str(text_folder), text_weights="random", video_weights="random")
    precision = native_precision("cpu")
    choices = [choose_encoder(modality, request, precision) for modality in MODALITIES]
    return measure_floor(clips, choices, DecodeConfig(), workers)


def _time_help() -> float:
    """The median of five starts, in seconds."""
    command = [str(Path(sys.executable).parent / "meld"), "--help"]
    times_s = []
    for _ in range(5):
        started_s = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times_s.append(time.perf_counter() - started_s)
    return statistics.median(times_s)


def _results(
    num_clips: int,
    extraction: Extraction,
    floor: Floor,
    tutorial_s: float,
    training: TrainingTimes,
    help_s: float,
) -> dict[str, dict[str, Any]]:
    floor_per_clip = floor.seconds / num_clips
    steady_per_clip = extraction.steady_s / extraction.steady_clips
    rows = [
        ("floor: decoding, all cores", floor.decode_s / num_clips, "s/clip", ""),
        ("floor: models alone", floor.models_s / num_clips, "s/clip", ""),
        ("meld extract, start to exit", extraction.seconds / num_clips, "s/clip", ""),
        ("meld extract, steady state", steady_per_clip, "s/clip", ""),
        ("tutorial way", tutorial_s, "s/clip", ""),
        ("steady state / floor", steady_per_clip / floor_per_clip, "x", "<= 1.15"),
        ("start to exit / floor", extraction.seconds / floor.seconds, "x", ""),
        ("tutorial / steady state", tutorial_s / steady_per_clip, "x", ">= 8"),
        ("tutorial / start to exit", tutorial_s * num_clips / extraction.seconds, "x", ""),
        ("peak memory of extraction", extraction.peak_bytes / 2**30, "GiB", "<= 3"),
        ("training: bare arithmetic", training.arithmetic_s, "s/epoch", ""),
        ("training: fit", training.fit_s, "s/epoch", ""),
        ("training: DataLoader over HDF5", training.dataloader_s, "s/epoch", ""),
        ("fit / bare arithmetic", training.fit_s / training.arithmetic_s, "x", "<= 1.5"),
        ("DataLoader / fit", training.dataloader_s / training.fit_s, "x", ">= 10"),
        ("meld --help", help_s, "s", "<= 0.5"),
    ]
    return {name: {"value": value, "unit": unit, "goal": goal} for name, value, unit, goal in rows}


def _small_job(extraction: Extraction, floor_s: float, num_clips: int) -> dict[str, dict[str, Any]]:
    """Rows of a new process from start to exit, with imports, Ray, models and merging."""
    what = f"{num_clips} clips"
    return {
        f"floor: {what}": {"value": floor_s, "unit": "s", "goal": ""},
        f"{what}, start to exit": {"value": extraction.seconds, "unit": "s", "goal": ""},
        f"{what}, start to exit / floor": {
            "value": extraction.seconds / floor_s,
            "unit": "x",
            "goal": "<= 2",
        },
    }


def _table(num_clips: int, workers: int, results: dict[str, dict[str, Any]]) -> Table:
    table = Table(title=f"{num_clips} generated clips, {workers} cores, one run")
    for name in ("what", "measured", "unit", "goal"):
        table.add_column(name, justify="right" if name == "measured" else "left")
    for name, row in results.items():
        table.add_row(name, f"{row['value']:.3f}", row["unit"], row["goal"])
    return table


if __name__ == "__main__":
    main()
