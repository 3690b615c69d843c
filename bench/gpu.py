"""Measures what a GPU is for: extraction against its floor, precisions, fine-tuning, real text.

    python -m bench.gpu [--clips 240] [--steps 8] [--out bench/out]
                        [--data MELD --text FOLDER_OR_NAME] [--weights-dir DIR]

One command, one run; it takes the GPU if there is one, and otherwise measures the same on the CPU.
--data adds text of a real corpus with the encoder --text: extraction, and fine-tuning that reads
dialogues whole. It prints a table and writes gpu.json in --out. Encoders of generated clips have
random weights, which cost the same time.
"""

import argparse
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.corpus import CLIPS_PER_DIALOGUE, bert_base_shape, generate, say
from bench.extraction import time_extraction
from bench.floor import MEDIA, time_decoding
from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.clips import shuffled_batches
from fusion.finetuning.job import FinetuneConfig, choose_hardware, resolve
from fusion.finetuning.loop import TuneConfig, Tuning
from fusion.finetuning.setup import build_end_to_end, open_live
from fusion.finetuning.workers import Worker
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.decode.clip import decode_clip
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.extract.extract import ExtractConfig, extract
from pipeline.recipe import DecodeConfig, Precision
from pipeline.schema import MODALITIES, ClipFeatures, DecodedClip, LocatedClip, Modality
from pipeline.system.device import has_gpu, native_precision

BATCH = 16
CLIPS_IN_MEMORY = 64
# Square matrices whose product stands for what the hardware can do at most, by device.
PEAK_SIZE = {"cuda": 8192, "cpu": 2048}

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result. goal: as text; empty where there is none."""

    what: str
    value: float
    unit: str
    goal: str = ""


def main() -> None:
    arguments = _parse()
    work: Path = arguments.out
    work.mkdir(parents=True, exist_ok=True)
    device: Device = "cuda" if has_gpu() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    title = f"{name}, {len(os.sched_getaffinity(0))} cores, {native_precision(device)}"
    say(title)
    rows: list[Row] = []
    for part in _parts(arguments, work, device):
        for row in part:
            rows.append(row)
            say(f"{row.what}: {row.value:.4g} {row.unit}")
            # Each line is kept at once: a run that is ended early has measured something.
            found = {"title": title, "rows": [asdict(each) for each in rows]}
            (work / "gpu.json").write_text(json.dumps(found, indent=2))
    Console().print(_table(title, rows))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.gpu", description=__doc__)
    parser.add_argument("--clips", type=int, default=240)
    parser.add_argument("--steps", type=int, default=8, help="steps of fine-tuning that are timed")
    parser.add_argument("--batch-size", type=int, default=32, help="rows of such a step")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    parser.add_argument("--data", type=Path, help="folder of a real corpus, for its text")
    parser.add_argument("--text", default="minilm", help="text encoder for --data")
    parser.add_argument("--weights-dir", type=Path)
    return parser.parse_args()


def _parts(options: argparse.Namespace, work: Path, device: Device) -> Iterator[Iterator[Row]]:
    dialogues = max(3, round(options.clips / CLIPS_PER_DIALOGUE))
    clips, data = generate(work, dialogues)
    features = work / "gpu-features"
    text = bert_base_shape(work / "bert-base-shape")
    decoded = [
        decode_clip(clip, DecodeConfig(), MEDIA)
        for clip in clips[:: max(len(clips) // CLIPS_IN_MEMORY, 1)]
    ]
    yield _extraction(clips, decoded, data, features, text, device)
    yield _precisions(decoded, text, device)
    run = _start(features, work / "gpu-start", MODALITIES)
    yield _fine_tuning(
        "fine-tuning", FinetuneConfig(run=run, data=data, weights_dir=work), work, options
    )
    if options.data is not None:
        yield _real_text(options, work)


# -------------------------------------------------------------------------------- extraction


def _extraction(
    clips: list[LocatedClip],
    decoded: Sequence[DecodedClip],
    data: Path,
    features: Path,
    text: Path,
    device: Device,
) -> Iterator[Row]:
    """Decoding and the models overlap on a GPU, so the longer of them is the floor; on a CPU they
    share the cores, and the floor is their sum.

    decoded: some of the clips
    """
    cores = len(os.sched_getaffinity(0))
    decode_s = time_decoding(clips, DecodeConfig(), cores) / len(clips)
    yield Row(what="decoding alone, all cores", value=1 / decode_s, unit="clips/s")
    models_s = 1 / _clips_per_s(_encoders(text, native_precision(device), device), decoded)
    yield Row(what="models alone", value=1 / models_s, unit="clips/s")
    done = time_extraction(data, features, text, len(clips))
    steady_s = done.steady_s / done.steady_clips
    floor_s = max(decode_s, models_s) if device == "cuda" else decode_s + models_s
    yield Row(what="extraction, steady state", value=1 / steady_s, unit="clips/s")
    yield Row(what="extraction / floor", value=steady_s / floor_s, unit="x", goal="<= 1.25")
    waits = max(0.0, 1 - models_s / steady_s)
    yield Row(what="time in which no model computes", value=100 * waits, unit="%")
    yield Row(what="extraction, start to exit", value=done.seconds, unit="s")


def _encoders(text: Path, precision: Precision, device: Device) -> Encoders:
    request = EncoderRequest(text=str(text), text_weights="random", video_weights="random")
    choices = [choose_encoder(modality, request, precision) for modality in MODALITIES]
    return Encoders(choices, DecodeConfig()).to(device).eval()


def _clips_per_s(encoders: Encoders, clips: Sequence[DecodedClip]) -> float:
    encode_clips(encoders, clips[:BATCH])  # warm
    started_s = time.perf_counter()
    for first in range(0, len(clips), BATCH):
        encode_clips(encoders, clips[first : first + BATCH])  # ends in memory of the CPU
    return len(clips) / (time.perf_counter() - started_s)


# -------------------------------------------------------------------------------- precisions


def _precisions(some: Sequence[DecodedClip], text: Path, device: Device) -> Iterator[Row]:
    """Speed of each precision, and how far its features are from float32 without TF32."""
    ways: list[tuple[str, Precision, bool]] = [
        ("float32", "float32", False),
        ("float32 with TF32", "float32", True),
        ("bfloat16", "bfloat16", False),
    ]
    if device == "cpu":
        del ways[1]
    exact: list[ClipFeatures] = []
    for name, precision, tf32 in ways:
        with _tf32(tf32):
            encoders = _encoders(text, precision, device)
            yield Row(what=f"models in {name}", value=_clips_per_s(encoders, some), unit="clips/s")
            features = [
                each
                for first in range(0, len(some), BATCH)
                for each in encode_clips(encoders, some[first : first + BATCH])
            ]
        if not exact:
            exact = features
            continue
        for modality in MODALITIES:
            apart = _relative_error(exact, features, modality)
            what = f"{name}: {modality}, apart from float32"
            yield Row(what=what, value=apart, unit="relative, most")


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def _relative_error(
    exact: Sequence[ClipFeatures], other: Sequence[ClipFeatures], modality: Modality
) -> float:
    """The largest over clips of |a - b| / |a|, in the 2-norm."""
    errors = [0.0]
    for ours, theirs in zip(exact, other, strict=True):
        a, b = ours.raw.get(modality), theirs.raw.get(modality)
        if a is not None and b is not None:
            first, second = torch.from_numpy(a), torch.from_numpy(b)
            errors.append(float((first - second).norm() / first.norm().clamp(min=1e-12)))
    return max(errors)


# ------------------------------------------------------------------------------- fine-tuning


def _start(features: Path, out: Path, modalities: tuple[Modality, ...]) -> Path:
    """A fusion run to fine-tune from; how good it is does not matter here."""
    shutil.rmtree(out, ignore_errors=True)
    fit = FitConfig(epochs=1)
    train_fusion(TrainConfig(features=features, out=out, modalities=modalities, fit=fit))
    return out


def _fine_tuning(
    what: str, config: FinetuneConfig, work: Path, options: argparse.Namespace
) -> Iterator[Row]:
    """Steps as `meld finetune` takes them; the first, which sets up PyTorch, is not timed."""
    job = resolve(config, work / "never-written", choose_hardware(config))
    live = open_live(job)
    device = torch.device(job.hardware.device)
    tune = TuneConfig(batch_size=min(options.batch_size, len(live.train)))
    nowhere = ProgressFolder(work / "never-written")
    model = build_end_to_end(live, device)
    tuning = Tuning(model, live.train, live.dev, tune, 0, Worker(device=device), nowhere)
    model.train()
    epochs = (
        shuffled_batches(
            live.train.lengths, tune.batch_size, seed=0, epoch=epoch, groups=live.train.groups
        )
        for epoch in itertools.count(1)  # a small corpus has fewer steps than are timed
    )
    batches = list(itertools.islice(itertools.chain.from_iterable(epochs), options.steps + 1))
    ready = tuning.load(live.train, [part for batch in batches for part in tuning.parts(batch)])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counted:
        tuning.do_step(batches[0], ready)
    flops_a_row = counted.get_total_flops() / len(batches[0])
    seconds = _seconds(device, lambda: [tuning.do_step(batch, ready) for batch in batches[1:]])
    rows_per_s = sum(map(len, batches[1:])) / seconds
    yield Row(what=f"{what}, {job.hardware.precision}", value=rows_per_s, unit="rows/s")
    yield Row(what=f"{what}: arithmetic", value=flops_a_row / 1e9, unit="GFLOP/row")
    share = rows_per_s * flops_a_row / _peak(device, job.hardware.precision)
    yield Row(what=f"{what}: of the peak of matrix products", value=100 * share, unit="%")
    if device.type == "cuda":
        gib = torch.cuda.max_memory_allocated() / 2**30
        yield Row(what=f"{what}: memory of the GPU", value=gib, unit="GiB")


def _peak(device: torch.device, precision: Precision) -> float:
    """FLOP/s of one large matrix product, measured: what no step can exceed."""
    size = PEAK_SIZE[device.type]
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    times_s = [_seconds(device, lambda: a @ b) for _ in range(5)]
    return 2 * float(size) ** 3 / min(times_s)


def _seconds(device: torch.device, work: Callable[[], Tensor | list[float]]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started_s


# ---------------------------------------------------------------------------------- real text


def _real_text(options: argparse.Namespace, work: Path) -> Iterator[Row]:
    features = work / "gpu-text-features"
    shutil.rmtree(features, ignore_errors=True)
    request = EncoderRequest(
        text=options.text, context="dialogue", future=True, weights_dir=options.weights_dir
    )
    config = ExtractConfig(
        data=options.data, features=features, modalities=("text",), encoders=request
    )
    marks: list[tuple[float, int]] = []
    extract(config, lambda done, *_: marks.append((time.monotonic(), done)))
    marks = [mark for mark in marks if mark[1]]
    (first_s, first), (last_s, last) = marks[0], marks[-1]
    if last > first:
        value = (last - first) / (last_s - first_s)
        yield Row(what="text, dialogues read whole: extraction", value=value, unit="rows/s")
    run = _start(features, work / "gpu-text-start", ("text",))
    tuned = FinetuneConfig(run=run, data=options.data, weights_dir=options.weights_dir)
    yield from _fine_tuning(
        "text, dialogues read whole: fine-tuning",
        replace(tuned, features=features),
        work,
        options,
    )


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title)
    for name in ("what", "measured", "unit", "goal"):
        table.add_column(name, justify="right" if name == "measured" else "left")
    for row in rows:
        table.add_row(row.what, f"{row.value:.4g}", row.unit, row.goal)
    return table


if __name__ == "__main__":
    main()
