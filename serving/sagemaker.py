"""The two addresses that Amazon SageMaker asks of a container, answered by ours.

    GET  /ping         as /readyz
    POST /invocations  as /v1/predict: the media as the body, the timeline as the answer

Source: SageMaker's developer guide, "Use your own inference code with hosting services". Its own
front end asks for an account's signature, so the container itself is asked without a key.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

from serving.admission import PREDICT

_OURS = {"/ping": "/readyz", "/invocations": PREDICT}


class SageMaker:
    """Our service under SageMaker's names; its own names stay."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in _OURS:
            path = _OURS[scope["path"]]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)
