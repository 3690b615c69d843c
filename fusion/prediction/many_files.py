"""Predicts many media files in parallel, on the cores of this machine or of a cluster.

    files -> `work_on_shards`, as a corpus is worked on: a file each -> results, as they come

A worker loads the model once, and reads media as one process does: with a decoder that a file may
crash. A file that ends its worker all the same (it takes all memory, say) is begun again by itself,
and given up if it does so again.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from fusion.inference.load import ModelChoice
from fusion.inference.predict_media import WordsConfig
from fusion.inference.predictor import Predictor
from fusion.prediction.one_file import FileResult, predict_file
from pipeline.decode.process import DecoderProcess
from pipeline.errors import InputError
from pipeline.parallel.cluster import look_at_cluster
from pipeline.parallel.engine import work_on_shards
from pipeline.parallel.work import ClipWork, Cluster, ShardTask
from pipeline.schema import MEDIA, ClipKey, LocatedClip, Modality, Utterance
from pipeline.system.device import has_gpu

# What can hang has clocks of its own; a day of media takes less than this.
_MOST_SECONDS_PER_FILE = 7 * 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class FileWork:
    """The arguments of a worker: as of `predict_file`, except for the model, which it loads
    itself."""

    words: WordsConfig
    model: ModelChoice
    saved_in: Path | None


def predict_on_ray(
    files: Sequence[Path], work: FileWork, cluster: Cluster
) -> Iterator[tuple[int, FileResult]]:
    """Yields the number and the result of each file, in any order.

    Raises:
        UsageError: the cluster cannot be reached, or has no GPU although one was requested.
        MeldError: what the model raises where it is loaded.
    """
    if cluster.address is not None:
        device, _ = look_at_cluster(cluster.address, work.model.device, "float32")
    else:
        device = "cuda" if work.model.device == "cuda" and has_gpu() else "cpu"
    work = replace(work, model=replace(work.model, device=device))
    tasks = [
        ShardTask(split="test", index=index, clips=(_as_clip(path, index),))
        for index, path in enumerate(files)
    ]
    whole_file = ClipWork(
        modalities=MEDIA[:1],  # a file is worked on as a whole, not by its modalities
        do=_InWorker(work, Path.cwd()),
        give_up=_give_up,
        join=_only,
        what="predicting",
        max_seconds=_MOST_SECONDS_PER_FILE,
    )
    shards = work_on_shards(
        tasks, whole_file, replace(cluster, device=device), on_gpu=device == "cuda"
    )
    for shard in shards:
        [result] = shard.clips
        yield shard.index, replace(result, path=files[shard.index])


def _as_clip(path: Path, index: int) -> LocatedClip:
    """Keys and texts stay in here."""
    return LocatedClip(utterance=Utterance(key=ClipKey("test", 0, index), text=""), path=path)


@dataclass(frozen=True)
class _InWorker:
    work: FileWork
    folder: Path

    def __call__(self, clip: LocatedClip, *, modalities: tuple[Modality, ...]) -> FileResult:
        assert clip.path is not None
        # Whatever was named was named from there.
        os.chdir(self.folder)
        predictor, decoder = _load(self.work.model)
        return predict_file(
            clip.path, self.work.words, predictor, decoder, saved_in=self.work.saved_in
        )


@lru_cache(maxsize=1)
def _load(model: ModelChoice) -> tuple[Predictor, DecoderProcess]:
    """Once in a worker, which gets one file after the other."""
    decoder = DecoderProcess()
    return model.load(), decoder


def _give_up(clip: LocatedClip, modality: Modality, message: str) -> FileResult:
    assert clip.path is not None
    error = InputError(f"{clip.path}: {message}")
    return FileResult(path=clip.path, timeline=None, error=error)


def _only(results: Sequence[FileResult]) -> FileResult:
    [result] = results
    return result
