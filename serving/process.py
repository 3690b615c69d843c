"""The worker process as the server sees it; it ends with the server, however that ends."""

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.system.one_line import one_line
from pipeline.system.threads import ROUNDS_BESIDE_A_DECODER, wait_briefly
from serving.logs import Event
from serving.problems import rebuild_error

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[1]
_PROGRAM = ("-P", "-m", "serving.work")  # what Python runs
_MOST_LINE_BYTES = 2000  # of what a worker writes to stderr; what is longer is several lines

Message = Mapping[str, Any]


class WorkerEnded(Exception):
    """The process is gone; says how."""


@dataclass(frozen=True, kw_only=True)
class WorkerReady:
    """model: as `GET /v1/model` tells it; notice: that emotions are recognised, and the law

    reads_words: whether it does anything with words alone
    needs_words: whether it does nothing without
    """

    model: Mapping[str, Any]
    notice: str
    reads_words: bool
    needs_words: bool = False


class WorkerProcess:
    """Started at once; what it says comes by `next`, and what it was asked beside its job by a
    future."""

    def __init__(
        self,
        choice: Mapping[str, Any],
        on_end: Callable[[], None] = lambda: None,
        *,
        num_threads: int,
    ) -> None:
        """
        choice: the settings of a `WorkChoice`
        on_end: called from another thread when the process has ended
        num_threads: for its computing, and for that of the recogniser that it starts
        """
        self._on_end = on_end
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self._lock = threading.Lock()
        self._asked: dict[int, Future[Any]] = {}  # words and live requests that wait
        self._num_asked = 0
        self._has_ended = False
        paths = os.pathsep.join([str(_ROOT), *(entry for entry in sys.path if entry)])
        # A terminal's Ctrl-C and a service manager's SIGTERM reach every process, and it is the
        # server that decides what they mean.
        deaf = {signal.SIGINT, signal.SIGTERM}
        wait_briefly(ROUNDS_BESIDE_A_DECODER)  # where no command did, as behind Ray Serve
        before = signal.pthread_sigmask(signal.SIG_BLOCK, deaf)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *_PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Libraries read it when they are loaded, and hand it on to their processes.
                env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(num_threads)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for target in (self._listen, self._log_errors):
            threading.Thread(target=target, daemon=True).start()
        self._send(choice)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    def await_ready(self, timeout_s: float) -> WorkerReady:
        """Raises MeldError where the model cannot be loaded, WorkerEnded where the process does
        not start."""
        message = self.next(timeout_s)
        if message["is"] == "refused":
            self.end()
            raise rebuild_error(message["code"], message["detail"])
        return WorkerReady(
            model=message["model"],
            notice=message["notice"],
            reads_words=message["reads_words"],
            needs_words=message["needs_words"],
        )

    def begin(self, folder: Path) -> None:
        self._send({"do": "job", "folder": str(folder)})

    def cancel(self, folder: Path) -> None:
        self._send({"do": "cancel", "folder": str(folder)})

    def read_words(self, turns: Sequence[Mapping[str, Any]]) -> "Future[list[dict[str, Any]]]":
        """Utterances; the future raises MeldError, or WorkerEnded. One that is cancelled costs no
        more work."""
        return self._ask({"do": "words", "turns": list(turns)})

    def ask_live(self, request: Mapping[str, Any]) -> "Future[Any]":
        """request: as `LiveWork` takes it. The future has its answer, or raises MeldError, or
        WorkerEnded. One that is cancelled before the worker comes to it costs no work."""
        return self._ask({"do": "live", **request})

    def _ask(self, request: Mapping[str, Any]) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._lock:
            if self._has_ended:
                future.set_exception(WorkerEnded(self._how()))
                return future
            self._num_asked += 1
            number = self._num_asked
            self._asked[number] = future
        self._send({"number": number, **request})
        future.add_done_callback(lambda done: self._forget(number) if done.cancelled() else None)
        return future

    def _forget(self, number: int) -> None:
        with self._lock:
            was_asked = self._asked.pop(number, None) is not None
        if was_asked:
            self._send({"do": "forget", "number": number})

    def next(self, timeout_s: float) -> Message:
        """What it says of loading or of its job. Raises WorkerEnded, also where it says nothing for
        so long: it is ended then."""
        try:
            message = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            self.end()
            raise WorkerEnded(f"silent for {timeout_s:.0f} s") from None
        if message is None:
            self._messages.put(None)
            raise WorkerEnded(self._how())
        return message

    def end(self) -> None:
        """At once."""
        self._process.kill()
        self._process.wait()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with self._lock, suppress(BrokenPipeError):  # `next` tells that it has ended
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith(b"\n"):  # it ended in the middle of a word
                break
            message = json.loads(line)
            if message["is"] in ("words", "live"):
                self._answer(message)
            else:
                self._messages.put(message)
        self._process.wait()
        with self._lock:
            self._has_ended = True
            waiting = list(self._asked.values())
            self._asked.clear()
        for future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(WorkerEnded(self._how()))
        self._messages.put(None)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._on_end()

    def _log_errors(self) -> None:
        """Reads all that the worker and its own processes write to stderr, as a full pipe would
        hold them up; stderr of this process may be one that nobody reads."""
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            while line := errors.readline(_MOST_LINE_BYTES):
                text = one_line(line.decode(errors="replace").strip("\r\n"))
                log.warning(Event("worker_said", worker=self.pid, text=text))

    def _answer(self, message: Message) -> None:
        with self._lock:
            future = self._asked.pop(message["number"], None)
        if future is None or not future.set_running_or_notify_cancel():
            return  # nobody waits for it any more
        if "problem" in message:
            problem = message["problem"]
            future.set_exception(rebuild_error(problem["code"], problem["detail"]))
        else:
            future.set_result(message["utterances" if message["is"] == "words" else "answer"])

    def _how(self) -> str:
        status = self._process.wait()
        return signal.Signals(-status).name if status < 0 else f"exit status {status}"
