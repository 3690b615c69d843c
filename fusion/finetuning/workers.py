"""One worker, or several through Ray Train. The only file of this package that imports Ray.

Ray Train places the workers (CPU cores, GPUs, nodes of a cluster) and joins them into a process
group, gloo or NCCL; what they do is the same function that one worker runs alone.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from pipeline.errors import MeldError, UsageError
from pipeline.system.resources import num_cores


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One of the workers of a training. rank counts from 0; `world` is their number."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def add_up(self, values: Sequence[Tensor]) -> None:
        """All-reduce: replaces each value by its sum over the workers, in one message."""
        if self.world == 1:
            return
        message = torch.cat([value.detach().flatten() for value in values])
        distributed.all_reduce(message)
        for value, part in zip(values, message.split([v.numel() for v in values]), strict=True):
            value.copy_(part.view_as(value))

    def gather(self, mine: Sequence[Any]) -> list[Any]:
        """All-gather: the items of all workers, on every worker."""
        if self.world == 1:
            return list(mine)
        parts: list[Any] = [None] * self.world
        distributed.all_gather_object(parts, list(mine))
        return [item for part in parts for item in part]


def run_workers(
    job: Callable[[Worker], None], *, workers: int, device: str, address: str | None, folder: Path
) -> None:
    """Runs `job` in so many Ray Train workers and waits for them.

    Raises what a worker raises where that is one of ours, MeldError otherwise.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline.parallel.cluster import last_line, ray_cluster
    from pipeline.parallel.engine import raise_ours
    from pipeline.parallel.work import Cluster

    if device == "cuda" and address is None and torch.cuda.device_count() < workers:
        raise UsageError(
            f"--workers {workers}: one GPU each, and there are {torch.cuda.device_count()}"
        )
    cluster = Cluster(device=device, workers=workers + 1, address=address, gpus=workers)
    with ray_cluster(cluster):
        _check_room(workers, device)  # Ray Train would wait for it for ever
        trainer = TorchTrainer(
            _in_worker,
            train_loop_config={
                "job": job,
                "device": device,
            },
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=device == "cuda"),
            run_config=RunConfig(name="ray", storage_path=str(folder.absolute())),
        )
        try:
            trainer.fit()
        except Exception as error:  # Ray wraps whatever a worker raised, in several ways
            raise_ours(error)
            raise MeldError(f"a training worker failed: {last_line(error)}") from error
        finally:
            shutil.rmtree(folder / "ray", ignore_errors=True)  # what Ray Train keeps for itself


def _check_room(workers: int, device: str) -> None:
    import ray

    name = "GPU" if device == "cuda" else "CPU"
    there = int(ray.cluster_resources().get(name, 0))
    if there < workers:
        raise UsageError(f"--workers {workers}: the Ray cluster has {there} {name}s")


def _share_cores(workers: int) -> None:
    """workers: on this machine. Ray tells a worker of one CPU to use one thread, whatever the
    machine has, so PyTorch's own number is no measure of it."""
    torch.set_num_threads(max(1, num_cores() // workers))


def _in_worker(settings: dict[str, Any]) -> None:
    from ray.train import get_context

    context = get_context()
    if settings["device"] == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        device = torch.device("cpu")
        _share_cores(context.get_local_world_size())
    rank, world = context.get_world_rank(), context.get_world_size()
    settings["job"](Worker(device=device, rank=rank, world=world))
