"""What a service is asked to be: where it listens, what predicts, and what it takes on."""

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import UsageError

_HOME = "localhost"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client, and all of them together, may ask for.

    max_bytes:       of one upload
    max_media_s:     seconds that one media file may last
    max_pixels:      of one frame, as the file's headers tell
    max_frames:      of its picture, as they tell
    max_streams:     of one file, those that nobody reads included
    max_text_bytes:  of a request that sends words alone
    predict_bytes:   of a clip that is answered at once (`POST /v1/predict`)
    predict_media_s: seconds that such a clip may last
    predict_wait_s:  seconds within which such a clip must be begun; else it is refused
    queued_jobs:     how many may wait or be uploaded at one time, beside the one that is worked on
    queued_media_s:  seconds of media that may wait; a job that finds nothing waiting is always
                     taken
    retention_hours: how long after its end a job is kept, its media included; then it is erased
    retention_bytes: on the disk, of ended jobs with their media: beyond it those that ended first
                     are erased, but never the last one
    header_s:        seconds until the head of a request must be there
    silence_s:       seconds for which an upload may send nothing
    unread_s:        seconds for which a client may leave an answer unread
    min_bytes_per_s: of an upload, on average
    stalled_s:       seconds after which a worker that reports nothing is replaced
    drain_s:         seconds that the running job gets to finish when the service is ended; one that
                     needs longer goes on at the next start
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
    stalled_s: float = 900.0
    drain_s: float = 25.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"limits.{name} must be above 0, not {value}")


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
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"live.{name} must be above 0, not {value}")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the service listens, with what, and for whom.

    model:       a trained run; None takes the one that comes with this program
    host:        name or address to listen on
    port:        to listen on; 0 takes one that is free
    key_file:    file whose first line is the key that clients must send
    without_key: other machines may come without a key
    workers:     processes that predict, each with the model in its memory and one job at a time;
                 they share the cores
    data_dir:    folder of the jobs, media included, until they are erased
    weights_dir: folder that is looked at for weights before the libraries' own caches
    encoders:    the fine-tuned run that owns the model's encoders, where they are not found
    device:      "auto" takes a GPU where there is one
    precision:   what encoders compute in that can; "auto" is that of the features which the model
                 was trained on
    asr:         who hears media that come without words: as in `WordsConfig`; None takes the small
                 English one, where it is installed
    log:         "plain" lines on stderr, of requests and jobs too with --verbose; "json" writes
                 one object a line, those included
    sagemaker:   Amazon SageMaker's addresses are answered too; it sends no key
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
    asr: str | None = None
    log: Literal["plain", "json"] = "plain"
    sagemaker: bool = False
    limits: Limits = field(default_factory=Limits)
    live: LiveLimits = field(default_factory=LiveLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port {self.port}: 0 to 65535")
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers}: 1 or more")
        if self.key_file is not None and self.without_key:
            raise UsageError("--key-file and --without-key: leave one of the two out")
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
