"""`meld download` from an address: fetched, checked, kept, killed; server and kills are real."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.layout import MEDIA_FOLDERS
from pipeline.errors import InputError
from tests.conftest import ROOT, Meld
from tests.pipeline.download.imitation import Packed, get, left_behind, tree


class SlowServer:
    """Knows ranges, and takes about a second for the imitation."""

    def __init__(self, content: bytes) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                start = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                if start:
                    told = f"bytes {start}-{len(content) - 1}/{len(content)}"
                    self.send_header("Content-Range", told)
                self.end_headers()
                try:
                    for at in range(start, len(content), 32768):
                        self.wfile.write(content[at : at + 32768])
                        time.sleep(0.01)
                except ConnectionError:
                    pass  # the client was killed

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/MELD.Raw.tar.gz"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def address(packed: Packed) -> Iterator[str]:
    server = SlowServer(packed.path.read_bytes())
    yield server.url
    server.close()


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    """The settings of who asks once."""
    path = tmp_path / "impatient.toml"
    path.write_text("[patience]\nattempts = 1\n")
    return path


@pytest.mark.heavy
def test_the_command_fetches_checks_and_unpacks(
    packed: Packed, address: str, out: Path, meld: Meld
) -> None:
    command = ("download", "--out", out, "--url", address, "--sha256", packed.sha256)
    finished = meld(*command, "--json", "--keep-archive")
    assert finished.status == 0, finished.err
    assert finished.json["clips"] == {"train": 120, "dev": 12, "test": 37}
    assert finished.json["unpacked"]["corrected_cuts"] == 5
    assert finished.json["unpacked"]["apple_double_dropped"] == packed.apple_double
    archive = tree(out).pop("MELD.Raw.tar.gz")
    assert hashlib.sha256(archive).hexdigest() == packed.sha256
    assert {name: each for name, each in tree(out).items() if name != "MELD.Raw.tar.gz"} == (
        packed.files
    )
    assert json.loads((out / "meld.json").read_text())["origin"] == address
    again = meld(*command)
    assert again.status == 0
    assert "train: 120 clips, already complete" in again.out


@pytest.mark.heavy
def test_the_checksum_may_be_written_in_capitals(packed: Packed, address: str, out: Path) -> None:
    get(out, url=address, sha256=packed.sha256.upper())
    assert tree(out) == packed.files


@pytest.mark.heavy
def test_keys_in_an_address_are_neither_kept_nor_shown(
    packed: Packed, address: str, out: Path, impatient: Path, meld: Meld
) -> None:
    url = address.replace("http://", "http://bob:hunter2@") + "?token=hunter2"
    finished = meld("download", "--out", out, "--url", url, "--sha256", packed.sha256)
    assert finished.status == 0, finished.err
    dead = "http://bob:hunter2@127.0.0.1:9/x?token=hunter2"
    again = ("--out", out.parent / "b", "--sha256", packed.sha256, "--config", impatient)
    failed = meld("download", *again, "--url", dead)
    assert "http://127.0.0.1:9/x: gave up" in failed.err
    assert "hunter2" not in finished.out + finished.err + failed.err
    written = [path.read_text() for path in (out / "meld.json", *out.glob(".download/*"))]
    assert json.loads(written[0])["origin"] == address
    assert not any("hunter2" in text for text in written)


@pytest.mark.heavy
@pytest.mark.parametrize("dies_at", ["_write_receipt", "_publish_verified"])
def test_an_archive_to_be_kept_is_kept_even_if_the_run_dies_late(
    packed: Packed, address: str, out: Path, monkeypatch: pytest.MonkeyPatch, dies_at: str
) -> None:
    def die(*_: Any) -> None:
        if (out / ".download/unpacked").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"pipeline.download.download.{dies_at}", die)
        with pytest.raises(KeyboardInterrupt):
            get(out, url=address, sha256=packed.sha256, keep_archive=True)
    get(out, url=address, sha256=packed.sha256, keep_archive=True)
    assert (out / "MELD.Raw.tar.gz").read_bytes() == packed.path.read_bytes()


def test_an_archive_that_was_kept_is_not_fetched_again(packed: Packed, out: Path) -> None:
    out.mkdir()
    shutil.copy(packed.path, out / "MELD.Raw.tar.gz")
    get(out, sha256=packed.sha256)
    assert set(tree(out)) == {*packed.files, "MELD.Raw.tar.gz"}


def test_a_kept_archive_that_is_damaged_is_reported_not_taken(packed: Packed, out: Path) -> None:
    out.mkdir()
    (out / "MELD.Raw.tar.gz").write_bytes(packed.path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"MELD\.Raw\.tar\.gz: damaged: .* get it anew"):
        get(out)


@pytest.mark.heavy
def test_an_address_that_is_named_is_asked_whatever_was_kept(
    packed: Packed, address: str, out: Path
) -> None:
    out.mkdir()
    (out / "MELD.Raw.tar.gz").write_bytes(b"")
    get(out, url=address, sha256=packed.sha256)
    assert set(tree(out)) == {*packed.files, "MELD.Raw.tar.gz"}


def test_a_failed_fetch_has_status_5_and_one_line(
    packed: Packed, out: Path, impatient: Path, meld: Meld
) -> None:
    command = ("download", "--out", out, "--sha256", packed.sha256, "--config", impatient)
    finished = meld(*command, "--url", "http://127.0.0.1:9/x")
    assert finished.status == 5
    assert finished.err.splitlines()[-1].startswith(
        "meld: error: the archive could not be downloaded"
    )


@pytest.mark.heavy
@pytest.mark.parametrize("kills_wanted", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_many_points_it_ends_with_the_same_files(
    packed: Packed, address: str, tmp_path: Path, kills_wanted: int
) -> None:
    """Half while bytes arrive, half while clips are unpacked; then nothing is disturbed."""
    rng = random.Random(20261122)
    size = packed.path.stat().st_size
    for number in range(kills_wanted // 4):
        out = tmp_path / f"data{number}"
        arrived = sorted(rng.sample(range(1, size - 65536), 2))
        placed = sorted(rng.sample(range(1, len(packed.files) - 20), 2))
        for least in arrived:
            kill_when(out, packed, address, fetched, least)
        for least in placed:
            kill_when(out, packed, address, unpacked, least)
        finished = start(out, packed, address)
        assert finished.wait(120) == 0
        assert tree(out) == packed.files
        assert left_behind(out) == []


def fetched(out: Path) -> int:
    return sum(path.stat().st_size for path in (out / ".download").glob("*.part"))


def unpacked(out: Path) -> int:
    stage = out / ".download/unpacked"
    return sum(len(list((stage / folder).glob("*.mp4"))) for folder in MEDIA_FOLDERS.values())


def start(out: Path, packed: Packed, address: str) -> "subprocess.Popen[bytes]":
    words = ["download", "--out", str(out), "--url", address, "--sha256", packed.sha256]
    return subprocess.Popen([sys.executable, "-m", "cli", *words], cwd=ROOT)


def kill_when(
    out: Path, packed: Packed, address: str, count: Callable[[Path], int], least: int
) -> None:
    """Kills a run that has come so far. One that was faster begins again from nothing."""
    for _ in range(20):
        running = start(out, packed, address)
        deadline = time.monotonic() + 300
        while running.poll() is None and count(out) < least:
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        running.send_signal(signal.SIGKILL)
        if running.wait() == -signal.SIGKILL:
            return
        assert running.returncode == 0
        shutil.rmtree(out)
    raise AssertionError("no run could be killed in time")
