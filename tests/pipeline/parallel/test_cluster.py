"""Which Ray cluster a run starts or joins, seen in what Ray is asked for; none is started."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.errors import UsageError
from pipeline.parallel import cluster as parallel
from pipeline.parallel.cluster import look_at_cluster
from pipeline.parallel.engine import decode_shards, encode_shards
from pipeline.parallel.work import Cluster
from pipeline.recipe import DecodeConfig

AskedFor = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def no_ray_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test may have started it."""
    monkeypatch.setattr(parallel.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(parallel.ray, "shutdown", lambda: None)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every address, of whatever name."""
    monkeypatch.setattr(
        parallel.socket, "create_connection", lambda *_, **__: contextlib.nullcontext()
    )


def encode(cluster: Cluster) -> Iterator[Any]:
    return encode_shards([], [], None, cluster)


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> AskedFor:
    """The settings that Ray is started with. It is refused, so that it does not start."""
    asked: dict[str, Any] = {}

    def refuse(**settings: Any) -> None:
        asked.update(settings)
        raise ConnectionError("refused")

    monkeypatch.setattr(parallel.ray, "init", refuse)

    def ask(cluster: Cluster, run: Callable[[Cluster], Iterator[Any]] = encode) -> dict[str, Any]:
        with pytest.raises(UsageError, match="refused"):
            next(run(cluster))
        return asked

    return ask


def test_a_run_has_a_cluster_of_its_own_whatever_the_environment_names(
    asked_for: AskedFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somebody-elses:6379")
    settings = asked_for(Cluster(workers=3))
    assert settings["address"] == "local"
    assert settings["num_cpus"] == 3


def test_on_one_core_the_encoder_and_a_decoder_still_both_find_room(asked_for: AskedFor) -> None:
    assert asked_for(Cluster(workers=1))["num_cpus"] == 2


def test_decoding_alone_needs_one_core_and_no_gpu(asked_for: AskedFor) -> None:
    def decode(cluster: Cluster) -> Iterator[Any]:
        return decode_shards([], DecodeConfig(), ["video"], cluster)

    settings = asked_for(Cluster(device="cuda", workers=1), decode)
    assert (settings["num_cpus"], settings["num_gpus"]) == (1, 0)


@pytest.mark.usefixtures("answering")
def test_a_cluster_asked_for_by_address_is_joined_as_it_is(asked_for: AskedFor) -> None:
    settings = asked_for(Cluster(address="head:6379", workers=3))
    assert settings["address"] == "head:6379"
    assert not {"num_cpus", "num_gpus", "object_store_memory"} & settings.keys()


def test_the_encoders_threads_are_those_of_its_own_machine() -> None:
    assert Cluster(workers=3).threads == 3
    assert Cluster(workers=3, address="head:6379").threads is None


@pytest.fixture
def resources(answering: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A cluster that has these; nothing can be run on it."""
    there = {"CPU": 4.0}
    monkeypatch.setattr(parallel.ray, "init", lambda **_: None)
    monkeypatch.setattr(parallel.ray, "cluster_resources", lambda: there)
    monkeypatch.delattr(parallel.ray, "remote")
    return there


def test_whether_there_is_a_gpu_is_asked_of_the_cluster(resources: dict[str, float]) -> None:
    assert look_at_cluster("head:6379", "auto", "float32") == ("cpu", "float32")
    with pytest.raises(UsageError, match="--device cuda: the Ray cluster has no GPU"):
        look_at_cluster("head:6379", "cuda", "float32")
    resources["GPU"] = 1.0
    assert look_at_cluster("head:6379", "auto", "bfloat16") == ("cuda", "bfloat16")
    assert look_at_cluster("head:6379", "cpu", "bfloat16") == ("cpu", "bfloat16")


@pytest.mark.usefixtures("answering")
def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise ConnectionError("long\nstory\nno route to host")

    monkeypatch.setattr(parallel.ray, "init", refuse)
    with pytest.raises(
        UsageError, match=r"--address head:6379: .* \(no route to host\); .*=token$"
    ):
        next(encode(Cluster(address="head:6379")))


@pytest.mark.parametrize(
    "address", ["nowhere.invalid:6379", "ray://nowhere.invalid", "127.0.0.1:99999", "[::1]:1"]
)
def test_an_address_at_which_nobody_answers_is_reported_before_ray_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.delattr(parallel.ray, "init")
    with pytest.raises(UsageError, match=r"--address .*: no Ray cluster answers there \(.+\)"):
        next(encode(Cluster(address=address)))


def test_an_address_that_keeps_silent_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(parallel.ray, "init")
    monkeypatch.setattr(parallel, "_SECONDS_TO_ANSWER", 0.05)

    def keep_silent(*_: object, **__: object) -> None:
        time.sleep(0.5)
        raise TimeoutError

    monkeypatch.setattr(parallel.socket, "create_connection", keep_silent)
    with pytest.raises(UsageError, match=r"no answer within 0\.05 s"):
        next(encode(Cluster(address="silent:6379")))


def test_an_address_that_answers_goes_on_to_ray(asked_for: AskedFor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert asked_for(Cluster(address=address))["address"] == address


@pytest.mark.parametrize("address", ["auto", "local"])
def test_addresses_without_a_place_are_left_to_ray(asked_for: AskedFor, address: str) -> None:
    assert asked_for(Cluster(address=address))["address"] == address


def test_a_command_line_that_is_no_utf_8_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.ray, "init", lambda **settings: "caf\udce9".encode())
    with pytest.raises(UsageError, match="no UTF-8; rename that file or folder"):
        next(encode(Cluster()))


def test_a_start_that_took_too_long_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def time_out(**settings: Any) -> None:
        attempts.append(settings)
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(parallel.ray, "init", time_out)
    with pytest.raises(UsageError, match=r"Ray does not start on this machine \(The current node"):
        next(encode(Cluster()))
    assert len(attempts) == 2
    assert "trying once more" in caplog.text
