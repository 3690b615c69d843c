"""A small generated corpus and the command line, for tests that run the real thing."""

import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from fusion.fit import one_thread
from pipeline.encoders.choice import EncoderRequest
from pipeline.extract import ExtractConfig, extract
from pipeline.sample.corpus import SampleConfig, SampleResult, make_sample

# A shell's background jobs ignore SIGINT, and all that they start does too: tests of Ctrl-C would
# then wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What a terminal, a CI service or a proxy says would change what commands print and whom they ask.
for name in ("FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)
for kind in ("http", "https", "all", "no"):
    os.environ.pop(f"{kind}_proxy", None)
    os.environ.pop(f"{kind}_proxy".upper(), None)
os.environ["COLUMNS"] = "80"


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
Made = TypeVar("Made")


class MadeOnce(Protocol):
    def __call__(self, name: str, make: Callable[[Path], Made]) -> Made: ...


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
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """made_once("name", make) is what `make(folder)` returned to the first of the processes that
    share the tests among them (pytest-xdist); the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def once(name: str, make: Callable[[Path], Made]) -> Made:
        kept = root / f"{name}.pickle"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                kept.write_bytes(pickle.dumps(make(root / name)))
        made: Made = pickle.loads(kept.read_bytes())
        return made

    return once


@pytest.fixture(scope="session")
def sample(made_once: MadeOnce) -> SampleResult:
    """Three generated dialogues, one a split: real H.264 and AAC. Not to be written to."""
    return made_once(
        "sample",
        lambda folder: make_sample(SampleConfig(out=folder, dialogues=3, seed=5, workers=2)),
    )


@pytest.fixture(scope="session")
def corpus(sample: SampleResult) -> Path:
    return sample.root


@pytest.fixture(scope="session")
def features(corpus: Path, made_once: MadeOnce) -> Path:
    """All splits of the small corpus, extracted in one unbroken run. Not to be written to."""

    def make(folder: Path) -> Path:
        config = ExtractConfig(
            data=corpus,
            features=folder,
            encoders=EncoderRequest(text="minilm", video_weights="random"),
            rows_per_shard=2,
        )
        assert extract(config).num_failures == 0
        return folder

    return made_once("features", make)


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Small batches: more threads only wait for each other."""
    with one_thread():
        yield
