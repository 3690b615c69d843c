"""Inputs and results of work on Ray: plain values, so that planning does not import Ray."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from pipeline.errors import UsageError
from pipeline.schema import ClipFeatures, DecodedClip, LocatedClip, Modality, Split

Result = TypeVar("Result")
_Made = TypeVar("_Made", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the work runs. None of it changes a result.

    workers: CPU cores to use here; ignored with `address`.
    gpus: number of GPUs to use here if device is "cuda"; ignored with `address`.
    address: an existing Ray cluster ("auto", "host:port"); None starts one for this run.
    """

    device: str = "cpu"
    workers: int = 1
    address: str | None = None
    gpus: int = 1

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"--workers must be at least 1, not {self.workers}")

    @property
    def threads(self) -> int | None:
        """Threads of an encoder on CPU; None takes all of the machine that it runs on."""
        return self.workers if self.address is None else None


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Some rows of one split, in the order of the cache; index: the number of the shard."""

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
    """A task whose media were read: one entry of `clips` per clip, in order."""

    split: Split
    index: int
    clips: tuple[Result, ...]


DecodedShard = WorkedShard[DecodedClip]


class OnClip(Protocol[_Made]):
    """The work on these modalities of a clip; never raises for a bad one."""

    def __call__(self, clip: LocatedClip, *, modalities: tuple[Modality, ...]) -> _Made: ...


@dataclass(frozen=True, kw_only=True)
class ClipWork(Generic[Result]):
    """The work that is done with each clip in a worker.

    modalities:  to read: all at once, or one at a time if the clip killed its worker
    give_up:     makes the result of a modality that killed its workers, from the message that says
                 so; the message names no folder, because it may be stored in files that are copied
    join:        makes one result of those of all modalities, in order
    what:        the name of the work in messages, for example "decoding"
    max_seconds: for one clip; a worker that takes longer hangs, and is killed
    """

    modalities: tuple[Modality, ...]
    do: OnClip[Result]
    give_up: Callable[[LocatedClip, Modality, str], Result]
    join: Callable[[Sequence[Result]], Result]
    what: str
    max_seconds: float
