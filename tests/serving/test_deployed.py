"""What those who run the service for others ask of it: SageMaker's addresses, and a probe."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.errors import UsageError
from tests.serving.conftest import HOME

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from serving.serve import Service

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytestmark = pytest.mark.heavy


@pytest.fixture
def sagemaker(service: "Service") -> Iterator["TestClient"]:
    from starlette.testclient import TestClient

    from serving.sagemaker import SageMaker

    with TestClient(SageMaker(service.app), base_url=HOME) as client:
        yield client


def test_sagemaker_asks_whether_it_is_there_and_gets_a_timeline(
    sagemaker: "TestClient", client: "TestClient", clip: Path
) -> None:
    assert sagemaker.get("/ping").status_code == 200
    words = {"text": "I am so happy for you!"}
    kind = {"Content-Type": "video/mp4"}
    answers = [
        each.post(path, content=clip.read_bytes(), headers=kind, params=words)
        for each, path in ((sagemaker, "/invocations"), (client, "/v1/predict"))
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    invoked, predicted = (answer.json() for answer in answers)
    assert invoked["utterances"] == predicted["utterances"] != []


def test_its_limits_hold_under_sagemakers_name_too(sagemaker: "TestClient") -> None:
    answer = sagemaker.post("/invocations", content=b"words", headers={"Content-Type": "text/css"})
    assert answer.status_code == 415
    large = {"Content-Type": "video/mp4", "Content-Length": str(2**40)}
    assert sagemaker.post("/invocations", content=b"", headers=large).status_code == 413


def test_a_service_without_sagemaker_has_no_such_addresses(client: "TestClient") -> None:
    assert client.get("/ping").status_code == 404
    assert client.post("/invocations", content=b"").status_code == 404


def test_a_key_beside_sagemaker_is_refused(tmp_path: Path) -> None:
    from serving.config import ServeConfig

    with pytest.raises(UsageError, match="SageMaker sends no key"):
        ServeConfig(key_file=tmp_path / "key", sagemaker=True)


def test_a_probe_asks_the_port_that_the_service_really_has(address: str, tmp_path: Path) -> None:
    from serving.probe import announced, probe

    with announced(tmp_path, address):
        assert probe(tmp_path) is None
    assert probe(tmp_path) == f"no service uses {tmp_path} (No such file or directory)"


class _Draining(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def test_a_probe_says_why_a_service_is_not_ready(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.probe import announced, main

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # nothing of this machine goes there
    server = HTTPServer(("127.0.0.1", 0), _Draining)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    with announced(tmp_path, address):
        assert main([str(tmp_path)]) == 1
        assert capsys.readouterr().err == f"{address} does not take work on (status 503)\n"
        server.shutdown()
        thread.join()
        server.server_close()
        assert main([str(tmp_path)]) == 1
    assert "does not answer" in capsys.readouterr().err
    assert main([]) == 1
    assert "python -m serving.probe FOLDER" in capsys.readouterr().err
