"""Clips to features on many cores, GPUs or machines. This file and `cluster.py` are the only ones
of this package that import Ray; another engine would replace them.

    tasks -> decode (Ray tasks, half a core each) -> encode (actors, all torch threads) -> driver
    tasks -> decode, or any work on single clips (Ray tasks, a core each) -> driver
    tasks whose worker died -> after all others, one by one: each clip in a process of its own

A task is one shard of rows, which is decoded and encoded as a whole. Therefore the rows of a batch,
and every bit of the result, do not depend on what was finished before a restart.

This file uses Ray's tasks and actors instead of Ray Data. The workers of Ray Data import twice as
much before they start, which delays small jobs, and its retries cannot find out which clip of a
shard killed the worker.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from pipeline.decode.clip import decode_clip
from pipeline.decode.container import MAX_SECONDS_PER_CLIP
from pipeline.encoders.encoder import EncoderChoice
from pipeline.errors import MeldError
from pipeline.parallel.cluster import last_line, ray_cluster
from pipeline.parallel.isolate import isolate_beside, time_limit
from pipeline.parallel.work import (
    ClipWork,
    Cluster,
    DecodedShard,
    Result,
    ShardFeatures,
    ShardTask,
    WorkedShard,
)
from pipeline.recipe import DecodeConfig
from pipeline.schema import (
    MEDIA,
    ClipFailure,
    ClipFeatures,
    DecodedClip,
    LocatedClip,
    Modality,
    Split,
)
from pipeline.system.resources import OBJECT_STORE_BYTES, num_cores

logger = logging.getLogger(__name__)

MAX_ROUNDS = 3
_SECONDS_BETWEEN_LOOKS = 5.0  # at whether Ray itself is still there
_GO_ON = "what is finished is kept: run the same command again"
# Two decoders share a core while the encoder has its own. On 2 cores this was the fastest setting
# measured, because the decoders use the time in which the encoder is idle.
_DECODE_CPUS_BESIDE_ENCODER = 0.5
# The size of a shard of 16 decoded clips: shards in flight must not fill the object store.
_BYTES_PER_SHARD = 32 * 1024 * 1024

# Reading and decoding have time limits, which are checked between packets. A clip that takes longer
# than this hangs inside a packet.
_MAX_SECONDS_TO_DECODE = 1.5 * MAX_SECONDS_PER_CLIP

# The reference that a Ray task returns; the type of its value is not known here.
_Ref = Any
# A worked shard, or a reference to one -> the reference to its final result.
_Finish = Callable[[Any], _Ref]
# Split and index of a shard.
_ShardKey = tuple[Split, int]


def encode_shards(
    tasks: Sequence[ShardTask],
    choices: Sequence[EncoderChoice],
    decode: DecodeConfig | None,
    cluster: Cluster,
) -> Iterator[ShardFeatures]:
    """Yields shards as they are finished, in any order.

    A clip that kills its decoder becomes a failure of the modality that kills it; other clips of
    the shard are not affected. An encoder that dies is started again for the remaining shards,
    up to `MAX_ROUNDS` times in total.

    Raises:
        UsageError: the cluster cannot be reached, lacks a requested GPU, or has too few cores.
        MismatchError: the weights do not fit their encoder.
        MeldError: workers died in a way that no clip explains.
    """
    work = None
    if decode is not None:
        work = _decoding(decode, [choice.spec.modality for choice in choices])

    @contextmanager
    def encoders() -> Iterator[_Finish]:
        """Starts the encoders before the first clip is decoded, because loading takes seconds."""
        pool = [_start_encoder(choices, decode, cluster) for _ in range(_num_encoders(cluster))]
        turns = itertools.cycle(pool)
        try:
            yield lambda shard: next(turns).encode.remote(shard)
        finally:
            for encoder in pool:
                ray.kill(encoder)

    # The encoder needs a core and the decoders need another: with one core they would deadlock.
    yield from _run_to_the_end(
        tasks, work, _DECODE_CPUS_BESIDE_ENCODER, encoders, cluster, least_cpus=2
    )


def decode_shards(
    tasks: Sequence[ShardTask],
    decode: DecodeConfig,
    modalities: Sequence[Modality],
    cluster: Cluster,
) -> Iterator[DecodedShard]:
    """Like `encode_shards`, but returns decoded clips and needs no GPU.

    Raises:
        UsageError: the cluster cannot be reached.
        MeldError: workers died in a way that no clip explains.
    """
    yield from work_on_shards(tasks, _decoding(decode, modalities), cluster)


def work_on_shards(
    tasks: Sequence[ShardTask], work: ClipWork[Result], cluster: Cluster, *, on_gpu: bool = False
) -> Iterator[WorkedShard[Result]]:
    """Does any work on single clips, one core each; yields shards as they finish, in any order.

    on_gpu: each worker also needs one of the GPUs of `cluster`

    A modality of a clip that kills its worker is given up; nothing else is affected.

    Raises:
        UsageError: the cluster cannot be reached.
        MeldError: workers died in a way that no clip explains.
    """

    def as_they_are() -> AbstractContextManager[_Finish]:
        return nullcontext(lambda shard: shard)

    cluster = cluster if on_gpu else replace(cluster, device="cpu")
    yield from _run_to_the_end(tasks, work, 1, as_they_are, cluster, least_cpus=1, gpus=int(on_gpu))


def _run_to_the_end(
    tasks: Sequence[ShardTask],
    work: ClipWork[Any] | None,
    cpus: float,
    open_finish: Callable[[], AbstractContextManager[_Finish]],
    cluster: Cluster,
    *,
    least_cpus: int,
    gpus: int = 0,
) -> Iterator[Any]:
    """Yields the results of the tasks in any order: `work` on their clips, then the opened finish.

    If the finish dies, it is opened again for the remaining tasks, up to `MAX_ROUNDS` times in
    total.
    """
    with ray_cluster(cluster, least_cpus):
        left = {(task.split, task.index): task for task in tasks}
        suspects: set[_ShardKey] = set()
        for round_number in range(1, MAX_ROUNDS + 1):
            try:
                with open_finish() as finish:
                    flow = _flow(list(left.values()), work, cpus, gpus, finish, suspects, cluster)
                    for shard in flow:
                        del left[shard.split, shard.index]
                        yield shard
                return
            except RayError as error:
                raise_ours(error)
                if isinstance(error, LocalRayletDiedError):
                    raise MeldError(f"{last_line(error)} {_GO_ON}") from error
                _check_this_machine()
                if isinstance(error, RayTaskError):  # the same code would raise again
                    raise
                if round_number == MAX_ROUNDS:
                    raise MeldError(f"the workers failed: {last_line(error)}") from error
                logger.warning("a worker died; starting another for %d shards", len(left))


def _flow(
    tasks: Sequence[ShardTask],
    work: ClipWork[Any] | None,
    cpus: float,
    gpus: int,
    finish: _Finish,
    suspects: set[_ShardKey],
    cluster: Cluster,
) -> Iterator[Any]:
    """Runs every task, a bounded number of them at a time. Raises RayError.

    suspects: shards that may hold a clip that kills its worker; a shard whose worker dies is added.
        They run last, one after another, when no other clip is decoded that could be the cause or
        be affected.
    """
    # Without Ray's own retries, which would start the whole shard again and meet the same clip.
    worker = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_work_on_shard)
    waiting = deque(task for task in tasks if (task.split, task.index) not in suspects)
    running: dict[_Ref, ShardTask] = {}
    most = _most_at_once(cpus)
    while waiting or running:
        while waiting and len(running) < most:
            task = waiting.popleft()
            # Without `work`, only the finish remains: text alone has no media to decode.
            running[finish(task if work is None else worker.remote(task, work))] = task
        [done], _ = _wait_for_one(list(running))
        task = running.pop(done)
        try:
            shard = ray.get(done)
        except RayError as error:
            if work is None:
                raise
            suspects.add((task.split, task.index))
            if not _worker_died(error):
                # An encoder died; clips decoded at the same time may have used up its memory.
                suspects |= {(each.split, each.index) for each in running.values()}
                raise
            logger.warning(
                "a worker died; %d clips are processed again, one by one", len(task.clips)
            )
            continue
        yield shard
    if work is not None:
        suspected = [task for task in tasks if (task.split, task.index) in suspects]
        yield from _isolated(suspected, work, gpus, finish, cluster.threads, most)


def _isolated(
    tasks: Sequence[ShardTask],
    work: ClipWork[Any],
    gpus: int,
    finish: _Finish,
    max_at_once: int | None,
    most: int,
) -> Iterator[Any]:
    """Works on tasks that may hold a killing clip, one after another, and finishes each meanwhile.

    max_at_once: number of parallel processes; None takes one per core
    """
    isolator = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_ROUNDS)(_isolate_shard)
    running: list[_Ref] = []
    for task in tasks:
        worked = isolator.remote(task, work, max_at_once)
        _wait_for_one([worked], fetch_local=False)
        running.append(finish(worked))
        done, running = ray.wait(running, num_returns=len(running), timeout=0)
        if len(running) >= most:
            done, running = _wait_for_one(running)
        yield from map(ray.get, done)
    while running:
        [done_last], running = _wait_for_one(running)
        yield ray.get(done_last)


def _wait_for_one(
    running: list[_Ref], *, fetch_local: bool = True
) -> tuple[list[_Ref], list[_Ref]]:
    """One reference that is done, and the others. Ray by itself waits for ever for what a machine
    without a raylet should do.

    Raises MeldError where Ray's own processes on this machine died.
    """
    while True:
        done, others = ray.wait(
            running, num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS, fetch_local=fetch_local
        )
        if done:
            return done, others
        _check_this_machine()


def _check_this_machine() -> None:
    """Raises MeldError where Ray's own processes on this machine died: without them nothing is
    started any more."""
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here and not node["Alive"]:
            why = node.get("DeathReasonMessage") or "it did not say why"
            raise MeldError(f"Ray's own processes on this machine died ({why}); {_GO_ON}")


def _most_at_once(cpus: float) -> int:
    """Number of tasks in flight: enough for every core, few enough for the object store."""
    there = ray.cluster_resources()
    busy = there.get("CPU", 1) / cpus + there.get("GPU", 0) + 1
    room = there.get("object_store_memory", OBJECT_STORE_BYTES) // _BYTES_PER_SHARD
    return max(2, int(min(busy, room)))


def _worker_died(error: BaseException | None) -> bool:
    """Whether the worker of a task died; the death of an encoder is a RayActorError."""
    while error is not None:
        if isinstance(error, (WorkerCrashedError, OutOfMemoryError, NodeDiedError)):
            return True
        error = getattr(error, "cause", None) or error.__cause__
    return False


def raise_ours(error: BaseException | None) -> None:
    """Raises the exception of meld that a worker raised, if `error` wraps one."""
    while error is not None:
        # Ray's copy has the same class, but its message is the worker's traceback.
        if isinstance(error, MeldError) and not isinstance(error, RayError):
            raise error
        for failure in getattr(error, "worker_failures", {}).values():  # Ray Train's, by rank
            raise_ours(failure)
        error = getattr(error, "cause", None) or error.__cause__


def _num_encoders(cluster: Cluster) -> int:
    """One encoder on CPU, which uses all threads of the machine; else one per GPU."""
    return max(int(ray.cluster_resources().get("GPU", 0)), 1) if cluster.device == "cuda" else 1


def _start_encoder(
    choices: Sequence[EncoderChoice], decode: DecodeConfig | None, cluster: Cluster
) -> Any:
    actor: Any = ray.remote(_ShardEncoder)
    encoder = actor.options(
        num_cpus=1,
        num_gpus=1 if cluster.device == "cuda" else 0,
        max_restarts=0,  # `_run_to_the_end` starts another
        allow_out_of_order_execution=True,  # a shard that decodes slowly does not delay others
    ).remote(list(choices), decode, cluster.device, cluster.threads)
    encoder.load.remote()
    return encoder


def _work_on_shard(task: ShardTask, work: ClipWork[Any]) -> WorkedShard[Any]:
    """Runs in a Ray worker, which ends if a clip hangs."""
    clips = []
    for clip in task.clips:
        with time_limit(work.max_seconds):
            clips.append(work.do(clip, modalities=work.modalities))
    return WorkedShard(split=task.split, index=task.index, clips=tuple(clips))


def _isolate_shard(
    task: ShardTask, work: ClipWork[Any], max_at_once: int | None
) -> WorkedShard[Any]:
    """Runs in a Ray worker, which survives whatever a clip does."""
    return isolate_beside(ray.cloudpickle.dumps((task, work, max_at_once)))


def _decoding(decode: DecodeConfig, modalities: Sequence[Modality]) -> ClipWork[DecodedClip]:
    return ClipWork(
        modalities=tuple(modality for modality in MEDIA if modality in modalities),
        do=partial(decode_clip, config=decode),
        give_up=_give_up_decoding,
        join=_join_decoded,
        what="decoding",
        max_seconds=_MAX_SECONDS_TO_DECODE,
    )


def _give_up_decoding(clip: LocatedClip, modality: Modality, message: str) -> DecodedClip:
    failure = ClipFailure(
        key=clip.utterance.key,
        modality=modality,
        stage="decode",
        code="killed_worker",
        message=message,
    )
    return DecodedClip(utterance=clip.utterance, failures=(failure,))


def _join_decoded(parts: Sequence[DecodedClip]) -> DecodedClip:
    """Joins the parts of one clip; each part has modalities that the others lack."""

    def only(values: Iterable[Any]) -> Any:
        return next((value for value in values if value is not None), None)

    return DecodedClip(
        utterance=parts[0].utterance,
        frames=only(part.frames for part in parts),
        times_s=only(part.times_s for part in parts),
        waveform=only(part.waveform for part in parts),
        failures=tuple(failure for part in parts for failure in part.failures),
    )


class _ShardEncoder:
    """A Ray actor: loads the encoders once, then turns each shard into its features."""

    def __init__(
        self,
        choices: list[EncoderChoice],
        decode: DecodeConfig | None,
        device: str,
        num_threads: int | None,
    ) -> None:
        """num_threads: None takes one thread per core of the machine where it runs."""
        self._choices, self._decode = choices, decode
        self._device, self._num_threads = device, num_threads

    def load(self) -> None:
        """Loads before the first shard. Errors are raised by `encode`, whose result is awaited."""
        self._encode  # noqa: B018

    def encode(self, shard: DecodedShard | ShardTask) -> ShardFeatures:
        clips = [
            # Text alone: nothing was decoded.
            DecodedClip(utterance=clip.utterance) if isinstance(clip, LocatedClip) else clip
            for clip in shard.clips
        ]
        return ShardFeatures(
            split=shard.split, index=shard.index, features=tuple(self._encode(clips))
        )

    @cached_property
    def _encode(self) -> Callable[[Sequence[DecodedClip]], list[ClipFeatures]]:
        # Here and not above: decoding processes import this file too and need no PyTorch.
        import torch

        from pipeline.encode import Encoders, encode_clips

        torch.set_num_threads(self._num_threads or num_cores())
        return partial(encode_clips, Encoders(self._choices, self._decode).to(self._device))
