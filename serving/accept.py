"""From a request that was admitted to an accepted job."""

import time
from dataclasses import replace

from anyio import to_thread
from fastapi import Request

from pipeline.decode.measure import MediaLength
from pipeline.decode.process import Decoder
from pipeline.errors import ClipError, InputError, UsageError
from pipeline.system.one_line import one_line
from serving.admission import PLACE
from serving.config import Limits
from serving.jobs import Incoming, Job, JobWords
from serving.parts import Parts
from serving.problems import TooLarge
from serving.process import WorkerReady
from serving.upload import Upload, check_space, receive_upload


async def accept(
    request: Request, parts: Parts, *, sent_as: str | None = None, is_awaited: bool = False
) -> Job:
    """Raises MeldError, ClientDisconnect; nothing of the upload is kept then."""
    incoming = await to_thread.run_sync(parts.store.begin)
    try:
        received = await _receive(request, parts, incoming, is_awaited)
        job = replace(received, sent_as=sent_as, is_awaited=is_awaited)
        return await to_thread.run_sync(
            parts.dispatcher.submit, incoming, job, request.scope[PLACE]
        )
    finally:
        await to_thread.run_sync(incoming.drop)


async def _receive(request: Request, parts: Parts, incoming: Incoming, is_awaited: bool) -> Job:
    """Raises MeldError, ClientDisconnect."""
    limits, headers = parts.config.limits, request.headers
    stage = parts.dispatcher.metrics.stage
    check_space(incoming.folder.path, int(headers.get("content-length", "0")))
    began_s = time.monotonic()
    upload = await receive_upload(
        request.stream(),
        incoming.folder,
        content_type=headers.get("content-type", ""),
        query=request.query_params,
        limits=limits,
    )
    stage.labels("receiving").observe(time.monotonic() - began_s)
    _check_words(upload.words, parts.dispatcher.ready)
    async with request.app.state.measuring:
        began_s = time.monotonic()
        length = await to_thread.run_sync(_measure, parts.decoder, incoming, upload)
        stage.labels("measuring").observe(time.monotonic() - began_s)
    _check_length(length, upload.file, limits, is_awaited)
    return Job(
        id=incoming.id,
        file=upload.file,
        media_type=upload.media_type,
        num_bytes=incoming.folder.media.stat().st_size,
        duration_ms=length.duration_ms,
        words=upload.words,
        created_s=time.time(),
    )


def _measure(decoder: Decoder, incoming: Incoming, upload: Upload) -> MediaLength:
    """Raises InputError where it is no media, whose reader it may have ended."""
    try:
        length = decoder.measure(incoming.folder.media)
    except ClipError as error:
        told = error.message.replace(str(incoming.folder.media), upload.file)
        raise InputError(f"{upload.file}: {told}") from error
    if length.duration_ms == 0:
        raise InputError(f"{upload.file}: it lasts 0.0 s, so there is nothing to predict from")
    return length


def _check_words(words: JobWords, ready: WorkerReady | None) -> None:
    """Raises UsageError for what the model or the recogniser cannot do."""
    assert ready is not None
    if words.no_text and ready.needs_words:
        raise UsageError(f"no_text: {ready.model['name']} reads words alone")
    recogniser = ready.model.get("recogniser")
    languages = [] if recogniser is None else recogniser["languages"]
    if words.language is not None and words.language not in languages:
        raise UsageError(
            f"language {one_line(words.language)}: the service's recogniser knows "
            f"{', '.join(languages) or 'none'}"
        )


def _check_length(length: MediaLength, file: str, limits: Limits, is_awaited: bool) -> None:
    """Raises TooLarge."""
    duration_s, most_s = length.duration_ms / 1000, limits.max_media_s
    if is_awaited and duration_s > limits.predict_media_s < most_s:
        raise TooLarge(
            f"{file} lasts {duration_s:.0f} s; {limits.predict_media_s:g} s are the most that is "
            "answered at once; send it as a job"
        )
    if duration_s > most_s:
        raise TooLarge(f"{file} lasts {duration_s:.0f} s; {most_s:g} s are the most")
    for found, most, what in (
        (length.num_pixels, limits.max_pixels, "pixels a frame"),
        (length.num_frames, limits.max_frames, "frames"),
        (length.num_streams, limits.max_streams, "streams"),
    ):
        if found > most:
            raise TooLarge(f"{file} has {found} {what}; {most} are the most")
