"""Files as answers."""

from fastapi.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from pipeline.errors import UsageError
from serving.admission import problem_response
from serving.problems import WrongRange


class RangedFile(FileResponse):
    """A file, whole or the ranges of it that are asked for. A range that it does not have is
    answered as every other problem is; the library would answer in plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
