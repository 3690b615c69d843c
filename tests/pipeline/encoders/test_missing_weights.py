"""Where weights are looked for, and what is said where they are not to be had."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.encoders import weights
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.errors import UsageError, WeightsMissing
from tests.conftest import ROOT
from tests.pipeline.encoders.inputs import one_line
from tests.pipeline.encoders.video_weights import R3D_18, flat


@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", ""])
def test_the_folder_of_torch_hub_is_known_without_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    theirs = Path(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.delitem(sys.modules, "torch")
    assert weights._torch_hub_folder() == theirs


@pytest.mark.heavy
def test_a_text_encoder_that_is_not_to_be_had_says_where_and_what_to_do(tmp_path: Path) -> None:
    """A port where nothing listens stands for being without a network."""
    script = (
        "from pathlib import Path\n"
        "from pipeline.encoders.choice import EncoderRequest, choose_encoder\n"
        "from pipeline.errors import WeightsMissing\n"
        f"request = EncoderRequest(weights_dir=Path({str(tmp_path)!r}))\n"
        "try:\n"
        "    choose_encoder('text', request, 'float32')\n"
        "except WeightsMissing as error:\n"
        "    print(error)\n"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    finished = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.stdout.count("\n") == 1, finished.stderr
    for part in (
        "bert-base-uncased",
        str(tmp_path / "bert-base-uncased"),
        "--weights-dir",
        "minilm",
    ):
        assert part in finished.stdout


@pytest.mark.heavy
@pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])
def test_video_weights_that_are_not_to_be_had_say_where_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """A server that takes the connection and says nothing must not be waited for for ever."""
    monkeypatch.setattr(weights, "TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if silent else 9
        url = f"http://127.0.0.1:{port}/{R3D_18}"
        monkeypatch.setitem(weights.VIDEO_WEIGHTS, "r3d_18", url)
        began = time.monotonic()
        with pytest.raises(WeightsMissing) as caught:
            choose_encoder("video", EncoderRequest(weights_dir=tmp_path), "float32")
    assert time.monotonic() - began < 60
    one_line(caught, "r3d_18", tmp_path / R3D_18, url, "--weights-dir", "--weights video=random")


def test_a_weights_folder_without_the_video_weights_hides_none_of_torch_hubs(
    video_state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cached = tmp_path / "torch" / "hub" / "checkpoints" / R3D_18
    cached.parent.mkdir(parents=True)
    torch.save(flat(video_state), cached)
    texts = tmp_path / "texts"
    texts.mkdir()
    request = EncoderRequest(weights_dir=texts)
    assert choose_encoder("video", request, "float32").path == cached
    shutil.copy(cached, texts)
    assert choose_encoder("video", request, "float32").path == texts / R3D_18


def test_video_weights_are_never_downloaded_into_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, model_dir: str, **_: object) -> None:
        Path(model_dir).mkdir(parents=True)
        (Path(model_dir) / R3D_18).write_bytes(b"weights")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "_check_answers", lambda url: None)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", download)
    texts = tmp_path / "texts"
    texts.mkdir()
    path = weights.find_video_weights("r3d_18", texts)
    assert path == tmp_path / "torch" / "hub" / "checkpoints" / R3D_18
    assert list(texts.iterdir()) == []


def test_unknown_encoders_are_usage_errors_that_name_the_known() -> None:
    with pytest.raises(UsageError) as caught:
        choose_encoder("video", EncoderRequest(video="r3d_19"), "float32")
    one_line(caught, "r3d_19", "r2plus1d_18")
    with pytest.raises(UsageError) as caught:
        choose_encoder("audio", EncoderRequest(audio="cochlea"), "float32")
    one_line(caught, "cochlea", "spectrogram")
