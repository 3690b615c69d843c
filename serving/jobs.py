"""Jobs on the disk, one folder each, so that accepted jobs survive any process.

    <data_dir>/jobs/<id>/   job.json          what is asked for and how it ended, by the server
                            media, subtitles  what the client sent, under names of ours
                            utterances.ndjson, timeline.*   what came out, by the worker
    <data_dir>/incoming/    uploads that are not accepted yet
    <data_dir>/erased/      what is being erased

A job is accepted by the renaming of its folder, and erased by another: a kill at any moment leaves
it whole or not at all, and the next start sweeps the two other folders.
"""

import json
import re
import secrets
import shutil
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from pipeline.errors import StorageError, UsageError
from pipeline.settings import build_config
from pipeline.system.files import sync, write_whole
from pipeline.system.json_values import MALFORMED
from serving.live_turns import HEARINGS, Hearing
from serving.problems import NoSuchJob

_ID = re.compile(r"[0-9a-f]{32}")
_JOB, _MEDIA, _UTTERANCES = "job.json", "media", "utterances.ndjson"

Ended = Literal["succeeded", "failed"]


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed: the code and the words of a problem."""

    code: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class JobWords:
    """Where the words of a job come from, as in `WordsConfig`, and which part of the media counts.

    subtitles: the client's name of the file
    language: code of the language that is spoken, for who hears it; None: it is detected, by a
        recogniser that knows several
    hearing: how it is cut where it is heard: as by `meld predict`, or as live

    Raises UsageError.
    """

    text: str | None = None
    subtitles: str | None = None
    no_text: bool = False
    language: str | None = None
    hearing: Hearing = "thorough"
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        if self.text is not None and self.subtitles is not None:
            raise UsageError("text and subtitles: the words come from one place; leave one out")
        if self.text and self.no_text:
            raise UsageError("text and no_text: leave one of the two out")
        known = [name for name in ("text", "subtitles", "no_text") if getattr(self, name)]
        if self.language is not None and known:
            raise UsageError(
                f"language is that of what is heard, and with {known[0]} no word is; leave one of "
                "the two out"
            )
        if self.hearing not in HEARINGS:
            raise UsageError(f"hearing is one of {', '.join(HEARINGS)}")
        given = "text" if self.text is not None else "subtitles" if self.subtitles else None
        if given is not None and self.hearing != "thorough":
            raise UsageError(
                f"hearing says how media are heard, and {given} what is said in them; leave one of "
                "the two out"
            )
        for name in ("start_s", "end_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise UsageError(f"{name[:-2]} is seconds from the media's start, not {value}")
        if self.end_s is not None and self.end_s <= (self.start_s or 0):
            raise UsageError(f"end {self.end_s} must be after start {self.start_s or 0}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """An accepted job.

    file:       the client's name of the media, to be shown and never to be a path
    media_type: as the player gets it
    created_s, finished_s: seconds since 1970
    ended:      None as long as there is work to do
    num_deaths: how many workers ended while they worked on it
    is_awaited: a request waits for the result: nothing is kept after its answer, and when the
                server ends before that, nobody waits any more
    sent_as:    the client's own word for what it sent (Idempotency-Key): sent again, it is this job
    """

    id: str
    file: str
    media_type: str
    num_bytes: int
    duration_ms: int
    words: JobWords = field(default_factory=JobWords)
    created_s: float
    num_deaths: int = 0
    ended: Ended | None = None
    finished_s: float | None = None
    error: JobError | None = None
    is_awaited: bool = False
    sent_as: str | None = None


@dataclass(frozen=True)
class JobFolder:
    """The paths of the files of a job."""

    path: Path

    @property
    def job(self) -> Path:
        return self.path / _JOB

    @property
    def media(self) -> Path:
        return self.path / _MEDIA

    @property
    def utterances(self) -> Path:
        """JSON lines, as `describe_utterance` gives them."""
        return self.path / _UTTERANCES

    @property
    def subtitles(self) -> Path:
        return self.path / "subtitles"

    def timeline(self, name: str) -> Path:
        """name: a format. The JSON is written last: where it is, all are."""
        return self.path / f"timeline.{name}"

    def read(self) -> Job:
        """Raises StorageError."""
        try:
            job = build_config(Job, json.loads(self.job.read_bytes()))
            if job.id != self.path.name:
                raise UsageError(f"it is of the job {job.id}")
            return job
        except (OSError, UsageError, *MALFORMED) as error:
            raise StorageError(
                f"{self.job} cannot be read ({error}); delete its folder, or mend it"
            ) from error

    def write(self, job: Job) -> None:
        """Raises StorageError."""
        write_whole(self.job, json.dumps(asdict(job)).encode())


def shard_of(name: str, num_shards: int) -> int:
    """Which of several services owns a job, by its id; or by any other name, the same each time."""
    return zlib.crc32(name.encode()) % num_shards


class JobStore:
    """The jobs of one server, which alone may use the folder."""

    def __init__(self, root: Path, *, shard: int = 0, num_shards: int = 1) -> None:
        """Finds the accepted jobs of earlier servers, and erases what they left of others.

        shard, num_shards: new jobs get ids of which `shard_of` says `shard`

        Raises StorageError.
        """
        self._jobs_in, self._incoming_in, self._erased_in = (
            root / name for name in ("jobs", "incoming", "erased")
        )
        self._shard, self._num_shards = shard, num_shards
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}  # of jobs that have ended
        try:
            for folder in (self._incoming_in, self._erased_in):
                if folder.exists():
                    shutil.rmtree(folder)
            for folder in (self._jobs_in, self._incoming_in, self._erased_in):
                # For nobody else on this machine: what people say is in it.
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            found = [JobFolder(each).read() for each in self._jobs_in.iterdir()]
        except OSError as error:
            raise StorageError(f"cannot use {root}: {error}") from error
        self._jobs = {job.id: job for job in sorted(found, key=lambda job: job.created_s)}
        for job in found:
            if job.is_awaited:
                self.erase(job.id)

    def begin(self) -> "Incoming":
        """Raises StorageError."""
        incoming = Incoming(self._incoming_in / self._new_id())
        try:
            incoming.folder.path.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(f"cannot write {incoming.folder.path}: {error}") from error
        return incoming

    def _new_id(self) -> str:
        """128 random bits, less those that say the shard."""
        while shard_of(drawn := secrets.token_hex(16), self._num_shards) != self._shard:
            pass
        return drawn

    def accept(self, incoming: "Incoming", job: Job) -> Job:
        """From the return of this on, the job is not lost. Raises StorageError."""
        incoming.folder.write(job)
        try:
            sync(incoming.folder.path)
            incoming.folder.path.rename(self.folder(job.id).path)
            sync(self._jobs_in)
        except OSError as error:
            raise StorageError(f"cannot write {self._jobs_in}: {error}") from error
        with self._lock:
            self._jobs[job.id] = job
        return job

    def get(self, job_id: str) -> Job:
        """Raises NoSuchJob."""
        with self._lock:
            job = self._jobs.get(job_id) if _ID.fullmatch(job_id) else None
        if job is None:
            raise NoSuchJob("there is no such job, or it was erased")
        return job

    def find(self, sent_as: str) -> Job | None:
        """The job of an upload that was accepted before."""
        with self._lock:
            return next((job for job in self._jobs.values() if job.sent_as == sent_as), None)

    def unfinished(self) -> list[Job]:
        """The oldest first."""
        with self._lock:
            return [job for job in self._jobs.values() if job.ended is None]

    def count_ended(self) -> Mapping[str, int]:
        """Those that are kept."""
        with self._lock:
            return Counter(job.ended for job in self._jobs.values() if job.ended is not None)

    def ended(self) -> list[Job]:
        """The one that ended first comes first."""
        with self._lock:
            jobs = [job for job in self._jobs.values() if job.finished_s is not None]
        return sorted(jobs, key=lambda job: job.finished_s or 0.0)

    def num_bytes(self, job_id: str) -> int:
        """On the disk, of a job that has ended: media, results, and what is left of its work. 0
        where it was erased."""
        with self._lock:
            known = self._sizes.get(job_id)
        if known is None:
            try:
                files = self.folder(job_id).path.rglob("*")
                known = sum(file.stat().st_size for file in files)
            except OSError:  # it goes at this moment, or the disk fails: the next sweep asks again
                return 0
            with self._lock:
                if job_id in self._jobs:
                    self._sizes[job_id] = known
        return known

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self._jobs_in / job_id)

    def end(self, job: Job, error: JobError | None = None) -> None:
        """Raises StorageError."""
        ended: Ended = "succeeded" if error is None else "failed"
        self.update(replace(job, ended=ended, finished_s=time.time(), error=error))

    def update(self, job: Job) -> None:
        """Raises NoSuchJob, StorageError."""
        self.get(job.id)
        self.folder(job.id).write(job)
        with self._lock:
            self._jobs[job.id] = job

    def erase(self, job_id: str) -> None:
        """Nobody may be working on it. Raises NoSuchJob, or StorageError where the disk refuses;
        the next start tries again then."""
        self.get(job_id)
        with self._lock:
            self._jobs.pop(job_id, None)
            self._sizes.pop(job_id, None)
        going = self._erased_in / job_id
        try:
            self.folder(job_id).path.rename(going)
            sync(self._jobs_in)
            shutil.rmtree(going)
        except OSError as error:
            raise StorageError(f"cannot erase {going}: {error}") from error


class Incoming:
    """A folder for an upload, which is a job's once that is accepted."""

    def __init__(self, path: Path) -> None:
        self.folder = JobFolder(path)

    @property
    def id(self) -> str:
        return self.folder.path.name

    def drop(self) -> None:
        """Nothing happens where it was accepted. Raises StorageError."""
        try:
            shutil.rmtree(self.folder.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"cannot erase {self.folder.path}: {error}") from error
