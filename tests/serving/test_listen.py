"""`meld listen`, and uploads that are cut as a live session cuts."""

import json
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import Meld
from tests.serving.answers import problem, wait_for
from tests.serving.conftest import SRT

if TYPE_CHECKING:
    from starlette.testclient import TestClient

pytestmark = pytest.mark.heavy  # its worker is a process
Send = Callable[..., Any]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a browser was asked to open."""
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda page: not asked.append(page))
    return asked


@pytest.mark.parametrize("end", ["", "/", "/live"])
def test_it_opens_the_page_of_a_service_that_runs(
    meld: Meld, address: str, opened: list[str], end: str
) -> None:
    finished = meld("listen", "--service", f"{address}{end}")
    assert finished.status == 0
    assert opened == [f"{address}/live"]
    assert "is opened in a browser" in finished.err


def test_or_says_where_it_is(meld: Meld, address: str, opened: list[str]) -> None:
    finished = meld("listen", "--service", address, "--no-browser", "--json")
    assert f"Open {address}/live in a browser" in finished.err
    assert finished.json == {"page": f"{address}/live"}
    assert opened == []


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--service", "localhost:8000"], 2, "an address, such as http://localhost:8000"),
        (["--service", "http://127.0.0.1:1"], 5, "no service answers there"),
        (["--service", "http://127.0.0.1:none"], 5, "no service answers there"),
        (["--service", "http://127.0.0.1:1", "--port", "9"], 2, "settings of its own"),
        (["--port", "99999"], 2, "0 to 65535"),
    ],
)
def test_what_cannot_be_opened_is_reported(
    meld: Meld, opened: list[str], options: list[str], status: int, told: str
) -> None:
    finished = meld("listen", *options)
    assert finished.status == status
    assert told in finished.err
    assert opened == []


def test_a_server_that_speaks_no_http_is_no_service(
    meld: Meld, opened: list[str], tmp_path: Path
) -> None:
    from serving.probe import announced, probe

    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(2**16)
                    connection.sendall(b"SSH-2.0-OpenSSH_9\r\n")

        threading.Thread(target=greet, daemon=True).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        finished = meld("listen", "--service", address)
        with announced(tmp_path, address):
            probed = probe(tmp_path)
    assert (finished.status, opened) == (5, [])
    assert f"{address}: no service answers there (SSH-2.0" in finished.err
    assert probed is not None
    assert "does not answer (SSH-2.0" in probed


def test_without_websockets_no_service_is_started_that_would_refuse_every_socket(
    meld: Meld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    monkeypatch.delitem(sys.modules, "serving.serve", raising=False)
    finished = meld("serve", "--check")
    assert finished.status == 2
    assert "websockets is not installed; get it with: pip install 'meld[serve]'" in finished.err


# ------------------------------------------------------------------------------------ uploads


def test_an_upload_can_be_cut_as_a_live_session_cuts(client: "TestClient", send: Send) -> None:
    for hearing, join_ms in (("prompt", 0), ("thorough", 2_000)):
        answer = send(hearing=hearing)
        job = wait_for(client, answer)
        assert job["state"] == "succeeded", job
        text = client.get(f"{answer.headers['Location']}/timeline").text
        settings = json.loads(text)["segmentation"]["speech"]["settings"]
        assert settings["join_ms"] == join_ms


@pytest.mark.parametrize(
    "options",
    [
        {"hearing": "soon"},
        {"hearing": "prompt", "text": "Hi"},
        {"hearing": "prompt", "subtitles": SRT},
    ],
)
def test_a_hearing_that_is_none_or_has_nothing_to_hear_is_refused(
    send: Send, options: dict[str, str]
) -> None:
    assert problem(send(**options)) == (400, "usage_error")
