"""Clips to features on many cores, GPUs or machines. The only file of this package that imports
Ray; another engine would replace this file.

    tasks -> decode (Ray tasks, half a core each) -> encode (actors, all torch threads) -> driver
    tasks -> decode, or any work on single clips (Ray tasks, a core each) -> driver

A task is one shard of rows, decoded and encoded as a whole. So what shares a batch, and with it
every bit of the result, does not depend on what was finished before a restart.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError, RayTaskError

from pipeline.decode.clip import decode_clip
from pipeline.encoders.choice import EncoderChoice
from pipeline.errors import MeldError, UsageError
from pipeline.recipe import DecodeConfig
from pipeline.resources import OBJECT_STORE_BYTES
from pipeline.schema import (
    ClipFailure,
    ClipFeatures,
    DecodedClip,
    LocatedClip,
    Modality,
    Split,
)

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_ATTEMPTS_PER_CLIP = 2
MAX_ROUNDS = 3
# Ray gives its own processes 30 s to start, which a busy machine does not always keep.
_STARTS = 2
# Two decoders share a core while the encoder has its own: on 2 cores the fastest of the
# settings measured, because the decoders fill what the encoder leaves idle.
_DECODE_CPUS_BESIDE_ENCODER = 0.5


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the work runs. None of it changes a result.

    workers: CPU cores to use here; ignored with `address`.
    gpus: how many, where device is "cuda"; ignored with `address`.
    address: an existing Ray cluster ("auto", "host:port"); None starts one for this run.
    """

    device: str = "cpu"
    workers: int = 1
    address: str | None = None
    gpus: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"--workers must be at least 1, not {self.workers}")


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Rows [first_row, first_row + len(clips)) of one split."""

    split: Split
    index: int
    clips: tuple[LocatedClip, ...]


@dataclass(frozen=True, kw_only=True)
class ShardFeatures:
    """A finished task: one entry of `features` per clip, in order."""

    split: Split
    index: int
    features: tuple[ClipFeatures, ...]


@dataclass(frozen=True, kw_only=True)
class WorkedShard(Generic[Result]):
    """A task of which the media were read: one entry of `clips` per clip, in order."""

    split: Split
    index: int
    clips: tuple[Result, ...]


DecodedShard = WorkedShard[DecodedClip]


@dataclass(frozen=True, kw_only=True)
class ClipWork(Generic[Result]):
    """What is done with each clip, in a worker.

    do:      never raises for a bad clip
    give_up: the result for a clip that killed its workers, given the message that says so
    what:    the work in words, as in "decoding it"
    """

    do: Callable[[LocatedClip], Result]
    give_up: Callable[[LocatedClip, str], Result]
    what: str


def encode_shards(
    tasks: Sequence[ShardTask],
    choices: Sequence[EncoderChoice],
    decode: DecodeConfig | None,
    cluster: Cluster,
) -> Iterator[ShardFeatures]:
    """Yields shards as they are finished, in any order.

    A clip that kills its decoder twice becomes a failure; its neighbours are not concerned.
    An encoder that dies is started again, with the shards that are left, `MAX_ROUNDS` times
    in all.

    Raises:
        UsageError: the cluster is not to be reached or has no GPU that was asked for.
        MismatchError: the weights do not fit their encoder.
        MeldError: workers died in a way that no clip explains.
    """

    def build(left: Sequence[ShardTask]) -> "ray.data.Dataset":
        dataset = _tasks(left)
        if decode is not None:
            modalities = [choice.spec.modality for choice in choices]
            work = _decoding(decode, modalities)
            dataset = _worked_on(dataset, left, work, _DECODE_CPUS_BESIDE_ENCODER)
        return _encoded(dataset, choices, decode, cluster)

    # The encoder needs a core, the decoders another: one core would be a deadlock.
    yield from _run_to_the_end(tasks, build, cluster, least_cpus=2)


def decode_shards(
    tasks: Sequence[ShardTask],
    decode: DecodeConfig,
    modalities: Sequence[Modality],
    cluster: Cluster,
) -> Iterator[DecodedShard]:
    """Like `encode_shards`, but the clips come back decoded; needs no GPU.

    Raises:
        UsageError: the cluster is not to be reached.
        MeldError: workers died in a way that no clip explains.
    """
    yield from work_on_shards(tasks, _decoding(decode, modalities), cluster)


def work_on_shards(
    tasks: Sequence[ShardTask], work: ClipWork[Result], cluster: Cluster
) -> Iterator[WorkedShard[Result]]:
    """Any work on single clips, a core each: shards as they are finished, in any order.

    Raises:
        UsageError: the cluster is not to be reached.
        MeldError: workers died in a way that no clip explains.
    """

    def build(left: Sequence[ShardTask]) -> "ray.data.Dataset":
        return _worked_on(_tasks(left), left, work, num_cpus=1)

    yield from _run_to_the_end(tasks, build, replace(cluster, device="cpu"), least_cpus=1)


def _run_to_the_end(
    tasks: Sequence[ShardTask],
    build: Callable[[Sequence[ShardTask]], "ray.data.Dataset"],
    cluster: Cluster,
    *,
    least_cpus: int,
) -> Iterator[Any]:
    """The shards of the dataset that `build` makes of tasks, in any order.

    When workers die, it is built again of the tasks that are left, `MAX_ROUNDS` times in all.
    """
    with ray_cluster(cluster, least_cpus):
        left = {(task.split, task.index): task for task in tasks}
        for round_number in range(1, MAX_ROUNDS + 1):
            try:
                for shard in _results(build(list(left.values()))):
                    del left[shard.split, shard.index]
                    yield shard
                return
            except RayError as error:
                raise_ours(error)
                if isinstance(error, RayTaskError):  # code that raises would raise again
                    raise
                if round_number == MAX_ROUNDS:
                    raise MeldError(f"the workers failed: {last_line(error)}") from error
                logger.warning("a worker died; starting another for %d shards", len(left))


def _results(dataset: "ray.data.Dataset") -> Iterator[Any]:
    for batch in dataset.iter_batches(batch_size=1, batch_format="numpy", prefetch_batches=0):
        yield batch["item"][0]


def raise_ours(error: BaseException | None) -> None:
    """An exception of ours that a worker raised reaches the user as itself."""
    while error is not None:
        if isinstance(error, MeldError):
            raise error
        for failure in getattr(error, "worker_failures", {}).values():  # Ray Train's, by rank
            raise_ours(failure)
        error = getattr(error, "cause", None) or error.__cause__


@contextmanager
def ray_cluster(cluster: Cluster, least_cpus: int = 1) -> Iterator[None]:
    """Ray, started for this process or joined, and left again. Raises UsageError."""
    _start_ray(cluster, least_cpus)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(cluster: Cluster, least_cpus: int) -> None:
    settings: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        settings = {
            # None would join whatever cluster RAY_ADDRESS or `ray start` left on this machine.
            "address": "local",
            "num_cpus": max(cluster.workers, least_cpus),
            "num_gpus": cluster.gpus if cluster.device == "cuda" else 0,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Ray 2.60 has no other way yet to limit retries, and warns of it on every call.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's default of 15 starves an extraction beside any other work: 30 times slower (LOG.md).
    os.environ.setdefault("RAY_worker_niceness", "0")
    _init_ray(cluster, settings)
    if cluster.device == "cuda" and not ray.cluster_resources().get("GPU"):
        ray.shutdown()
        raise UsageError("--device cuda: the Ray cluster has no GPU; use --device cpu or auto")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _init_ray(cluster: Cluster, settings: Mapping[str, Any]) -> None:
    attempts = _STARTS if cluster.address is None else 1
    for attempt in range(1, attempts + 1):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
            return
        except Exception as error:  # Ray's word for a start that takes too long is as plain as that
            ray.shutdown()
            if attempt < attempts:
                logger.warning("Ray did not start (%s); trying once more", last_line(error))
                continue
            where = f"--address {cluster.address}: no Ray cluster answers there"
            what = where if cluster.address else "Ray does not start on this machine"
            raise UsageError(f"{what} ({last_line(error)})") from error


def _tasks(tasks: Sequence[ShardTask]) -> "ray.data.Dataset":
    return ray.data.from_items(list(tasks), override_num_blocks=len(tasks))


def _worked_on(
    dataset: "ray.data.Dataset",
    tasks: Sequence[ShardTask],
    work: ClipWork[Any],
    num_cpus: float,
) -> "ray.data.Dataset":
    attempts: Any = ray.remote(num_cpus=0)(_AttemptLedger).remote()
    return dataset.map_batches(
        _work_on_shard,
        batch_size=1,
        batch_format="numpy",
        fn_kwargs={"work": work, "attempts": attempts},
        num_cpus=num_cpus,
        # Each clip can kill a worker `MAX_ATTEMPTS_PER_CLIP` times before it is given up.
        max_retries=MAX_ATTEMPTS_PER_CLIP * max(len(task.clips) for task in tasks),
    )


def _encoded(
    dataset: "ray.data.Dataset",
    choices: Sequence[EncoderChoice],
    decode: DecodeConfig | None,
    cluster: Cluster,
) -> "ray.data.Dataset":
    return dataset.map_batches(
        _ShardEncoder,
        batch_size=1,
        batch_format="numpy",
        fn_constructor_kwargs={
            "choices": list(choices),
            "decode": decode,
            "device": cluster.device,
            "num_threads": cluster.workers,
        },
        compute=ActorPoolStrategy(size=_num_encoders(cluster)),
        num_cpus=1,
        num_gpus=1 if cluster.device == "cuda" else 0,
        max_restarts=0,  # Ray's default restarts for ever; see `_run_to_the_end` for ours
    )


def _num_encoders(cluster: Cluster) -> int:
    """One for the whole machine on CPU (it uses every thread), one per GPU otherwise."""
    return max(int(ray.cluster_resources().get("GPU", 0)), 1) if cluster.device == "cuda" else 1


class _AttemptLedger:
    """Counts the times a clip was begun and never finished: each was the end of a worker.

    An actor, because it has to outlive the worker that it counts for.
    """

    def __init__(self) -> None:
        self._unfinished: dict[Any, int] = {}

    def begin(self, key: Any, finished: Any) -> int:
        """Earlier attempts at `key`; tells in passing that `finished` is done."""
        if finished is not None:
            self._unfinished.pop(finished, None)
        attempts = self._unfinished.get(key, 0)
        self._unfinished[key] = attempts + 1
        return attempts

    def finish(self, key: Any) -> None:
        self._unfinished.pop(key, None)


def _work_on_shard(batch: dict[str, Any], work: ClipWork[Any], attempts: Any) -> dict[str, Any]:
    """Ray Data stage: one ShardTask in, one WorkedShard out."""
    task: ShardTask = batch["item"][0]
    results: list[Any] = []
    finished = None
    for clip in task.clips:
        # The path as well: one utterance may have several files.
        key = (clip.utterance.key, str(clip.path))
        earlier = ray.get(attempts.begin.remote(key, finished))
        results.append(
            work.do(clip)
            if earlier < MAX_ATTEMPTS_PER_CLIP
            else work.give_up(
                clip, f"{clip.path}: {work.what} killed the worker {MAX_ATTEMPTS_PER_CLIP} times"
            )
        )
        finished = key
    # Or the shard's last clip would seem to have killed whoever loses the finished shard.
    ray.get(attempts.finish.remote(finished))
    shard = WorkedShard(split=task.split, index=task.index, clips=tuple(results))
    return {"item": _one_object(shard)}


def _decoding(decode: DecodeConfig, modalities: Sequence[Modality]) -> ClipWork[DecodedClip]:
    modalities = list(modalities)
    return ClipWork(
        do=partial(decode_clip, config=decode, modalities=modalities),
        give_up=partial(_give_up_decoding, modalities=modalities),
        what="decoding it",
    )


def _give_up_decoding(
    clip: LocatedClip, message: str, modalities: Sequence[Modality]
) -> DecodedClip:
    return DecodedClip(
        utterance=clip.utterance,
        failures=tuple(
            ClipFailure(
                key=clip.utterance.key,
                modality=modality,
                stage="decode",
                code="killed_worker",
                message=message,
            )
            for modality in modalities
            if modality != "text"
        ),
    )


class _ShardEncoder:
    """Ray Data stage: loads the encoders once, then one decoded shard in, its features out."""

    def __init__(
        self,
        choices: list[EncoderChoice],
        decode: DecodeConfig | None,
        device: str,
        num_threads: int,
    ) -> None:
        # Here and not above: decoding processes import this file too and need no PyTorch.
        import torch

        from pipeline.encode import Encoders, encode_clips

        torch.set_num_threads(num_threads)
        self._encoders = Encoders(choices, decode).to(device)
        self._encode_clips = encode_clips

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        item: DecodedShard | ShardTask = batch["item"][0]
        clips = [
            # Text alone: nothing was decoded.
            DecodedClip(utterance=clip.utterance) if isinstance(clip, LocatedClip) else clip
            for clip in item.clips
        ]
        features = ShardFeatures(
            split=item.split,
            index=item.index,
            features=tuple(self._encode_clips(self._encoders, clips)),
        )
        return {"item": _one_object(features)}


def _one_object(value: Any) -> np.ndarray[Any, Any]:
    """A column of one object; Ray Data hands it on pickled, whatever its shape."""
    column = np.empty(1, dtype=object)
    column[0] = value
    return column


def last_line(error: BaseException) -> str:
    """What a wrapped error says in the end: the lines before are where it came by."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
