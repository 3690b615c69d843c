"""What is handed to Ray and what comes back: plain values, so that planning work needs no Ray."""

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

    @property
    def threads(self) -> int | None:
        """Of an encoder on CPU; None takes all of its machine, which `workers` says nothing of."""
        return self.workers if self.address is None else None


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Some rows of one split, in the order in which they are kept; index: which shard they are."""

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


class OnClip(Protocol[_Made]):
    """The work on these modalities of a clip; never raises for a bad one."""

    def __call__(self, clip: LocatedClip, *, modalities: tuple[Modality, ...]) -> _Made: ...


@dataclass(frozen=True, kw_only=True)
class ClipWork(Generic[Result]):
    """What is done with each clip, in a worker.

    modalities:  of its media, all read at once; by themselves where the clip killed its worker
    give_up:     the result for one modality that killed its workers, given the message that says
                 so; it names no folder, as it may be kept in files that travel
    join:        one result of those for each modality, in order
    what:        the work in words, as in "decoding" it
    max_seconds: of a clip; a worker that takes longer hangs, and is ended
    """

    modalities: tuple[Modality, ...]
    do: OnClip[Result]
    give_up: Callable[[LocatedClip, Modality, str], Result]
    join: Callable[[Sequence[Result]], Result]
    what: str
    max_seconds: float
