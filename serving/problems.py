"""Errors as HTTP answers: RFC 9457 problems, derived from meld's tree of errors.

MeldError                 500
├── UsageError            400
│   ├── Unauthorised      401
│   ├── WrongOrigin       403
│   ├── NoSuchJob         404
│   ├── NotFinished       409
│   ├── TooSlow           408
│   └── WrongRange        416
├── InputError            422
│   ├── TooLarge          413
│   └── WrongKind         415
├── StorageError          500
│   └── DiskFull          507
├── Busy                  503   with Retry-After
└── MismatchError         500
"""

import errno
import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from pipeline.errors import InputError, MeldError, StorageError, UsageError
from pipeline.system.one_line import one_line

MEDIA_TYPE = "application/problem+json"
_OPTION = re.compile(
    r"--transcript FILE, | or --transcript FILE"
    r"|--(subtitles|text|no-text|language|start|end)\b(?: FILE| WORDS| \"WORDS\")?"
)


class Unauthorised(UsageError):
    pass


class WrongOrigin(UsageError):
    pass


class NoSuchJob(UsageError):
    pass


class NotFinished(UsageError):
    """retry_after_s: when it is worth asking again"""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooSlow(UsageError):
    pass


class WrongRange(UsageError):
    pass


class TooLarge(InputError):
    pass


class WrongKind(InputError):
    pass


class DiskFull(StorageError):
    pass


def is_of_full_disk(error: BaseException | None) -> bool:
    """Whether that is what it comes from; a quota is a disk too."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is not None and error.errno in (errno.ENOSPC, errno.EDQUOT)


class Busy(MeldError):
    """retry_after_s: when it is worth asking again"""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


# The nearest class in an error's ancestry counts.
_STATUS: Mapping[type[MeldError], int] = {
    MeldError: 500,
    UsageError: 400,
    Unauthorised: 401,
    WrongOrigin: 403,
    NoSuchJob: 404,
    NotFinished: 409,
    TooSlow: 408,
    WrongRange: 416,
    InputError: 422,
    TooLarge: 413,
    WrongKind: 415,
    DiskFull: 507,
    Busy: 503,
}


def code_of(kind: type[MeldError]) -> str:
    """ "InputError" becomes "input_error"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


def status_of(error: MeldError) -> int:
    return next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)


def in_service(message: str) -> str:
    """What is written for the command line, as clients of the service can follow it: "--no-text" is
    `no_text` of an upload. A transcript it takes from nobody."""
    return _OPTION.sub(lambda match: (match[1] or "").replace("-", "_"), message)


def describe_problem(error: MeldError) -> dict[str, Any]:
    """The body of an answer: type, title, status, detail, and our own code."""
    return make_problem(status_of(error), code_of(type(error)), str(error))


def make_problem(status: int, code: str, detail: str) -> dict[str, Any]:
    return {
        "type": f"urn:meld:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": one_line(detail),
        "code": code,
    }


def headers_of(error: MeldError) -> dict[str, str]:
    if isinstance(error, Busy | NotFinished):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, Unauthorised):
        return {"WWW-Authenticate": 'Bearer realm="meld"'}
    if isinstance(error, TooLarge | TooSlow):  # what is still to come of the body is not read
        return {"Connection": "close"}
    return {}


def rebuild_error(code: str, detail: str) -> MeldError:
    """An error of another process, as it was raised there."""
    kinds = {code_of(kind): kind for kind in _tree(MeldError)}
    return kinds.get(code, MeldError)(detail)


def _tree(kind: type[MeldError]) -> Iterator[type[MeldError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _tree(below)
