"""Compares fine-tuning with its floors: reading clips from the store with decoding them again, and
a training step with forward and backward passes on tensors in memory.

    python -m bench.finetuning --run RUN --data DATA [--steps 8] [--micro-batch 4]

RUN is a fusion run on raw features of all three modalities of DATA.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.clips import RawBatch, shuffled_batches
from fusion.finetuning.job import FinetuneConfig, choose_hardware, resolve
from fusion.finetuning.loop import TuneConfig, Tuning
from fusion.finetuning.setup import LiveData, build_end_to_end, open_live
from fusion.finetuning.workers import Worker
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.decode.clip import decode_clip

CPU = torch.device("cpu")


def main() -> None:
    arguments = _parse()
    config = FinetuneConfig(run=arguments.run, data=arguments.data, device="cpu")
    live = open_live(resolve(config, Path("never-written"), choose_hardware(config)))
    store_s, decode_s = _time_reading(live, arguments.data)
    step_s, floor_s = _time_steps(live, arguments.steps, arguments.micro_batch)
    clips = len(live.train)
    epoch_s = step_s * clips
    results = {
        "clips": clips,
        "store_ms_per_clip": 1000 * store_s / clips,
        "decode_ms_per_clip": 1000 * decode_s / clips,
        "epoch_decoding_over_epoch_with_store": (epoch_s + decode_s - store_s) / epoch_s,
        "step_ms_per_clip": 1000 * step_s,
        "step_over_forward_and_backward": step_s / floor_s,
    }
    print(json.dumps(results, indent=2))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.finetuning", description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=4)
    return parser.parse_args()


def _time_reading(live: LiveData, data: Path) -> tuple[float, float]:
    """Seconds for all rows of train on one core: augmented, from the store; and only decoded."""
    started_s = time.perf_counter()
    for row in range(len(live.train)):
        live.train[1, row]
    store_s = time.perf_counter() - started_s
    decode = live.recipe.decode
    assert decode is not None
    clips = locate_clips(data, "train", read_corpus(data, ("train",))["train"], "fixed")
    started_s = time.perf_counter()
    for clip in clips:
        decode_clip(clip, decode, ("video", "audio"))
    return store_s, time.perf_counter() - started_s


def _time_steps(live: LiveData, steps: int, micro_batch: int) -> tuple[float, float]:
    """Seconds per clip of whole training steps, and of forward and backward passes on the same
    batches in memory. Both alternate, so that other load affects both."""
    config = TuneConfig(batch_size=4 * micro_batch, micro_batch_size=micro_batch)
    model = build_end_to_end(live, CPU)
    tuning = Tuning(
        model, live.train, live.dev, config, 0, Worker(device=CPU), ProgressFolder(Path("nowhere"))
    )
    model.train()
    rows = shuffled_batches(live.train.lengths, config.batch_size, seed=0, epoch=1)
    rows = [batch for batch in rows if len(batch) == config.batch_size][: steps + 1]
    parts = [part for batch in rows for part in tuning.parts(batch)]
    held = iter(list(tuning.load(live.train, parts)))
    ready = iter(tuning.load(live.train, parts))
    step_s = floor_s = 0.0
    for index, batch in enumerate(rows):
        started_s = time.perf_counter()
        tuning.do_step(batch, ready)
        middle_s = time.perf_counter()
        _forward_and_backward(tuning, [next(held) for _ in tuning.parts(batch)])
        if index:  # the first pass includes the set-up of PyTorch
            step_s += middle_s - started_s
            floor_s += time.perf_counter() - middle_s
    clips = sum(len(batch) for batch in rows[1:])
    return step_s / clips, floor_s / clips


def _forward_and_backward(tuning: Any, batches: list[RawBatch]) -> None:
    tuning.optimiser.zero_grad()
    for batch in batches:
        output = tuning.model(batch)
        tuning.loss_of(output, batch.rows, None).backward()


if __name__ == "__main__":
    main()
