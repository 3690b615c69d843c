"""A service with its real worker and the model that comes with this program, one for all tests."""

import faulthandler
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.media import tone, write_clip

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from starlette.types import ASGIApp

    from serving.admission import Admission
    from serving.dispatch import Dispatcher
    from serving.jobs import JobStore
    from serving.serve import Service

HOME = "http://localhost"
SRT = """\
1
00:00:00,000 --> 00:00:01,000
I am so happy for you!

2
00:00:01,000 --> 00:00:02,000
JOEY: Get out of here, now!
"""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Iterator["Service"]:
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    if "MELD_TEST_SERVICE" in os.environ:
        pytest.skip("it looks into a service of its own")
    from serving.config import Limits, ServeConfig
    from serving.serve import start_service

    config = ServeConfig(
        data_dir=tmp_path_factory.mktemp("serve"),
        limits=Limits(
            queued_jobs=3,
            max_bytes=2**20,
            max_media_s=60,
            predict_bytes=2**19,
            predict_media_s=3,
            drain_s=1,
        ),
    )
    with start_service(config) as started:
        yield started


@pytest.fixture(scope="session")
def client(request: pytest.FixtureRequest) -> Iterator["TestClient"]:
    """Asks the service above; or one that runs elsewhere with the same limits, whose address is in
    MELD_TEST_SERVICE (CONTRIBUTING.md)."""
    from starlette.testclient import TestClient

    elsewhere = os.environ.get("MELD_TEST_SERVICE")
    if elsewhere is not None:
        import httpx2

        with httpx2.Client(base_url=elsewhere, timeout=60) as client:
            yield client
        return
    with TestClient(request.getfixturevalue("service").app, base_url=HOME) as client:
        yield client


@pytest.fixture(scope="session")
def address(service: "Service") -> Iterator[str]:
    """The service behind a socket: "http://127.0.0.1:PORT"."""
    with behind_a_socket(service.app) as found:
        yield found


@contextmanager
def behind_a_socket(app: "ASGIApp", *, header_s: float = 30) -> Iterator[str]:
    import uvicorn

    from serving.connections import limited_protocol
    from serving.live import SOCKET_SETTINGS

    config = uvicorn.Config(
        app,
        http=limited_protocol(header_s=header_s, unread_s=30, min_bytes_per_s=16),
        lifespan="off",
        **SOCKET_SETTINGS,
        log_config=None,
        timeout_graceful_shutdown=2,  # as the service itself: a request that is held open ends
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        # Whatever a client of a test left behind is over by now, or something outlives its client.
        deadline = time.monotonic() + 10
        while (open_ones := list(server.server_state.tasks)) and time.monotonic() < deadline:
            time.sleep(0.05)
        server.should_exit = True
        thread.join(30)
        if thread.is_alive():
            faulthandler.dump_traceback()  # what it waits for
        assert not thread.is_alive()
        assert not open_ones


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of picture and sound."""
    path = tmp_path_factory.mktemp("media") / "talk.mp4"
    return write_clip(path, num_frames=50, sound=tone([440, 660]))


@pytest.fixture(scope="session")
def send(client: "TestClient", clip: Path) -> Callable[..., Any]:
    """Sends the clip as a form: send(text="...") or send(subtitles=SRT); the answer."""

    def post(*, subtitles: str | None = None, name: str = "talk.mp4", **options: str) -> Any:
        files = {"media": (name, clip.read_bytes(), "video/mp4")}
        if subtitles is not None:
            files["subtitles"] = ("talk.srt", subtitles.encode(), "application/x-subrip")
        return client.post("/v1/jobs", files=files, data=options)

    return post


@pytest.fixture
def store(tmp_path: Path) -> "JobStore":
    from serving.jobs import JobStore

    return JobStore(tmp_path)


@pytest.fixture
def start_dispatcher(
    store: "JobStore", monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., "Dispatcher"]]:
    """Its workers are each a `StandIn`: start_dispatcher(num_workers=2)."""
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from serving import dispatch
    from serving.config import Limits
    from tests.serving.stand_in import StandIn

    monkeypatch.setattr(dispatch, "WorkerProcess", StandIn)
    StandIn.plan, StandIn.worked_on = [], []
    StandIn.gate, StandIn.held = threading.Event(), threading.Event()
    StandIn.gate.set()
    started: list[Dispatcher] = []

    def start(*, num_workers: int = 1, **limits: Any) -> "Dispatcher":
        limits = {"queued_jobs": 2, "queued_media_s": 10, **limits}
        made = dispatch.Dispatcher(store, {}, Limits(**limits), num_workers=num_workers)
        started.append(made)
        made.start()
        return made

    yield start
    for each in started:
        each.stop(drain_s=0.1)


@pytest.fixture
def dispatcher(start_dispatcher: Callable[..., "Dispatcher"]) -> "Dispatcher":
    return start_dispatcher()


@pytest.fixture
def start_app(store: "JobStore", dispatcher: "Dispatcher") -> Callable[..., "Admission"]:
    """A service of this process alone: start_app(max_frames=9)."""
    from pipeline.decode.process import HERE
    from serving.admission import Keys
    from serving.app import create_app
    from serving.config import Limits, ServeConfig
    from serving.parts import Parts

    def start(**limits: Any) -> Any:
        config = ServeConfig(limits=Limits(**limits))
        return create_app(
            Parts(config=config, keys=Keys(None), store=store, dispatcher=dispatcher, decoder=HERE)
        )

    return start
