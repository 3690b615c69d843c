"""The service as OpenAPI 3.1 describes it, beyond what FastAPI reads from the addresses: bodies
that are streamed, problems, examples, the key, and the timeline by its own JSON Schema."""

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from serving.live_turns import HEARINGS
from serving.problems import MEDIA_TYPE, make_problem
from serving.schemas import Problem

JSON = "application/json"
_REF = "#/components/schemas/"
_DESCRIPTION = """\
Send a video or a recording, get a timeline of emotions and sentiments.

A job outlives the request that sends it, the worker and the server. Short clips and words alone are
answered at once. Where the service has a key, every address below /v1 and /metrics needs it. An
answer that is no success is an RFC 9457 problem with a stable `code`. Every answer has an
`X-Request-Id`, which may be the client's own."""

_BINARY = {"type": "string", "format": "binary"}
_OPTIONS: Mapping[str, dict[str, Any]] = {
    "text": {
        "type": "string",
        "description": "the words of the whole file, which is one utterance then",
        "examples": ["I am so happy for you!"],
    },
    "hearing": {
        "type": "string",
        "enum": list(HEARINGS),
        "description": "how it is cut into utterances where it is heard: as by meld predict, or as "
        "in a live session",
        "default": "thorough",
    },
    "no_text": {
        "type": "boolean",
        "default": False,
        "description": "see and hear, read nothing: no word is recognised",
    },
    "language": {
        "type": "string",
        "description": "code of what is spoken, one of those that /v1/model lists; without it, a "
        "recogniser that knows several detects it",
        "examples": ["en"],
    },
    "start": {
        "type": "number",
        "minimum": 0,
        "description": "seconds of the file to begin at",
        "examples": [1.5],
    },
    "end": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "seconds of the file to end at",
        "examples": [12],
    },
}
_FILENAME = {"type": "string", "description": "what the media is called", "examples": ["talk.mp4"]}
# Of addresses that take media: `receive_upload` reads the body, and FastAPI sees nothing of it.
UPLOAD: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "description": f"{schema['description']}; of a raw body, in a form it is a part",
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in {"filename": _FILENAME, **_OPTIONS}.items()
    ],
    "requestBody": {
        "required": True,
        "description": "The media as it is, with its Content-Type; or a form.",
        "content": {
            "video/*": {"schema": _BINARY},
            "audio/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["media"],
                    "not": {"required": ["text", "subtitles"]},  # words come from one place
                    "additionalProperties": False,
                    "properties": {
                        "media": _BINARY,
                        "subtitles": {**_BINARY, "description": ".srt, .vtt, .ass or .ssa"},
                        **_OPTIONS,
                    },
                }
            },
        },
    },
}
_SRT = "1\n00:00:00,000 --> 00:00:01,000\n[joy] I am so happy for you!\n"
_EVENTS = """\
event: progress
data: {"id": "0f2c9a6be1d84c57a3f1f0c2b8de9a41", "state": "running", ...}

event: utterance
id: 1
data: {"id": "u0001", "start_ms": 0, "end_ms": 1000, "text": "I am so happy for you!", ...}

event: end
data: {"id": "0f2c9a6be1d84c57a3f1f0c2b8de9a41", "state": "succeeded", ...}
"""
_METRICS = (
    "# TYPE meld_jobs gauge\n"
    'meld_jobs{state="queued"} 2.0\n'
    "# TYPE meld_jobs_finished_total counter\n"
    'meld_jobs_finished_total{outcome="succeeded"} 41.0\n'
)
_RETRY = {
    "Retry-After": {
        "description": "seconds after which it is worth asking again",
        "schema": {"type": "integer", "minimum": 1},
        "example": 30,
    }
}
_REQUEST_ID = {
    "description": "the request's, as the log has it: the client's own where it sends one of up "
    "to 64 letters, digits, dots, dashes and underscores",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"},
    "example": "9b4f6dc2a0e84c3f8d5d0b1c7a6e2f43",
}
_JOB = {
    "id": "0f2c9a6be1d84c57a3f1f0c2b8de9a41",
    "state": "queued",
    "file": "talk.mp4",
    "num_bytes": 1048576,
    "duration_s": 61.0,
    "created_at": "2026-11-26T12:00:00Z",
    "jobs_before": 1,
}
_RUNNING = {
    **_JOB,
    "state": "running",
    "jobs_before": 0,
    "progress": {"stage": "predicting", "done_s": 12.4, "total_s": 61.0},
}
ACCEPTED: dict[str, Any] = {
    "description": "Accepted: it is not lost from now on.",
    "headers": {
        "Location": {
            "description": "the address of the job",
            "schema": {"type": "string"},
            "example": f"/v1/jobs/{_JOB['id']}",
        },
        **_RETRY,
    },
    "content": {JSON: {"example": _JOB}},
}
OF_A_JOB: dict[str, Any] = {
    "description": "State and progress of the job.",
    "headers": _RETRY,
    "content": {JSON: {"example": _RUNNING}},
}
READ: dict[str, Any] = {
    "description": "Emotion and sentiment of each turn.",
    "content": {
        JSON: {
            "example": {
                "utterances": [
                    {
                        "id": "u0001",
                        "text": "Oh my God, he's here!",
                        "speaker": "Rachel",
                        "emotion": {"label": "surprise", "confidence": 0.81},
                        "sentiment": {"label": "positive", "confidence": 0.74},
                    }
                ],
                "notice": "Emotions were estimated by a model and may be wrong. ...",
            }
        }
    },
}
_ANY_MEDIA = {kind: {"schema": _BINARY} for kind in ("video/*", "audio/*")}
_CONTENT_RANGE = {
    "description": "which bytes of how many; * for which where there are none such, and absent "
    "where several ranges are sent as multipart/byteranges",
    "schema": {"type": "string"},
}
_SOME_BYTES: dict[str, Any] = {
    "description": "A range of it.",
    "headers": {"Content-Range": {**_CONTENT_RANGE, "example": "bytes 0-1023/81920"}},
}
_SEVERAL = {"multipart/byteranges": {"schema": _BINARY}}
MEDIA: dict[int | str, dict[str, Any]] = {
    200: {"description": "The media.", "content": _ANY_MEDIA},
    206: {**_SOME_BYTES, "content": {**_ANY_MEDIA, **_SEVERAL}},
}
TIMELINE = {JSON: {"schema": {"$ref": f"{_REF}Timeline"}}}
IN_EVERY_FORMAT: dict[str, Any] = {
    **TIMELINE,
    "text/csv": {"schema": {"type": "string"}, "example": "id,start_ms,end_ms,...\nu0001,0,1000\n"},
    "application/x-subrip": {"schema": {"type": "string"}, "example": _SRT},
    "text/vtt": {"schema": {"type": "string"}, "example": f"WEBVTT\n\n{_SRT}"},
    "text/html": {"schema": {"type": "string"}, "example": "<!doctype html>..."},
}
RESULT: dict[int | str, dict[str, Any]] = {
    200: {"description": "In the format that was asked for.", "content": IN_EVERY_FORMAT},
    206: {**_SOME_BYTES, "content": {**IN_EVERY_FORMAT, **_SEVERAL}},
}
EVENTS = {"text/event-stream": {"schema": {"type": "string"}, "example": _EVENTS}}
METRICS = {"text/plain": {"schema": {"type": "string"}, "example": _METRICS}}


# By status: an example's code and detail, and what it says.
_PROBLEMS: Mapping[int, tuple[str, str, str]] = {
    400: ("usage_error", "start is a number of seconds, not soon", "Asked for in a wrong way."),
    401: ("unauthorised", "the key is missing or wrong", "The key is missing or wrong."),
    403: (
        "wrong_origin",
        "a page of https://example.org may not send anything",
        "A page of another site asks.",
    ),
    404: ("no_such_job", "there is no such job, or it was erased", "There is no such job."),
    408: ("too_slow", "nothing came for 20 s", "The body does not come, or too slowly."),
    409: ("not_finished", "the job is running; ask again later", "The job has not ended."),
    413: (
        "too_large",
        "talk.mp4 lasts 20000 s; 14400 s are the most",
        "The body is too large, or the media is beyond a ceiling.",
    ),
    415: ("wrong_kind", "text/html: send video/*, audio/*, ...", "The body is of another kind."),
    416: ("wrong_range", "Range: the file has 81920 bytes", "The file has no such range."),
    422: (
        "input_error",
        "talk.mp4: no media file that can be read",
        "The media or the words cannot be used.",
    ),
    500: ("storage_error", "cannot write the job", "The server's side failed."),
    503: ("busy", "16 jobs are waiting already; try again later", "No more is taken on now."),
    507: ("disk_full", "there is no room for 1048576 bytes", "The server's disk is full."),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that are problems: those that are likely of an address, and any other."""
    return {
        **{status: {"model": Problem, "description": _PROBLEMS[status][2]} for status in statuses},
        "default": {"model": Problem, "description": "Any other problem."},
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        described = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=_DESCRIPTION,
            routes=app.routes,
            tags=[
                {"name": "jobs", "description": "Media of any length, which is waited for."},
                {"name": "at once", "description": "Short clips, and words alone."},
                {"name": "live", "description": "Who speaks now: a WebSocket, /v1/live."},
                {"name": "the service", "description": "What it is, and how it is."},
            ],
        )
        components = described["components"]
        components["schemas"].update(_timeline_schemas())
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "the key of the service"},
            "session": {
                "type": "apiKey",
                "in": "cookie",
                "name": "meld-session",
                "description": "as POST /v1/session sets it",
            },
        }
        for path, operation in _operations(described):
            if path == "/metrics" or (path.startswith("/v1/") and path != "/v1/session"):
                operation["security"] = [{"key": []}, {"session": []}, {}]  # {}: there is no key
            for status, answer in operation["responses"].items():
                _complete(status, answer)
        app.openapi_schema = described
    return app.openapi_schema


def _operations(described: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in described["paths"].items():
        for operation in item.values():
            yield path, operation


def _complete(status: str, answer: dict[str, Any]) -> None:
    answer.setdefault("headers", {})["X-Request-Id"] = _REQUEST_ID
    schema = {"$ref": f"{_REF}{Problem.__name__}"}
    # FastAPI describes it as of the type that the address answers with when all is well.
    if all(each.get("schema") != schema for each in answer.get("content", {}).values()):
        return
    problem: dict[str, Any] = {"schema": schema}
    if status.isdecimal():
        code, detail, _ = _PROBLEMS[int(status)]
        problem["example"] = make_problem(int(status), code, detail)
    if status in ("409", "503"):
        answer["headers"].update(_RETRY)
    if status == "416":
        answer["headers"]["Content-Range"] = {**_CONTENT_RANGE, "example": "bytes */81920"}
    answer["content"] = {MEDIA_TYPE: problem}


def _timeline_schemas() -> Iterator[tuple[str, Any]]:
    """The timeline's own schema and its parts, as components."""
    text = resources.files("fusion.inference").joinpath("timeline.schema.json").read_text("utf-8")
    schema = json.loads(text.replace("#/$defs/", f"{_REF}Timeline."))
    parts = schema.pop("$defs")
    del schema["$schema"]
    yield "Timeline", schema
    yield from ((f"Timeline.{name}", part) for name, part in parts.items())
