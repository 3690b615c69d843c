"""The life of the service, from its settings to its end.

settings -> the folder of jobs, locked -> a worker that has loaded the model -> the addresses
         -> a socket -> SIGTERM -> what runs may finish, what waits is kept
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
import websockets  # noqa: F401 (without it uvicorn refuses every socket, and only its log tells)
from starlette.types import ASGIApp

from pipeline.decode.process import DecoderProcess
from pipeline.errors import InputError, MeldError, StorageError
from pipeline.system.allocator import map_large_blocks
from pipeline.system.locks import hold
from pipeline.system.resources import share_cores
from serving.admission import Keys
from serving.app import create_app
from serving.config import ServeConfig
from serving.connections import limited_protocol
from serving.dispatch import SECONDS_TO_LOAD, Dispatcher
from serving.jobs import JobStore
from serving.live import SOCKET_SETTINGS
from serving.parts import Parts
from serving.probe import announced
from serving.process import WorkerEnded, WorkerProcess, WorkerReady

log = logging.getLogger(__name__)

_SHORTEST_KEY = 16
_HOW_A_KEY_IS_MADE = (
    f"its first line is to be a key of {_SHORTEST_KEY} or more ASCII characters, such as "
    'python -c "import secrets; print(secrets.token_urlsafe())" prints'
)
# Uploads that are under way when the service is ended.
_SECONDS_FOR_REQUESTS = 5
_MOST_WAITING_CONNECTIONS = 512


@dataclass(frozen=True, kw_only=True)
class Service:
    """A service that works, without a socket."""

    app: ASGIApp
    dispatcher: Dispatcher
    store: JobStore
    ready: WorkerReady


@contextmanager
def start_service(config: ServeConfig) -> Iterator[Service]:
    """Takes up the jobs that earlier services left, and works on them until the block ends.

    Raises CacheBusy where another service uses the folder, InputError for a bad key file,
    StorageError, and what `ModelChoice.load` raises.
    """
    keys = Keys(None if config.key_file is None else read_key(config.key_file))
    with _hold_jobs(config.data_dir):
        store = JobStore(config.data_dir, shard=config.shard, num_shards=config.num_shards)
        dispatcher = Dispatcher(
            store, _work_choice(config), config.limits, num_workers=config.workers
        )
        try:
            with DecoderProcess() as decoder:
                ready = dispatcher.start()
                parts = Parts(
                    config=config, keys=keys, store=store, dispatcher=dispatcher, decoder=decoder
                )
                yield Service(
                    app=create_app(parts), dispatcher=dispatcher, store=store, ready=ready
                )
        finally:
            dispatcher.stop(drain_s=config.limits.drain_s)


def serve(config: ServeConfig, on_listening: Callable[[str, WorkerReady], None]) -> None:
    """Until SIGTERM or SIGINT.

    on_listening: is told the address, and what predicts

    Raises as `start_service`, and StorageError where the address cannot be listened on.
    """
    map_large_blocks()  # what of an upload is in memory: bodies come by up to 256 KiB
    with _bind(config) as listener, start_service(config) as service:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        server = _Server(
            uvicorn.Config(
                service.app,
                http=limited_protocol(
                    header_s=config.limits.header_s,
                    unread_s=config.limits.unread_s,
                    min_bytes_per_s=config.limits.min_bytes_per_s,
                ),
                **SOCKET_SETTINGS,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_SECONDS_FOR_REQUESTS,
                backlog=_MOST_WAITING_CONNECTIONS,
            ),
            service.dispatcher,
        )
        listener.listen(_MOST_WAITING_CONNECTIONS)
        address = f"http://{shown}:{port}"
        with announced(config.data_dir, address):
            on_listening(address, service.ready)
            asyncio.run(server.serve(sockets=[listener]))


def check(config: ServeConfig) -> WorkerReady:
    """Loads all that a service needs, lets the model read a sentence, and ends.

    Raises as `serve`.
    """
    if config.key_file is not None:
        read_key(config.key_file)
    with _bind(config), _hold_jobs(config.data_dir):
        JobStore(config.data_dir)
        worker = WorkerProcess(_work_choice(config), num_threads=share_cores(config.workers))
        try:
            ready = worker.await_ready(SECONDS_TO_LOAD)
            if ready.reads_words:
                worker.read_words([{"text": "This is a test."}]).result(SECONDS_TO_LOAD)
        except WorkerEnded as error:
            raise MeldError(f"the worker does not start ({error})") from error
        finally:
            worker.end()
    return ready


def _hold_jobs(folder: Path) -> AbstractContextManager[None]:
    """Only one service may use a folder. Raises CacheBusy, StorageError."""
    what = f"{folder}, the folder of jobs,"
    return hold(folder / "lock", what, "end that service, or name another --data-dir")


def read_key(file: Path) -> str:
    """The first line. Raises InputError, StorageError."""
    try:
        key = file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: no UTF-8; its first line is to be the key") from error
    except OSError as error:
        raise StorageError(
            f"cannot read {file}: {error.strerror or error}; {_HOW_A_KEY_IS_MADE}"
        ) from error
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable():
        raise InputError(f"{file}: {_HOW_A_KEY_IS_MADE}")
    return key


def _work_choice(config: ServeConfig) -> dict[str, Any]:
    paths = {"run": config.model, "weights_dir": config.weights_dir, "encoders": config.encoders}
    named = {name: str(path) for name, path in paths.items() if path is not None}
    chosen = {name: getattr(config, name) for name in ("device", "precision", "runtime")}
    model = {**named, **chosen}
    return {"model": model, **({} if config.asr is None else {"asr": config.asr})}


def _bind(config: ServeConfig) -> socket.socket:
    """Before the model is loaded: that an address is taken is told at once. Raises StorageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise StorageError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror or error}; "
            "name another --port or --host"
        ) from error
    return listener


class _Server(uvicorn.Server):
    """Says at once that it is over: streams of events end then, and do not hold up the rest."""

    def __init__(self, config: uvicorn.Config, dispatcher: Dispatcher) -> None:
        super().__init__(config)
        self._dispatcher = dispatcher

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._dispatcher.drain()
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # what began in order ends in order, with status 0
