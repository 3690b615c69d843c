"""What the endpoints use, and how each of them is given it."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi import Path as FromPath

from pipeline.decode.process import Decoder
from serving.admission import Keys
from serving.config import ServeConfig
from serving.dispatch import Dispatcher, JobStatus
from serving.jobs import JobStore
from serving.schemas import JobView, view_job


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The objects that the endpoints use. decoder: reads the headers of uploads"""

    config: ServeConfig
    keys: Keys
    store: JobStore
    dispatcher: Dispatcher
    decoder: Decoder

    @property
    def retention_s(self) -> float:
        return self.config.limits.retention_hours * 3600

    def view(self, status: JobStatus) -> JobView:
        return view_job(status, retention_s=self.retention_s)


# Async, as whatever waits for nothing: the threads that others are answered by may all be waiting.
async def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


WithParts = Annotated[Parts, Depends(_parts)]


async def _known(
    job_id: Annotated[
        str,
        FromPath(
            description="as the answer to the upload has it",
            examples=["0f2c9a6be1d84c57a3f1f0c2b8de9a41"],
        ),
    ],
    parts: WithParts,
) -> JobStatus:
    """Raises NoSuchJob, before a stream begins."""
    return parts.dispatcher.status(job_id)


WithJob = Annotated[JobStatus, Depends(_known)]
