"""The floor of extraction time: decoding alone on all cores, then the models alone."""

import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch

from pipeline.decode.clip import decode_clip
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.encoder import EncoderChoice
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedClip, LocatedClip, Modality

MEDIA: tuple[Modality, ...] = ("video", "audio")


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Seconds for all clips."""

    decode_s: float
    models_s: float

    @property
    def seconds(self) -> float:
        return self.decode_s + self.models_s


def measure_floor(
    clips: Sequence[LocatedClip],
    choices: Sequence[EncoderChoice],
    decode: DecodeConfig,
    workers: int,
) -> Floor:
    """Measures both parts in warm processes, without start-up and writing."""
    decode_s = time_decoding(clips, decode, workers)
    # A sixth of the clips, repeated: the time of the models does not depend on the pixels.
    some = [decode_clip(clip, decode, MEDIA) for clip in clips[:: max(len(clips) // 64, 1)]]
    models_s = _time_models(some, choices, decode, workers) * len(clips) / len(some)
    return Floor(decode_s=decode_s, models_s=models_s)


def time_decoding(clips: Sequence[LocatedClip], decode: DecodeConfig, workers: int) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        # All processes have started and imported before the clock starts.
        list(pool.map(_decode_and_drop, [(clip, decode) for clip in clips[: workers * 2]]))
        started_s = time.perf_counter()
        list(pool.map(_decode_and_drop, [(clip, decode) for clip in clips], chunksize=4))
        return time.perf_counter() - started_s


def _decode_and_drop(job: tuple[LocatedClip, DecodeConfig]) -> None:
    decode_clip(job[0], job[1], MEDIA)


def _time_models(
    clips: list[DecodedClip],
    choices: Sequence[EncoderChoice],
    decode: DecodeConfig,
    workers: int,
) -> float:
    torch.set_num_threads(workers)
    encoders = Encoders(choices, decode)
    encode_clips(encoders, clips[:8])
    started_s = time.perf_counter()
    for first in range(0, len(clips), 16):
        encode_clips(encoders, clips[first : first + 16])
    return time.perf_counter() - started_s
