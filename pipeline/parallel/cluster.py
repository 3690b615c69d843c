"""Starts or joins Ray, leaves it again, and asks what a cluster computes with."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import ray
from ray.exceptions import RayError

from pipeline.errors import UsageError
from pipeline.parallel.work import Cluster
from pipeline.recipe import Precision
from pipeline.system.device import native_precision
from pipeline.system.resources import OBJECT_STORE_BYTES
from pipeline.system.threads import wait_briefly

logger = logging.getLogger(__name__)

ENDED_BY_SIGTERM = 128 + signal.SIGTERM
# Ray allows its own processes 30 s to start, which a busy machine can exceed.
_STARTS = 2
_SECONDS_TO_ANSWER = 5.0
_NETWORK_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<host>\[[^]]+\]|[^:/[\]]+)(:(?P<port>\d+))?")
_CLIENT_PORT = 10001


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
        except UnicodeEncodeError as error:
            ray.shutdown()
            raise UsageError(
                "Ray takes no command line with a name that is no UTF-8; rename that file or folder"
            ) from error
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


def last_line(error: BaseException) -> str:
    """The last line of a wrapped error; the lines before it are tracebacks."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
