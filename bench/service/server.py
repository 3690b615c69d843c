"""Runs `meld serve` as a process and measures its resources."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_SECONDS_TO_LISTEN = 120.0
_SECONDS_TO_END = 60.0
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Resources of the server; worker_rss: memory of its worker and the worker's descendants"""

    cpu_s: float
    rss: int
    worker_rss: int
    descriptors: int
    connections: int
    threads: int


class Server:
    def __init__(self, process: "subprocess.Popen[bytes]", port: int, data: Path) -> None:
        self.process = process
        self.port = port
        self.data = data
        self._seen = psutil.Process(process.pid)

    def costs(self) -> Costs:
        worker = self.worker()
        family = [] if worker is None else [worker, *worker.children(recursive=True)]
        cpu = self._seen.cpu_times()
        return Costs(
            cpu_s=cpu.user + cpu.system,
            rss=self._seen.memory_info().rss,
            worker_rss=sum(_rss(each) for each in family),
            descriptors=self._seen.num_fds(),
            connections=len(self._seen.net_connections()),
            threads=self._seen.num_threads(),
        )

    def worker(self) -> psutil.Process | None:
        for child in self._seen.children():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "serving.work" in child.cmdline():
                    return child
        return None

    def kill_worker(self) -> bool:
        worker = self.worker()
        if worker is None:
            return False
        with suppress(psutil.NoSuchProcess):
            worker.kill()
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> tuple[int, float]:
        """Sends SIGTERM; returns the exit status and the seconds until exit."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(_SECONDS_TO_END)
        return status, time.perf_counter() - began

    def incoming(self) -> list[Path]:
        return list((self.data / "incoming").iterdir())

    def kept_files(self) -> list[Path]:
        """Files of jobs, of uploads, and of jobs that are being erased."""
        folders = [self.data / name for name in ("jobs", "incoming", "erased")]
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]

    async def settle(self, before: Costs, *, limit_s: float = 10) -> Costs:
        """Waits until connections and descriptors are as before, or the time is over; returns the
        costs."""
        deadline = time.monotonic() + limit_s
        while True:
            now = self.costs()
            is_quiet = now.descriptors <= before.descriptors and now.connections <= 1
            if (is_quiet and not self.incoming()) or time.monotonic() > deadline:
                return now
            await asyncio.sleep(0.1)


def _rss(process: psutil.Process) -> int:
    with suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0


@contextmanager
def serving(
    data: Path, *options: str, limits: Mapping[str, float] | None = None
) -> Iterator[Server]:
    """Runs the service until the block ends, and kills it if it is still running.

    limits: the settings of `Limits`

    Raises SystemExit if it does not listen.
    """
    data.mkdir(parents=True, exist_ok=True)
    settings = data.with_name(f"{data.name}.toml")
    lines = [f"{name} = {value}" for name, value in (limits or {}).items()]
    settings.write_text("\n".join(["[limits]", *lines, ""]))
    log = data.with_name(f"{data.name}.log")
    command = [sys.executable, "-m", "cli", "serve", "--port", "0"]
    command += ["--data-dir", str(data), "--config", str(settings), *options]
    with log.open("ab") as errors:
        place = errors.tell()
        process = subprocess.Popen(
            command, cwd=_ROOT, stderr=errors, env={**os.environ, "PYTHONPATH": str(_ROOT)}
        )
    try:
        yield Server(process, _await_port(process, log, place), data)
    finally:
        process.kill()
        process.wait()


def _await_port(process: "subprocess.Popen[bytes]", log: Path, place: int) -> int:
    deadline = time.monotonic() + _SECONDS_TO_LISTEN
    while process.poll() is None and time.monotonic() < deadline:
        told = re.search(rb"listens on http://\S+:(\d+);", log.read_bytes()[place:])
        if told is not None:
            return int(told[1])
        time.sleep(0.05)
    raise SystemExit(f"meld serve does not listen; see {log}")
