"""Measures extraction, training and start-up against their floors; prints one table.

    python -m bench [--clips 240] [--tutorial-clips 24] [--out bench/out]

Every ratio comes from one run on the same generated clips. Nothing else may run on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.corpus import CLIPS_PER_DIALOGUE, bert_base_shape, generate, say
from bench.extraction import Extraction, time_extraction
from bench.floor import Floor, measure_floor
from bench.training import TrainingTimes, measure_training
from bench.tutorial import measure_tutorial
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.recipe import DecodeConfig
from pipeline.schema import MODALITIES, LocatedClip
from pipeline.system.device import native_precision

SMALL_DIALOGUES = 4  # about 20 clips, to measure the fixed cost of starting


def main() -> None:
    arguments = _parse()
    work: Path = arguments.out
    work.mkdir(parents=True, exist_ok=True)
    say(f"generating about {arguments.clips} clips in {work / 'data'}")
    dialogues = max(3, round(arguments.clips / CLIPS_PER_DIALOGUE))
    clips, data = generate(work, dialogues)
    few_clips, few_data = generate(work, SMALL_DIALOGUES)
    workers = len(os.sched_getaffinity(0))
    text_folder = bert_base_shape(work / "bert-base-shape")
    say("extracting")
    extraction = time_extraction(data, work / "bench-features", text_folder, len(clips))
    small = time_extraction(few_data, work / "bench-features-small", text_folder, len(few_clips))
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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--tutorial-clips", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    return parser.parse_args()


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
