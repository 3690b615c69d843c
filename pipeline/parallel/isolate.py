"""Isolates the clips of a shard whose worker died: each clip runs in a process of its own.

    python -m pipeline.parallel.isolate < task > result

Starting a Ray worker takes a second of a core. Forking a small process that has already loaded the
decoder takes some milliseconds, and the fork starts with clean memory, so that no other clip can be
the cause if it dies. Such a process can fork safely because it has no threads; a Ray worker has.
"""

import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, NoReturn

from pipeline.decode.container import CORE_SECONDS_PER_PACKET, end_where_decoding_hangs
from pipeline.errors import MeldError
from pipeline.parallel.work import ClipWork, Result, ShardTask, WorkedShard
from pipeline.schema import LocatedClip, Modality
from pipeline.system.resources import memory, num_cores

MAX_ATTEMPTS = 2
# The limits on pixels, bytes and frames keep an intact clip far below this.
MAX_BYTES = 2 * 1024**3
# Attempts if the process itself is killed from outside, which no clip can cause.
_STARTS = 3
_POLL_S = 0.005
_PAGE_BYTES = resource.getpagesize()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends this process if the block takes longer or a decoder hangs in a packet: a hanging decoder
    reacts to nothing else."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with end_where_decoding_hangs():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def isolate_beside(request: bytes) -> WorkedShard[Any]:
    """Runs `isolate` in a new process, because this one may have threads.

    request: the pickled arguments of `isolate`

    Raises:
        MeldError: the process is killed again and again.
        Whatever the work raises.
    """
    command = [sys.executable, "-m", "pipeline.parallel.isolate"]
    # Ray passes the driver's path to its workers in its own way, not by PYTHONPATH.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    for _ in range(_STARTS):
        ended = subprocess.run(
            command,
            input=request,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            check=False,
        )
        if ended.returncode == 0:
            result: WorkedShard[Any] = _unwrap(ended.stdout)
            return result
    raise MeldError(
        f"the process that isolates single clips was killed {_STARTS} times "
        f"({_how_it_ended(-ended.returncode)}); is there enough memory?"
    )


def isolate(
    task: ShardTask, work: ClipWork[Result], max_at_once: int | None = None
) -> WorkedShard[Result]:
    """Does the work on every clip of a task, even if some clips kill their process.

    First, each clip runs with all modalities, in parallel with others; a clip that survives has its
    usual result. Then each modality of the clips that died runs separately, so that one of them
    may survive. A modality that dies is tried once more while nothing else runs, because another
    process may have been the cause.

    max_at_once: number of parallel processes; None takes one per core
    """
    cores = num_cores() if max_at_once is None else max_at_once
    num_at_once, max_bytes = _share_memory(cores, memory().free_bytes)
    processes = _Processes(task.clips, work, num_at_once, max_bytes)
    ends = [
        end
        for _, end in processes.run(
            [_Attempt(position, work.modalities) for position in range(len(task.clips))]
        )
    ]
    deaths = {position: end for position, end in enumerate(ends) if isinstance(end, _Death)}
    parts = _in_parts(processes, deaths, work.modalities)
    return WorkedShard(
        split=task.split,
        index=task.index,
        clips=tuple(
            _join(task.clips[position], work, parts, position) if isinstance(end, _Death) else end
            for position, end in enumerate(ends)
        ),
    )


def _share_memory(num_cores: int, free_bytes: int | None) -> tuple[int, int]:
    """The number of parallel processes, and the bytes that each may use before it is killed.

    Half of the free memory is left unused: when memory runs out, the system kills processes of its
    own choice, which may be the wrong ones.
    """
    if free_bytes is None:
        return num_cores, MAX_BYTES
    room = free_bytes // 2
    return max(1, min(num_cores, room // MAX_BYTES)), min(MAX_BYTES, room)


class _Attempt(NamedTuple):
    position: int
    modalities: tuple[Modality, ...]


@dataclass(frozen=True)
class _Death:
    """How a process without a result ended; is_ours: it was killed by a limit of time or memory."""

    how: str
    is_ours: bool = False


_Parts = dict[_Attempt, Any]  # of each modality of a clip: its result, or the last _Death


def _in_parts(
    processes: "_Processes", deaths: dict[int, _Death], modalities: Sequence[Modality]
) -> _Parts:
    """Runs every modality of the clips at these positions separately."""
    is_whole = len(modalities) == 1  # then the clip's death counts for its only modality
    num_deaths: dict[_Attempt, int] = {}
    parts: _Parts = {}
    for position, death in deaths.items():
        for modality in modalities:
            part = _Attempt(position, (modality,))
            # A clip that reached a limit would reach it again: it has one attempt fewer.
            num_deaths[part] = int(is_whole or death.is_ours)
            parts[part] = death
    if not is_whole:
        for part, end in processes.run(list(parts)):
            parts[part] = end
            num_deaths[part] += isinstance(end, _Death)
    for part, before in num_deaths.items():
        while isinstance(parts[part], _Death) and before < MAX_ATTEMPTS:
            [(_, parts[part])] = processes.run([part])
            before += 1
    return parts


def _join(clip: LocatedClip, work: ClipWork[Result], parts: _Parts, position: int) -> Result:
    results: list[Result] = []
    for modality in work.modalities:
        end = parts[_Attempt(position, (modality,))]
        if isinstance(end, _Death):
            what = "it" if len(work.modalities) == 1 else f"its {modality}"
            told = f"{work.what} {what} killed the worker {MAX_ATTEMPTS} times ({end.how})"
            results.append(work.give_up(clip, modality, told))
        else:
            results.append(end)
    return work.join(results)


# ---------------------------------------------------------------------------------- processes


class _Processes(Generic[Result]):
    """Forks a process for each attempt, supervises them, and reads their results."""

    def __init__(
        self,
        clips: Sequence[LocatedClip],
        work: ClipWork[Result],
        num_at_once: int,
        max_bytes: int,
    ) -> None:
        self._clips, self._work = clips, work
        self._num_at_once, self._max_bytes = num_at_once, max_bytes
        self._parent = os.getppid()
        # A fork starts with the pages of this process, which do not count as used by a clip.
        self._own_bytes = _resident_bytes(os.getpid())

    def run(self, attempts: Sequence[_Attempt]) -> list[tuple[_Attempt, Result | _Death]]:
        """The result of each attempt, in order. Raises what the work raises."""
        waiting = deque(attempts)
        running: dict[_Attempt, _Child] = {}
        ends: dict[_Attempt, Any] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._num_at_once:
                    attempt = waiting.popleft()
                    running[attempt] = self._start(attempt)
                for attempt in list(running):
                    if running[attempt].has_ended(self._max_bytes, self._own_bytes):
                        ends[attempt] = running.pop(attempt).read()
                if running:
                    time.sleep(_POLL_S)
                if os.getppid() != self._parent:  # nobody waits for the results any more
                    raise SystemExit(1)
        finally:
            for child in running.values():
                child.kill()
        return [(attempt, ends[attempt]) for attempt in attempts]

    def _start(self, attempt: _Attempt) -> "_Child":
        file = tempfile.TemporaryFile()  # noqa: SIM115 (the child outlives this)
        seconds = self._work.max_seconds
        pid = os.fork()
        if pid == 0:
            _work_and_exit(file, self._work, self._clips[attempt.position], attempt.modalities)
        return _Child(pid=pid, file=file, seconds=seconds)


def _work_and_exit(
    file: Any, work: ClipWork[Any], clip: LocatedClip, modalities: tuple[Modality, ...]
) -> NoReturn:
    """Runs in the child, and exits without the exit handlers of the parent."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dumps of expected crashes
        with time_limit(2 * work.max_seconds):  # in case the parent has died
            answer = _wrap(lambda: work.do(clip, modalities=modalities))
            file.write(answer)
            file.flush()
        status = 0
    finally:
        os._exit(status)


@dataclass
class _Child:
    """A child process that works on a clip, as its parent sees it."""

    pid: int
    file: Any
    seconds: float

    def __post_init__(self) -> None:
        self._deadline = time.monotonic() + self.seconds
        self._status: int | None = None
        self._stopped = ""

    def has_ended(self, max_bytes: int, own_bytes: int) -> bool:
        """Whether the process has ended; kills it if it has used too much time or memory.

        own_bytes: its memory when it started
        """
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > self._deadline:
                self._stop(f"stopped after {self.seconds:g} s")
            elif _resident_bytes(self.pid) - own_bytes > max_bytes:
                self._stop(f"stopped at {max_bytes / 2**30:.1f} GiB of memory")
        return self._status is not None

    def _stop(self, why: str) -> None:
        self.kill()
        self._stopped = why

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def read(self) -> Any:
        """The result or a _Death. Raises what the work raised."""
        with self.file:
            if self._stopped:
                return _Death(self._stopped, is_ours=True)
            if self._status == -signal.SIGPROF:
                how = f"stopped after {CORE_SECONDS_PER_PACKET:g} s of computing on one packet"
                return _Death(how, is_ours=True)
            if self._status:
                return _Death(_how_it_ended(self._status))
            self.file.seek(0)
            return _unwrap(self.file.read())


def _resident_bytes(pid: int) -> int:
    """0 if the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _how_it_ended(exit_code: int) -> str:
    """exit_code: minus the number of the signal, if a signal ended the process"""
    if exit_code >= 0:
        return f"exit status {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:  # a real-time signal
        return f"signal {-exit_code}"


# ------------------------------------------------------------------- what travels between them


def _wrap(work: Any) -> bytes:
    """Pickles what the work returns or raises. A SystemExit counts as a death."""
    try:
        answer: tuple[bool, Any] = (True, work())
    except Exception as error:  # noqa: BLE001 (raised again where it is unwrapped)
        answer = (False, error)
    try:
        content = pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL)
        if not answer[0]:
            pickle.loads(content)  # some exceptions can be pickled but not loaded again
        return content
    except Exception as error:  # noqa: BLE001 (pickle raises anything)
        return pickle.dumps(
            (False, RuntimeError(f"{answer[1]!r} cannot be sent between processes: {error}"))
        )


def _unwrap(content: bytes) -> Any:
    """Returns or raises what the work returned or raised."""
    is_result, value = pickle.loads(content)
    if not is_result:
        raise value
    return value


def main() -> None:
    """Reads the pickled arguments of `isolate` and writes what it returns or raises."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # the output of libraries must not mix with the result
    arguments = pickle.load(sys.stdin.buffer)
    answer = _wrap(lambda: isolate(*arguments))
    with os.fdopen(answer_to, "wb") as file:
        file.write(answer)


if __name__ == "__main__":
    main()
