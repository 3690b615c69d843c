"""Ctrl-C and SIGTERM: told where somebody listens, soon, and the same command goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.parallel import cluster, engine
from pipeline.parallel.work import Cluster, ShardFeatures, ShardTask
from tests.conftest import ROOT, Meld
from tests.pipeline.extract.test_changed_clips import Corpus, encode_each

FILES = ("train.h5", "dev.h5", "test.h5", "projection.h5")


def test_ctrl_c_in_an_extraction_is_told_and_the_same_command_goes_on(
    tmp_path: Path, meld: Meld, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus(tmp_path)
    (tmp_path / "settings.toml").write_text("rows_per_shard = 2\n")
    command = (
        *("extract", "--split", "dev", "--data", corpus.data, "--features", corpus.features),
        *("--modalities", "audio", "--config", tmp_path / "settings.toml", "--json"),
    )
    shards: list[int] = []

    def interrupted(tasks: Sequence[ShardTask], *rest: object) -> Iterator[ShardFeatures]:
        for shard in encode_each(tasks, *rest):
            if len(shards) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            shards.append(shard.index)
            yield shard

    monkeypatch.setattr(engine, "encode_shards", interrupted)
    stopped = meld(*command)
    assert stopped.status == 130
    assert stopped.out == ""
    assert stopped.err.splitlines()[-1].startswith("meld: interrupted (the same command resumes ")
    assert not (corpus.features / "dev.h5").exists()

    monkeypatch.setattr(engine, "encode_shards", encode_each)
    done = meld(*command)
    assert done.status == 0, done.err
    assert [split["rows_resumed"] for split in done.json["splits"]] == [4]


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_rays_handler_of_sigterm_does_not_stay(
    handler: signal.Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own ends the process with status 15, which says nothing in a shell."""
    inside: list[Any] = []

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 2})
    before = signal.signal(signal.SIGTERM, handler)
    try:
        with cluster.ray_cluster(Cluster(workers=1)):
            inside.append(signal.getsignal(signal.SIGTERM))
            if handler == signal.SIG_DFL:
                with pytest.raises(SystemExit) as ended:
                    os.kill(os.getpid(), signal.SIGTERM)
                assert ended.value.code == 143
        assert signal.getsignal(signal.SIGTERM) == handler
        assert (inside == [handler]) == (handler == signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_extraction_with_all_its_processes_and_it_goes_on(
    corpus: Path, tmp_path: Path, number: int, status: int
) -> None:
    (tmp_path / "settings.toml").write_text("rows_per_shard = 2\nnum_frames = 2\n")
    features = tmp_path / "features"
    command = [
        *(sys.executable, "-m", "cli", "extract", "--split", "all", "--data", str(corpus)),
        *("--features", str(features), "--modalities", "video,audio", "--weights", "video=random"),
        *("--config", str(tmp_path / "settings.toml")),
    ]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    whole = [(features / name).read_bytes() for name in FILES]
    shutil.rmtree(features)

    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not list(features.glob(".work/*/shard-*.h5")):
        time.sleep(0.02)
    processes = [running, *psutil.Process(running.pid).children(recursive=True)]
    began = time.monotonic()
    running.send_signal(number)
    _, told = running.communicate(timeout=60)
    print(f"ended after {time.monotonic() - began:.1f} s, with {len(processes)} processes")
    assert running.returncode == status
    assert "Traceback" not in told
    assert ("meld: interrupted" in told) == (number == signal.SIGINT)
    _, alive = psutil.wait_procs(processes[1:], timeout=30)
    assert alive == []
    assert not (features / "test.h5").exists()

    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
    assert [(features / name).read_bytes() for name in FILES] == whole
