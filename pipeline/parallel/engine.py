"""Clips to features on many cores, GPUs or machines. The only file of this package that imports
Ray; another engine would replace this file.

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
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal

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
from pipeline.errors import MeldError, UsageError
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
from pipeline.recipe import DecodeConfig, Precision
from pipeline.schema import (
    MEDIA,
    ClipFailure,
    ClipFeatures,
    DecodedClip,
    LocatedClip,
    Modality,
    Split,
)
from pipeline.system.device import native_precision
from pipeline.system.resources import OBJECT_STORE_BYTES, num_cores
from pipeline.system.threads import wait_briefly

logger = logging.getLogger(__name__)

MAX_ROUNDS = 3
ENDED_BY_SIGTERM = 128 + signal.SIGTERM
# Ray allows its own processes 30 s to start, which a busy machine can exceed.
_STARTS = 2
_SECONDS_TO_ANSWER = 5.0
_SECONDS_BETWEEN_LOOKS = 5.0  # at whether Ray itself is still there
_GO_ON = "what is finished is kept: run the same command again"
_NETWORK_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[^]]+\]|[^:/[\]]+)(:(?P<port>\d+))?")
_CLIENT_PORT = 10001
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


@contextmanager
def ray_cluster(cluster: Cluster, least_cpus: int = 1) -> Iterator[None]:
    """Uses the Ray of this process if there is one; else starts or joins one, and leaves it.

    Raises UsageError.
    """
    if ray.is_initialized():
        if cluster.address is not None:
            raise UsageError(
                f"--address {cluster.address}: Ray runs in this process already; leave it out"
            )
        _check_room(cluster, least_cpus)
        yield
        return
    with _status_of_sigterm() as keep_status:
        _start_ray(cluster, least_cpus)
        keep_status()
        try:
            _check_room(cluster, least_cpus)
            yield
        finally:
            ray.shutdown()


@contextmanager
def _status_of_sigterm() -> Iterator[Callable[[], None]]:
    """Context in which Ray starts. Ray's handler ends this process by SIGTERM with status 15, and
    stays: here it is the status that a shell tells of a process that the signal ends, and what the
    caller did about the signal is restored. Gives what is to be called when Ray has started."""
    before = signal.getsignal(signal.SIGTERM)
    is_main = threading.current_thread() is threading.main_thread()  # else nobody sets a handler

    def end(*_: object) -> None:
        raise SystemExit(ENDED_BY_SIGTERM)

    def keep_status() -> None:
        if is_main:
            signal.signal(signal.SIGTERM, end if before == signal.SIG_DFL else before)

    try:
        yield keep_status
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before)


def _start_ray(cluster: Cluster, least_cpus: int) -> None:
    settings: dict[str, Any] = {"address": cluster.address}
    if cluster.address is not None:
        _check_answers(cluster.address)
    else:
        settings = {
            # None would join any cluster that RAY_ADDRESS or `ray start` left on this machine.
            "address": "local",
            "num_cpus": max(cluster.workers, least_cpus),
            "num_gpus": cluster.gpus if cluster.device == "cuda" else 0,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's default of 15 makes an extraction beside other work 30 times slower (LOG.md).
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
    wait_briefly()  # its workers have the environment of this process
    _init_ray(cluster, settings)


def _check_answers(address: str) -> None:
    """Checks that something answers there: Ray itself would wait for minutes. Raises UsageError."""
    place = _NETWORK_ADDRESS.fullmatch(address)
    # "auto", "local": Ray looks on this machine only, and describes other errors itself.
    if place is None or not (place["client"] or place["port"]):
        return
    host, port = place["host"].strip("[]"), int(place["port"] or _CLIENT_PORT)
    found: list[Exception | None] = []

    def connect() -> None:
        try:
            with socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER):
                found.append(None)
        except (OSError, OverflowError, ValueError) as error:  # the last two: no port, no name
            found.append(error)

    # Looking up a name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_ANSWER)
    problem = found[0] if found else TimeoutError(f"no answer within {_SECONDS_TO_ANSWER:g} s")
    if problem is not None:
        why = getattr(problem, "strerror", None) or str(problem)
        raise UsageError(
            f"--address {address}: no Ray cluster answers there ({why}); is it running, and can "
            "this machine reach it?"
        ) from problem


def _check_room(cluster: Cluster, least_cpus: int) -> None:
    """Checks resources first: Ray would wait for missing ones for ever."""
    there = ray.cluster_resources()
    if cluster.device == "cuda" and not there.get("GPU"):
        raise UsageError("--device cuda: the Ray cluster has no GPU; use --device cpu or auto")
    if there.get("CPU", 0) < least_cpus:
        raise UsageError(
            f"the Ray cluster has {there.get('CPU', 0):g} CPUs; this needs at least {least_cpus}"
        )


def _init_ray(cluster: Cluster, settings: Mapping[str, Any]) -> None:
    attempts = _STARTS if cluster.address is None else 1
    for attempt in range(1, attempts + 1):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
            return
        except Exception as error:  # Ray raises nothing more specific when a start takes too long
            ray.shutdown()
            if attempt < attempts:
                logger.warning("Ray did not start (%s); trying once more", last_line(error))
                continue
            why = last_line(error)
            if cluster.address is None:
                raise UsageError(f"Ray does not start on this machine ({why})") from error
            # `ray start` requires a token if its machine has one, without a message.
            raise UsageError(
                f"--address {cluster.address}: no Ray cluster answers there ({why}); if it asks "
                "for a token, set RAY_AUTH_MODE=token"
            ) from error


def look_at_cluster(
    address: str,
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "float32", "bfloat16"],
) -> tuple[Literal["cpu", "cuda"], Precision]:
    """Finds out what an existing cluster computes with. It asks the cluster's resources and one of
    its workers, because the driver's machine may have other hardware. It joins the cluster and
    leaves it again.

    Raises UsageError if the cluster cannot be reached, lacks a requested GPU, or its workers cannot
    run this program.
    """
    with ray_cluster(Cluster(device=device, address=address)):
        if device == "auto":
            device = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
        if precision == "auto":
            return device, _ask_precision(address, device)
    return device, precision


def _ask_precision(address: str, device: Literal["cpu", "cuda"]) -> Precision:
    ask: Any = ray.remote(native_precision)
    gpus = 1 if device == "cuda" else 0
    try:
        precision: Precision = ray.get(ask.options(num_cpus=1, num_gpus=gpus).remote(device))
    except RayError as error:
        raise UsageError(
            f"--address {address}: the cluster's workers cannot tell which precision they support "
            f"({last_line(error)}); is this program installed there? With --precision float32 or "
            "bfloat16 they are not asked"
        ) from error
    return precision


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


def last_line(error: BaseException) -> str:
    """The last line of a wrapped error; the lines before it are tracebacks."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
