"""The endpoints of the service; each calls the module that does the work."""

import asyncio
import re
import time
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Annotated, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from pipeline.errors import InputError, MeldError, UsageError
from serving.accept import accept
from serving.admission import COOKIE, Admission, answer_problem, problem_response
from serving.dispatch import MOST_WORDS_WAITING, JobStatus
from serving.events import follow
from serving.files import RangedFile
from serving.jobs import Job
from serving.live import add_live
from serving.metrics import CONTENT_TYPE
from serving.openapi import (
    ACCEPTED,
    EVENTS,
    MEDIA,
    METRICS,
    OF_A_JOB,
    READ,
    RESULT,
    TIMELINE,
    UPLOAD,
    describe,
    problems,
)
from serving.page import POLICY, page_file, render_live, render_start
from serving.parts import Parts, WithJob, WithParts
from serving.problems import (
    Busy,
    NoSuchJob,
    NotFinished,
    Unauthorised,
    code_of,
    make_problem,
    rebuild_error,
)
from serving.sagemaker import SageMaker
from serving.schemas import JobView, Key, ModelView, StatusView, Words, WordsRead

Format = Literal["json", "csv", "srt", "vtt", "html"]
_MEDIA_TYPES: dict[Format, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "srt": "application/x-subrip",
    "vtt": "text/vtt; charset=utf-8",
    "html": "text/html; charset=utf-8",
}
# Of every answer that has no better ones: what comes from a client is never run.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
# The result page has its own policy in it; this one adds what a page cannot say of itself.
_RESULT_POLICY = "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_MOST_AT_ONCE = 4  # uploads whose headers are read at one time, each by a process
_SECONDS_BETWEEN_CLOSE_LOOKS = 0.02  # of a client that waits for its answer
_EVENT_ID = re.compile(r"[0-9]{1,9}")
_OF_UPLOADS = problems(400, 401, 403, 408, 413, 415, 422, 500, 503, 507)
_OF_JOBS = problems(401, 403, 404)


def create_app(parts: Parts) -> ASGIApp:
    app = FastAPI(
        title="meld",
        version=version("meld"),
        summary="Emotions and sentiments in a video, utterance by utterance",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
    )
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    app.state.parts = parts
    app.state.sending = set()
    app.state.measuring = asyncio.Semaphore(_MOST_AT_ONCE)
    # Threads of their own for those who wait for the worker, and some to refuse the others by.
    app.state.readers = CapacityLimiter(2 * MOST_WORDS_WAITING * parts.config.workers)
    _add_handlers(app)
    _add_jobs(app)
    _add_rest(app)
    _add_page(app)
    add_live(
        app,
        parts.dispatcher,
        parts.config.live,
        shard=parts.config.shard,
        num_shards=parts.config.num_shards,
    )
    admission = Admission(
        app,
        keys=parts.keys,
        dispatcher=parts.dispatcher,
        limits=parts.config.limits,
        is_private=parts.config.is_private,
        headers=HEADERS,
        routes=app.routes,
    )
    return SageMaker(admission) if parts.config.sagemaker else admission


# ---------------------------------------------------------------------------------------- jobs


def _add_jobs(app: FastAPI) -> None:
    @app.post(
        "/v1/jobs",
        status_code=202,
        response_model_exclude_none=True,
        openapi_extra=UPLOAD,
        responses={202: ACCEPTED, **_OF_UPLOADS},
        tags=["jobs"],
        summary="Send media to be predicted",
    )
    async def create_job(
        request: Request,
        response: Response,
        parts: WithParts,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=8,
                max_length=200,
                description="a word of yours for this upload, such as a UUID: sent again with it, "
                "it makes no second job, and the answer is the first",
                examples=["7d3c2f0a-3b52-4a3e-9f5e-3c8a2f1b6d70"],
            ),
        ] = None,
    ) -> JobView:
        """The media as the body, with its Content-Type and `?filename=`; or a form with the media,
        and with subtitles or text. Accepted is what has an answer 202: it is not lost after that,
        whatever is ended."""
        with _once(request.app.state.sending, idempotency_key):
            job = parts.store.find(idempotency_key) if idempotency_key is not None else None
            if job is None:
                job = await accept(request, parts, sent_as=idempotency_key)
        if idempotency_key is None and await request.is_disconnected():  # nobody knows of it
            with suppress(NoSuchJob):
                await to_thread.run_sync(parts.dispatcher.erase, job.id)
            raise ClientDisconnect
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return _tell(parts.dispatcher.status(job.id), parts, response)

    @app.post(
        "/v1/predict",
        response_class=JSONResponse,
        openapi_extra=UPLOAD,
        responses={200: {"description": "The timeline.", "content": TIMELINE}, **_OF_UPLOADS},
        tags=["at once"],
        summary="Send a short clip, and get its timeline as the answer",
    )
    async def predict_clip(request: Request, parts: WithParts) -> Response:
        """As a job is sent. The answer is the timeline as JSON; nothing is kept of the clip after
        it, or when its client goes away. It passes the jobs that wait, and where it cannot be begun
        within some seconds, it is refused with `Retry-After`."""
        job = await accept(request, parts, is_awaited=True)
        try:
            await _await_end(request, parts, job)
            timeline = parts.store.folder(job.id).timeline("json")
            content = await to_thread.run_sync(timeline.read_bytes)
        finally:
            with suppress(NoSuchJob):
                await to_thread.run_sync(partial(parts.dispatcher.erase, job.id, by="answer"))
        return Response(content, media_type=_MEDIA_TYPES["json"])

    @app.get(
        "/v1/jobs/{job_id}",
        response_model_exclude_none=True,
        responses={200: OF_A_JOB, **_OF_JOBS},
        tags=["jobs"],
        summary="How far a job is",
    )
    async def get_job(job: WithJob, response: Response, parts: WithParts) -> JobView:
        """`Retry-After` says when it is likely to be done."""
        return _tell(job, parts, response)

    @app.delete(
        "/v1/jobs/{job_id}",
        status_code=204,
        responses={204: {"description": "Nothing of it is left."}, **_OF_JOBS, **problems(500)},
        tags=["jobs"],
        summary="Cancel a job and erase it",
    )
    def delete_job(job: WithJob, parts: WithParts) -> None:
        """After the answer, the media, the words and the results are erased."""
        parts.dispatcher.erase(job.job.id)

    @app.get(
        "/v1/jobs/{job_id}/timeline",
        response_class=RangedFile,
        responses={**RESULT, **problems(400, 401, 403, 404, 409, 416, 422, 500)},
        tags=["jobs"],
        summary="The result of a job",
    )
    def get_timeline(
        job: WithJob,
        parts: WithParts,
        format: Annotated[Format, Query(description="html is a page with a player")] = "json",
        download: Annotated[bool, Query(description="as a file to be saved")] = False,
    ) -> RangedFile:
        """What `meld predict` writes in the same format."""
        _check_succeeded(job)
        name = f"{job.job.file}.meld.{format}"
        return RangedFile(
            parts.store.folder(job.job.id).timeline(format),
            media_type=_MEDIA_TYPES[format],
            filename=name,
            content_disposition_type="attachment" if download else "inline",
            headers={"Content-Security-Policy": _RESULT_POLICY} if format == "html" else None,
        )

    @app.get(
        "/v1/jobs/{job_id}/events",
        response_class=EventSourceResponse,
        responses={200: {"description": "A stream.", "content": EVENTS}, **_OF_JOBS},
        tags=["jobs"],
        summary="The utterances of a job as they are ready",
    )
    async def get_events(
        job: WithJob,
        parts: WithParts,
        last_event_id: Annotated[
            str | None, Header(description="resumes after it", examples=["1"])
        ] = None,
    ) -> AsyncIterable[ServerSentEvent]:
        """Server-sent events: `utterance` with its number as id, `progress`, and `end` with the
        job, which is the last."""
        async for event in follow(job.job.id, parts, _number_of(last_event_id or "")):
            yield event

    @app.get(
        "/v1/jobs/{job_id}/media",
        response_class=RangedFile,
        responses={**MEDIA, **_OF_JOBS, **problems(400, 401, 403, 404, 416)},
        tags=["jobs"],
        summary="The media that was sent, by ranges too",
    )
    def get_media(job: WithJob, parts: WithParts) -> RangedFile:
        """With the Content-Type that it was sent with; a player seeks by `Range`."""
        return RangedFile(parts.store.folder(job.job.id).media, media_type=job.job.media_type)


def _number_of(event_id: str) -> int:
    """Of an utterance; 0, which is before the first, where it is no id of ours."""
    return int(event_id) if _EVENT_ID.fullmatch(event_id) else 0


@contextmanager
def _once(sending: set[str], sent_as: str | None) -> Iterator[None]:
    """Raises Busy where the same is being sent already."""
    if sent_as is None:
        yield
        return
    if sent_as in sending:
        raise Busy("the same Idempotency-Key is being sent already; ask again", 1)
    sending.add(sent_as)
    try:
        yield
    finally:
        sending.remove(sent_as)


async def _await_end(request: Request, parts: Parts, job: Job) -> None:
    """Raises Busy where it is not begun in time, ClientDisconnect, or why it failed."""
    wait_s = parts.config.limits.predict_wait_s
    begun_by_s, has_begun = time.monotonic() + wait_s, False
    while True:
        status = parts.dispatcher.status(job.id)
        if status.job.ended is not None:
            return _check_succeeded(status)
        has_begun = has_begun or status.state == "running"
        if not has_begun and (time.monotonic() > begun_by_s or parts.dispatcher.is_draining):
            raise Busy(
                f"it could not be begun within {wait_s:g} s; try again later, or send it as a job",
                parts.dispatcher.seconds_until_place(),
            )
        if await request.is_disconnected():
            raise ClientDisconnect
        await asyncio.sleep(_SECONDS_BETWEEN_CLOSE_LOOKS)


def _tell(status: JobStatus, parts: Parts, response: Response) -> JobView:
    if status.retry_after_s is not None:
        response.headers["Retry-After"] = str(status.retry_after_s)
    return parts.view(status)


def _check_succeeded(status: JobStatus) -> None:
    """Raises NotFinished, or why the job failed."""
    if status.job.error is not None:
        raise rebuild_error(status.job.error.code, status.job.error.detail)
    if status.state != "succeeded":
        raise NotFinished(f"the job is {status.state}; ask again later", status.retry_after_s or 1)


# ------------------------------------------------------------------------------------ the rest


def _add_rest(app: FastAPI) -> None:
    @app.post(
        "/v1/text",
        responses={200: READ, **problems(400, 401, 403, 408, 413, 422, 503)},
        tags=["at once"],
        summary="Emotions and sentiments of words without media",
    )
    async def read_text(request: Request, words: Words, parts: WithParts) -> WordsRead:
        """Answered at once, also while a job is worked on."""
        turns = [turn.model_dump() for turn in words.turns]
        ready = parts.dispatcher.ready
        assert ready is not None
        read = await to_thread.run_sync(
            parts.dispatcher.read_words, turns, limiter=request.app.state.readers
        )
        return WordsRead(utterances=read, notice=ready.notice)

    @app.get(
        "/v1/model",
        responses={200: {"description": "The model."}, **problems(401, 403)},
        tags=["the service"],
        summary="The model that predicts",
    )
    def get_model(parts: WithParts) -> ModelView:
        """Its labels, the SHA-256 of its weights, who hears what comes without words, and its
        card."""
        ready = parts.dispatcher.ready
        assert ready is not None
        return ModelView(**ready.model)

    @app.post(
        "/v1/session",
        status_code=204,
        responses={
            204: {"description": "A cookie is set."},
            **problems(400, 401, 403, 408, 413, 422),
        },
        tags=["the service"],
        summary="Enter the key once, in a browser",
    )
    def open_session(key: Key, request: Request, response: Response, parts: WithParts) -> None:
        """Sets a cookie that stands for the key."""
        if not parts.keys.fits(key.key):
            raise Unauthorised("this is not the key")
        response.set_cookie(
            COOKIE,
            parts.keys.token,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )

    @app.get(
        "/livez",
        responses={200: {"description": "It does."}, **problems(403)},
        tags=["the service"],
        summary="Whether the service answers",
    )
    async def is_alive() -> StatusView:
        """Without the key, as /readyz. It says nothing of workers: a supervisor ends who does not
        answer here."""
        return StatusView(status="alive")

    @app.get(
        "/readyz",
        responses={
            200: {"description": "It does."},
            503: {"description": "No worker is ready, or it is being ended.", "model": StatusView},
            **problems(403),
        },
        tags=["the service"],
        summary="Whether the service takes work on",
    )
    async def is_ready(parts: WithParts, response: Response) -> StatusView:
        """A full queue is no reason against it: those who come are told when to come again."""
        if parts.dispatcher.is_ready:
            return StatusView(status="ready")
        response.status_code = 503
        return StatusView(status="not ready")

    @app.get(
        "/metrics",
        summary="Counts and times for monitoring, in Prometheus' text format",
        response_class=PlainTextResponse,
        responses={200: {"description": "The figures.", "content": METRICS}, **problems(401, 403)},
        tags=["the service"],
    )
    async def get_metrics(parts: WithParts) -> Response:
        """With the key, where there is one: it tells how much the service is used."""
        return Response(parts.dispatcher.metrics.render(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def get_page(parts: WithParts) -> HTMLResponse:
        ready = parts.dispatcher.ready
        assert ready is not None
        page = render_start(
            model=ready.model,
            notice=ready.notice,
            limits=parts.config.limits,
            needs_key=parts.keys.is_needed,
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @app.get("/live", response_class=HTMLResponse, include_in_schema=False)
    async def get_live_page(parts: WithParts) -> HTMLResponse:
        ready = parts.dispatcher.ready
        assert ready is not None
        page = render_live(
            model=ready.model,
            notice=ready.notice,
            limits=parts.config.limits,
            live=parts.config.live,
            needs_key=parts.keys.is_needed,
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})

    @app.get("/favicon.ico", status_code=204, include_in_schema=False)
    async def get_icon() -> None:
        """Browsers ask for one without being told to, and would show an error."""

    @app.get("/page/{name}", include_in_schema=False)
    def get_page_file(name: str) -> Response:
        found = page_file(name)
        if found is None:
            raise HTTPException(404)
        content, media_type = found
        return Response(content, media_type=media_type)


def _methods_at(app: FastAPI, scope: Scope) -> list[str]:
    found: set[str] = set()
    for route in app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return sorted(found)


def _add_handlers(app: FastAPI) -> None:
    @app.exception_handler(MeldError)
    async def of_ours(request: Request, error: MeldError) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def of_requests(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return problem_response(InputError(f"{place}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        problem = make_problem(error.status_code, code_of(UsageError), error.detail)
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette tells one route's alone
            headers["Allow"] = ", ".join(_methods_at(app, request.scope))
        return answer_problem(problem, headers)

    @app.exception_handler(Exception)
    async def of_bugs(request: Request, error: Exception) -> JSONResponse:
        """Starlette raises it again, so that the log has it."""
        return answer_problem(
            make_problem(500, code_of(MeldError), "this is a bug, and the server's log has it")
        )

    @app.exception_handler(ClientDisconnect)
    async def of_gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it
