"""The configuration of the service: address, model and limits."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import UsageError

_HOME = "localhost"
# More than that, or infinity, is more than dates and clocks hold.
_MOST_HOURS, _MOST_S = 1_000_000, 1_000_000_000


def _check_limits(table: str, limits: object) -> None:
    """Raises UsageError."""
    for name, value in vars(limits).items():
        if not value > 0:
            raise UsageError(f"{table}.{name} must be above 0, not {value}")
        most = _MOST_HOURS if name.endswith("_hours") else _MOST_S
        if isinstance(getattr(type(limits), name), float) and value > most:
            raise UsageError(f"{table}.{name} must be at most {most}, not {value}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one client, and of all together.

    max_bytes:       largest upload, in bytes
    max_media_s:     longest media file, in seconds
    max_pixels:      most pixels of one frame, as declared in the file's headers
    max_frames:      most frames of its video, as declared there
    max_streams:     most streams of one file, including those that are not read
    max_text_bytes:  largest request that sends words alone, in bytes
    predict_bytes:   largest clip that is answered at once (`POST /v1/predict`), in bytes
    predict_media_s: longest such clip, in seconds
    predict_wait_s:  seconds within which such a clip must be started; else it is refused
    queued_jobs:     most jobs that wait or are uploaded at one time, beside the running one
    queued_media_s:  most seconds of media that may wait; a job is always accepted when none waits
    retention_hours: time after its end for which a job and its media are kept; then it is erased
    retention_bytes: most bytes on the disk of ended jobs with their media; beyond it the oldest are
                     erased, but never the last one
    header_s:        seconds within which the head of a request must arrive
    silence_s:       seconds for which an upload may send nothing
    unread_s:        seconds for which a client may leave an answer unread
    min_bytes_per_s: least average speed of an upload
    full_min_bytes_per_s: the same while the queue is full: then the slowest upload that is slower
                     loses its place to a new one
    stalled_s:       seconds after which a worker that reports nothing is replaced
    drain_s:         seconds that the running job has to finish when the service is stopped; a
                     longer one is resumed at the next start
    """

    max_bytes: int = 2 * 2**30
    max_media_s: float = 4 * 3600.0
    max_pixels: int = 4096 * 2304
    max_frames: int = 1_000_000
    max_streams: int = 64
    max_text_bytes: int = 2**20
    predict_bytes: int = 32 * 2**20
    predict_media_s: float = 60.0
    predict_wait_s: float = 10.0
    queued_jobs: int = 16
    queued_media_s: float = 8 * 3600.0
    retention_hours: float = 24.0
    retention_bytes: int = 20 * 2**30
    header_s: float = 10.0
    silence_s: float = 20.0
    unread_s: float = 60.0
    min_bytes_per_s: int = 16 * 2**10
    full_min_bytes_per_s: int = 128 * 2**10
    stalled_s: float = 900.0
    drain_s: float = 25.0

    def __post_init__(self) -> None:
        _check_limits("limits", self)


@dataclass(frozen=True, kw_only=True)
class LiveLimits:
    """What live sessions may ask for.

    sessions:  how many may be open at one time
    ticket_s:  seconds for which a ticket opens one
    idle_s:    seconds for which a session may send nothing
    session_s: seconds that one may last
    lag_s:     seconds that answers may be behind, and that sound may come before it is heard
    """

    sessions: int = 50
    ticket_s: float = 30.0
    idle_s: float = 30.0
    session_s: float = 3600.0
    lag_s: float = 10.0

    def __post_init__(self) -> None:
        _check_limits("live", self)


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the service listens, with which model, and for whom.

    model:       a trained run; None takes the bundled one
    host:        name or address to listen on
    port:        to listen on; 0 takes one that is free
    key_file:    file whose first line is the key that clients must send
    without_key: let other machines use the service without a key
    workers:     number of worker processes; each predicts one job at a time and holds the model in
                 memory, and they share the cores
    data_dir:    folder of the jobs and their media, until they are erased
    weights_dir: folder that is searched for pretrained weights before the libraries' caches
    encoders:    fine-tuned run that owns the model's encoders, if it is not found by itself
    device:      "auto" uses a GPU if there is one
    precision:   precision that the encoders compute in; "auto" is that of the features which the
                 model was trained on
    runtime:     what computes the model: "torch", or "onnx" for the graphs of a bundle; "auto" is
                 torch where the encoders are there for it
    asr:         speech recogniser for media without given words: "tiny.en", or the folder of a
                 Whisper model in CTranslate2 format; None takes "tiny.en", if it is installed
    log:         "plain" lines on stderr, of requests and jobs too with --verbose; "json" writes
                 one object a line, those included
    sagemaker:   Amazon SageMaker's addresses are answered too; it sends no key
    shard, num_shards: which of how many services this is whose jobs are told apart by their ids;
                 what is before them hands requests on by these (`serving/ray_serve.py`)
    limits:      what clients may ask for
    live:        what live sessions may ask for
    """

    model: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    key_file: Path | None = None
    without_key: bool = False
    workers: int = 1
    data_dir: Path = Path("serve-data")
    weights_dir: Path | None = None
    encoders: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    runtime: Literal["auto", "torch", "onnx"] = "auto"
    asr: str | None = None
    log: Literal["plain", "json"] = "plain"
    sagemaker: bool = False
    shard: int = 0
    num_shards: int = 1
    limits: Limits = field(default_factory=Limits)
    live: LiveLimits = field(default_factory=LiveLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port {self.port}: 0 to 65535")
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers}: 1 or more")
        if self.key_file is not None and self.without_key:
            raise UsageError("--key-file and --without-key: leave one of the two out")
        if self.without_key and self.is_private:
            raise UsageError(
                f"--without-key: with --host {self.host} only this machine can reach the service, "
                "and no key is needed; leave it out"
            )
        if not 0 <= self.shard < self.num_shards:
            raise UsageError(
                f"shard {self.shard} of num_shards {self.num_shards}: they are numbered from 0"
            )
        if self.key_file is not None and self.sagemaker:
            raise UsageError("key_file and sagemaker: SageMaker sends no key; leave one out")
        if self.key_file is None and not self.without_key and not self.is_private:
            raise UsageError(
                f"--host {self.host} can be reached from other machines: name a --key-file, or say "
                "--without-key"
            )

    @property
    def is_private(self) -> bool:
        """Whether this machine alone can reach it."""
        if self.host == _HOME:
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may mean anything
            return False
