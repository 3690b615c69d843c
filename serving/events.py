"""The events of one job: its utterances and its progress, while it goes on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi.sse import ServerSentEvent

from pipeline.errors import UsageError
from serving.dispatch import JobStatus
from serving.parts import Parts

_SECONDS_BETWEEN_LOOKS = 0.1


async def follow(job_id: str, parts: Parts, last: int) -> AsyncIterator[ServerSentEvent]:
    """Ends with the job, with its erasing, and with the service, whose successor is asked then."""
    path = parts.store.folder(job_id).utterances
    number, place = 0, 0
    seen: JobStatus | None = None
    told: dict[str, Any] | None = None
    while not parts.dispatcher.is_draining:
        # First how it stands, then what is there: what comes last is not missed.
        try:
            status = parts.dispatcher.status(job_id)
        except UsageError:
            return
        if status.state != "queued" or seen is None:  # an earlier worker may have left some
            lines, place = await to_thread.run_sync(_read_on, path, place)
            for line in lines:
                number += 1
                if number > last:
                    yield ServerSentEvent(event="utterance", id=str(number), raw_data=line)
        if status != seen:  # many may look at jobs that wait, again and again
            seen = status
            view = parts.view(status).model_dump(mode="json", exclude_none=True)
            if status.job.ended is not None:
                yield ServerSentEvent(event="end", data=view)
                return
            if view != told:
                told = view
                yield ServerSentEvent(event="progress", data=view)
        await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)


def _read_on(path: Path, place: int) -> tuple[list[str], int]:
    """Whole lines from a byte on, and the byte behind them."""
    try:
        with path.open("rb") as file:
            file.seek(place)
            whole = file.read().rpartition(b"\n")[0]
    except FileNotFoundError:  # there is none yet, or none any more
        return [], place
    if not whole:
        return [], place
    # Not splitlines: JSON may hold other ends of lines.
    return whole.decode().split("\n"), place + len(whole) + 1
