"""A small generated corpus and the command line, for tests that run the real thing."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fusion.fit import one_thread
from pipeline.encoders.choice import EncoderRequest
from pipeline.extract import ExtractConfig, extract
from pipeline.sample.corpus import SampleConfig, make_sample

# A shell's background jobs ignore SIGINT, and all that they start does too: tests of Ctrl-C would
# then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class Finished:
    """A command that ran to its end."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Meld = Callable[..., Finished]


@pytest.fixture(scope="session")
def meld() -> Meld:
    """Runs the command line as a user would: meld("info", path, "--json")."""

    def run(*arguments: object, timeout_s: float = 300, **environment: str) -> Finished:
        command = [sys.executable, "-m", "cli", *map(str, arguments)]
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **environment},
            cwd=Path(__file__).parent.parent,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generated dialogues, one a split: real H.264 and AAC."""
    out = tmp_path_factory.mktemp("corpus") / "data"
    return make_sample(SampleConfig(out=out, dialogues=3, seed=5)).root


@pytest.fixture(scope="session")
def features(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All splits of the small corpus, extracted in one unbroken run."""
    folder = tmp_path_factory.mktemp("features")
    report = extract(
        ExtractConfig(
            data=corpus,
            features=folder,
            encoders=EncoderRequest(text="minilm", video_weights="random"),
            rows_per_shard=2,
        )
    )
    assert report.num_failures == 0
    return folder


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Small batches: more threads only wait for each other."""
    with one_thread():
        yield
