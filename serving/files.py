"""Files as answers."""

import os

from anyio import to_thread
from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from pipeline.errors import UsageError
from serving.admission import problem_response
from serving.problems import NoSuchJob, WrongRange


class RangedFile(FileResponse):
    """A file, whole or the ranges of it that are asked for. A range that it does not have is
    answered as every other problem is; the library would answer in plain text. So is a file whose
    job is erased between the question and the answer; to the library that would be a bug."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises NoSuchJob."""
        try:
            self.stat_result = await to_thread.run_sync(os.stat, self.path)
        except FileNotFoundError as error:
            raise NoSuchJob("there is no such job, or it was erased") from error
        self.set_stat_headers(self.stat_result)
        if _is_of_another_unit(Headers(scope=scope).get("range", "")):
            kept = [each for each in scope["headers"] if each[0] != b"range"]
            scope = {**scope, "headers": kept}
        refused: Message | None = None

        async def unless_refused(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                refused = message
            if refused is None:
                await send(message)

        await super().__call__(scope, receive, unless_refused)
        if refused is None:
            return
        if refused["status"] == 400:
            answer = problem_response(UsageError("Range: no range of bytes, as bytes=0-1023 is"))
        else:
            headers = dict(refused["headers"])
            size = headers[b"content-range"].decode()
            answer = problem_response(
                WrongRange(f"Range: the file has {size.removeprefix('bytes */')} bytes"),
                {"Content-Range": size},
            )
        await answer(scope, receive, send)


def _is_of_another_unit(asked: str) -> bool:
    """A range in a unit that a server does not know is none to it (RFC 9110, 14.2)."""
    unit, equals, _ = asked.partition("=")
    return bool(equals) and unit.strip().lower() != "bytes"
