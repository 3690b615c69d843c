"""The schemas of requests and answers, for OpenAPI."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipeline.system.one_line import is_utf_8
from serving.dispatch import JobStatus
from serving.problems import make_problem, rebuild_error, status_of

_MOST_TURNS = 200


class Problem(BaseModel):
    """RFC 9457. `code` is the name of the error in meld's own tree, as in its exit statuses."""

    type: str = Field(examples=["urn:meld:problem:input_error"])
    title: str = Field(examples=["Unprocessable Entity"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["talk.mp4: no media file that can be read"])
    code: str = Field(examples=["input_error"])
    request_id: str | None = Field(
        default=None,
        description="as X-Request-Id of the answer has it, and the service's log",
        examples=["9b4f6dc2a0e84c3f8d5d0b1c7a6e2f43"],
    )


class Progress(BaseModel):
    """Seconds of media. Where nothing says what is spoken, the file is heard first, and both stages
    go from the begin to the end of it."""

    stage: Literal["hearing", "predicting"] | None = Field(
        default=None, description="not there until the worker reports for the first time"
    )
    done_s: float = Field(examples=[12.4])
    total_s: float = Field(examples=[61.0])


class JobView(BaseModel):
    """A job. Its parts are below its own address: timeline, events, media."""

    id: str = Field(description="128 random bits", examples=["0f2c9a6be1d84c57a3f1f0c2b8de9a41"])
    state: Literal["queued", "running", "succeeded", "failed"] = Field(examples=["running"])
    file: str = Field(description="the name that the client gave", examples=["talk.mp4"])
    num_bytes: int = Field(description="of the media", examples=[1048576])
    duration_s: float = Field(description="of the media", examples=[61.0])
    created_at: datetime = Field(description="when it was accepted")
    finished_at: datetime | None = Field(default=None, description="when it ended")
    erased_at: datetime | None = Field(
        default=None,
        description="when the job and its media are erased, if nobody does it before and "
        "their room is not needed",
    )
    jobs_before: int = Field(default=0, description="that are worked on first")
    progress: Progress | None = Field(default=None, description="of a running job")
    error: Problem | None = Field(default=None, description="why it failed")


def _check_whole(text: str) -> str:
    """JSON can name half a character, which no UTF-8 can hold."""
    if not is_utf_8(text):
        raise ValueError("it holds half a character (a lone surrogate)")
    return text


Text = Annotated[str, AfterValidator(_check_whole)]


class TurnView(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: Text = Field(examples=["Oh my God, he's here!"])
    speaker: Text | None = Field(default=None, examples=["Rachel"])


class Words(BaseModel):
    """One dialogue, turn by turn: a model with dialogue context reads each with those before it."""

    model_config = ConfigDict(extra="forbid")

    turns: Annotated[list[TurnView], Field(min_length=1, max_length=_MOST_TURNS)]


class WordsRead(BaseModel):
    """utterances: as in a timeline, without times"""

    utterances: list[dict[str, Any]]
    notice: str = Field(description="that emotions were recognised, and the law")


class RecogniserView(BaseModel):
    name: str = Field(examples=["tiny.en"])
    languages: list[str] = Field(description="codes of those it knows", examples=[["en"]])


class ModelView(BaseModel):
    """The model, as a timeline names it, and its card in Markdown."""

    name: str = Field(examples=["meld-text"])
    fingerprint: str = Field(description="SHA-256 of its weights")
    recipe: str = Field(description="fingerprint of how its features are made")
    modalities: list[str] = Field(description="that it takes", examples=[["text"]])
    random_weights: list[str] = Field(
        description="modalities whose encoder has, or started from, random weights", examples=[[]]
    )
    precision: dict[str, str] = Field(
        description="what each encoder computes in", examples=[{"text": "float32"}]
    )
    labels: dict[str, list[str]] = Field(
        description="of each head", examples=[{"sentiment": ["neutral", "positive", "negative"]}]
    )
    recogniser: RecogniserView | None = Field(
        default=None, description="who hears media that come without words; null: nobody"
    )
    card: str | None = Field(default=None, description="Markdown: what it is for, and its scores")


class StatusView(BaseModel):
    status: Literal["alive", "ready", "not ready"]


class TicketView(BaseModel):
    """Opens one live session."""

    ticket: str = Field(description="good once")
    expires_in_s: float = Field(description="from now on")
    address: str = Field(description="of the WebSocket", examples=["/v1/live"])
    protocols: list[str] = Field(
        description="subprotocols that it is to offer, with the ticket in the place of TICKET",
        examples=[["meld.live.v1", "meld.ticket.TICKET"]],
    )


class Key(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: Text = Field(max_length=4096, examples=["the first line of the key file"])


def view_job(status: JobStatus, *, retention_s: float) -> JobView:
    job = status.job
    return JobView(
        id=job.id,
        state=status.state,
        file=job.file,
        num_bytes=job.num_bytes,
        duration_s=job.duration_ms / 1000,
        created_at=_moment(job.created_s),
        finished_at=None if job.finished_s is None else _moment(job.finished_s),
        erased_at=None if job.finished_s is None else _moment(job.finished_s + retention_s),
        jobs_before=status.num_before,
        progress=Progress(
            stage=status.stage, done_s=status.done_ms / 1000, total_s=status.total_ms / 1000
        )
        if status.state == "running"
        else None,
        error=None if job.error is None else _problem(job.error.code, job.error.detail),
    )


def _problem(code: str, detail: str) -> Problem:
    return Problem(**make_problem(status_of(rebuild_error(code, detail)), code, detail))


def _moment(at_s: float) -> datetime:
    return datetime.fromtimestamp(at_s, UTC)
