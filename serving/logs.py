"""The log of a service: events with fields, and the request that a line belongs to.

Nothing that people say, no name that a client gave and no key is a field: jobs and requests stand
in it by their ids. Of an event, plain lines say `name field=value ...`; `JsonLines` makes objects.
"""

import json
import logging
import re
import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_WELL_FORMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass
class RequestNote:
    """What is noted of a request while it is answered.

    id:      the client's own (X-Request-Id), or one made here
    problem: the code of the problem that it was answered with
    """

    id: str
    problem: str | None = None


# Of the request that this task, or this thread for it, works on.
REQUEST: ContextVar[RequestNote | None] = ContextVar("request", default=None)


def choose_request_id(said: str | None) -> str:
    """A client's id is taken where it is short and plain: it comes back in headers and lines."""
    return said if said and _WELL_FORMED.fullmatch(said) else secrets.token_hex(16)


class Event:
    """What a log line says, for people and for machines: `log.info(Event("request", status=200))`.

    A field that is None is left out.
    """

    def __init__(self, name: str, **fields: Any) -> None:
        self.name = name
        self.fields: Mapping[str, Any] = {
            key: value for key, value in fields.items() if value is not None
        }

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.fields.items())])


class JsonLines(logging.Formatter):
    """One object a line: time (UTC), level, logger, event and its fields, and the request's id.

    What is logged by others is the event "message", with its text.
    """

    def format(self, record: logging.LogRecord) -> str:
        said = record.msg
        event = said if isinstance(said, Event) else Event("message", text=record.getMessage())
        note = REQUEST.get()
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event.name,
            **event.fields,
        }
        if note is not None:
            values["request"] = note.id
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        return json.dumps(values, default=str)
