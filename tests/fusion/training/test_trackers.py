"""What TensorBoard and Weights & Biases are told of a training."""

import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusion.training.history import read_history
from pipeline.cache.format import FeatureCache

Meld = Callable[..., Any]
_BLOCK = 1 << 15


@pytest.fixture
def train(
    meld: Meld, write_split: Callable[..., FeatureCache], features: Path, tmp_path: Path
) -> Callable[..., Any]:
    """Trains text and audio for three epochs into run/."""
    for split, rows in (("train", 80), ("dev", 40)):
        write_split(split, rows)

    def run(*options: object, **environment: str) -> Any:
        words = ("--features", features, "--out", tmp_path / "run", "--epochs", 3, *options)
        return meld("train-fusion", *words, **environment)

    return run


@pytest.fixture
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and the beginning of whatever was sent to it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed: the test is over
                    return
                with connection:
                    connection.settimeout(1)
                    heard.append(connection.recv(200))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.mark.heavy
def test_tensorboard_has_curves_settings_and_scores(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train().status == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    history = read_history(tmp_path / "run/history.jsonl")
    assert set(events.Tags()["scalars"]) == {
        *("train_loss", "dev_loss", "dev_emotion_f1", "dev_sentiment_f1"),
        *("score", "learning_rate", "seconds"),
    }
    losses = [(each.step, pytest.approx(each.value)) for each in events.Scalars("dev_loss")]
    assert losses == [(each.epoch, each.dev_loss) for each in history]
    [settings] = events.Tensors("settings/text_summary")
    assert b'"epochs": 3' in settings.tensor_proto.string_val[0]
    [scores] = events.Tensors("scores/text_summary")
    assert b"| dev | emotion |" in scores.tensor_proto.string_val[0]
    assert not (tmp_path / "run/wandb").exists()


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
@pytest.mark.heavy
def test_a_run_whose_folder_is_no_utf_8_has_no_events_and_is_whole(
    train: Callable[..., Any], meld: Meld, tmp_path: Path
) -> None:
    run = tmp_path / "caf\udce9"
    trained = train("--out", run, "--verbose")
    assert trained.status == 0, trained.err
    assert "no TensorBoard events" in trained.err
    assert not list(run.glob("events*"))
    assert meld("evaluate", run, "--split", "dev").status == 0


def records_of(file: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log of protocol buffers, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, whole = file.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while place + 7 <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def items_of(items: Any) -> dict[str, Any]:
    return {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in items}


@pytest.mark.heavy
def test_weights_and_biases_has_the_same_offline_and_asks_no_network(
    train: Callable[..., Any], tmp_path: Path, listener: tuple[int, list[bytes]]
) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    port, heard = listener
    nowhere = f"http://127.0.0.1:{port}"
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy")
    asked = {
        "WANDB_BASE_URL": nowhere,
        "WANDB_CACHE_DIR": str(tmp_path),
        **dict.fromkeys(names, nowhere),
        "NO_PROXY": "",
    }
    try:
        done = train("--tracker", "wandb", **asked)
    finally:
        wandb.teardown()
    assert done.status == 0, done.err
    # What ONNX Runtime of another test in this process may still send is not W&B's.
    assert [each for each in heard if b"events.data.microsoft.com" not in each] == []

    [file] = (tmp_path / "run/wandb").glob("offline-run-*/run-*.wandb")
    records = list(records_of(file))
    [run] = [each.run for each in records if each.HasField("run")]
    config = items_of(run.config.update)
    assert (run.display_name, run.project) == ("run", "meld")
    assert config["fit"]["epochs"] == 3
    assert config["model"]["fusion"] == "late"
    assert run.host == "-"
    rows = [items_of(each.history.item) for each in records if each.HasField("history")]
    history = read_history(tmp_path / "run/history.jsonl")
    curves = [(row["_step"], row["dev_loss"]) for row in rows if "dev_loss" in row]
    assert curves == [(each.epoch, pytest.approx(each.dev_loss)) for each in history]
    assert (rows[-1]["scores.nrows"], rows[-1]["classes.ncols"]) == (4, 7)
    [scores] = file.parent.glob("files/media/table/scores_*.json")
    cells = json.loads(scores.read_text())
    assert cells["columns"][:3] == ["split", "head", "accuracy"]
    assert [row[:2] for row in cells["data"]] == [
        ["train", "emotion"],
        ["train", "sentiment"],
        ["dev", "emotion"],
        ["dev", "sentiment"],
    ]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))  # beside it, as without
    assert "--tracker wandb" in _remade(tmp_path / "run")


def _remade(run: Path) -> str:
    from fusion.inference.checkpoint import read_checkpoint
    from fusion.reporting.reproduce import remake

    return remake(read_checkpoint(run), run, data=None).commands[-1]


def test_without_the_extra_the_command_that_installs_it_is_reported(
    train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = train("--tracker", "wandb")
    assert done.status == 2
    assert done.err.splitlines() == [
        "meld: error: wandb is not installed; get it with: pip install 'meld[wandb]'"
    ]


@pytest.mark.heavy
def test_a_run_that_is_replaced_takes_its_tracked_one_with_it(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    assert train().status == 0
    (tmp_path / "run/wandb/offline-run-1").mkdir(parents=True)
    assert train("--overwrite").status == 0
    assert not (tmp_path / "run/wandb").exists()
