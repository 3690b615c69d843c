"""The base installation holds what its imports need and nothing heavy; what is missing is named in
one line; a bundle predicts where PyTorch was never installed."""

import json
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import meld as in_python
from fusion.export.golden import TALK
from fusion.inference import bundle, load
from fusion.inference.bundle import choose_runtime
from fusion.inference.bundled import bundled_run
from fusion.inference.load import choose_device
from pipeline.errors import UsageError
from pipeline.system import device
from pipeline.system.extras import EXTRA_OF, missing_part, needs_extra
from tests.conftest import ROOT, Meld
from tests.layout import Import, closure, module_files, read_imports

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Where the name in an import is not the distribution's.
DISTRIBUTION_OF = {
    "sklearn": "scikit-learn",
    "PIL": "pillow",
    "cv2": "opencv-python-headless",
}
# From a medium to what a command prints of its prediction.
PREDICTING = (
    "fusion.prediction.predict_files",
    "fusion.export.verify",
    "console.show.prediction",
    "console.show.bundle",
    "console.show.version",
)
SERVING = ("serving.serve", "serving.work")


def distributions(requirements: list[str]) -> set[str]:
    """Names without releases and extras; those of this program's own extras in their place."""
    found = set()
    for each in requirements:
        own = re.fullmatch(r"meld\[(.*)\]", each)
        if own is not None:
            found |= {name for extra in own[1].split(",") for name in distributions(EXTRAS[extra])}
        else:
            found.add(re.split(r"[^A-Za-z0-9._-]", each)[0])
    return found


def imported(names: set[str]) -> set[str]:
    return {DISTRIBUTION_OF.get(name, name.replace("_", "-")) for name in names}


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return read_imports(ROOT)


@pytest.fixture(scope="module")
def modules() -> set[str]:
    return set(module_files(ROOT))


# ------------------------------------------------------------------------------- pyproject.toml


def test_the_base_is_what_predicting_and_the_command_line_import_and_no_more(
    imports: list[Import], modules: set[str]
) -> None:
    at_start = [each for each in imports if each.at_start]
    needed = closure(imports, modules, PREDICTING, extras=())
    needed |= closure(at_start, modules, ["cli", "meld"], extras=())
    assert imported(needed) == distributions(PROJECT["dependencies"])


def test_graphs_need_the_extra_onnx_and_no_more(imports: list[Import], modules: set[str]) -> None:
    needed = closure(imports, modules, PREDICTING, extras=("onnx",))
    base = distributions(PROJECT["dependencies"])
    assert imported(needed) - base == distributions(EXTRAS["onnx"])


def test_pytorch_predicts_with_the_extra_torch_and_those_of_text_encoders(
    imports: list[Import], modules: set[str]
) -> None:
    needed = closure(imports, modules, PREDICTING, extras=("torch",))
    base = distributions(PROJECT["dependencies"])
    of_texts = distributions(EXTRAS["minilm"]) | distributions(EXTRAS["glove"])
    assert imported(needed) - base - of_texts == distributions(EXTRAS["torch"])


def test_a_service_of_graphs_needs_the_extra_serve_onnx_and_no_pytorch(
    imports: list[Import], modules: set[str]
) -> None:
    needed = closure(imports, modules, [*PREDICTING, *SERVING], extras=("onnx", "serve"))
    base = distributions(PROJECT["dependencies"])
    of_fastapi = {"starlette", "pydantic", "anyio"}
    named_in_text = {"httptools"}  # to uvicorn
    told = distributions(EXTRAS["serve-onnx"])
    assert (imported(needed) - base - of_fastapi) | named_in_text == told


def test_the_image_without_pytorch_has_what_its_extras_need_and_no_pytorch() -> None:
    pins = (ROOT / "deploy/requirements-onnx.txt").read_text()
    inside = set(re.findall(r"^([a-z0-9-]+)==", pins, re.MULTILINE))
    assert distributions([*PROJECT["dependencies"], "meld[serve-onnx,asr]"]) <= inside
    training = imported({name for name, extra in EXTRA_OF.items() if extra == "train"})
    assert training & inside == {"huggingface-hub"}  # of tokenizers and faster-whisper


def test_every_extra_is_in_all_but_that_of_development() -> None:
    told = {name for extra, names in EXTRAS.items() if extra != "dev" for name in names}
    assert distributions(EXTRAS["all"]) == distributions([*told])


def test_every_optional_package_names_an_extra_that_brings_it() -> None:
    by_extra = {extra: distributions(names) for extra, names in EXTRAS.items() if extra != "dev"}
    for package, extra in EXTRA_OF.items():
        assert imported({package}) <= by_extra[extra], package
    assert imported(set(EXTRA_OF)) == set().union(*by_extra.values())


# ------------------------------------------------------------------------------- what is told


def missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_missing_package_names_its_extra_and_one_of_nobody_is_a_bug() -> None:
    told = missing_part(missing("sklearn.metrics"))
    assert str(told) == "sklearn.metrics is not installed; get it with: pip install 'meld[train]'"
    assert missing_part(missing("pipeline.nowhere")) is None
    assert missing_part(missing("colour")) is None
    with (
        pytest.raises(UsageError, match=r"'meld\[onnx\]', or do without$"),
        needs_extra("onnx", ", or do without"),
    ):
        raise missing("onnxruntime")
    with pytest.raises(ModuleNotFoundError), needs_extra("onnx"):
        raise missing("fusion.nowhere")


def test_what_a_command_and_a_function_miss_deep_inside_is_a_line_and_an_error_of_ours(
    meld: Meld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise missing("h5py")

    monkeypatch.setattr("pipeline.cache.info.describe", read)
    monkeypatch.setattr("pipeline.cache.format.read_cache", read)
    done = meld("info", "features/train.h5")
    assert done.status == 2
    assert (
        done.err == "meld: error: h5py is not installed; get it with: pip install 'meld[train]'\n"
    )
    with pytest.raises(in_python.UsageError, match=r"pip install 'meld\[train\]'"):
        in_python.read_cache("features/train.h5")


# ------------------------------------------------------------------------------- what is chosen


@pytest.mark.parametrize(
    ("runtimes", "with_torch", "without"),
    [
        (None, "torch", "torch"),
        (["torch"], "torch", "torch"),
        (["onnx"], "onnx", "onnx"),
        (["torch", "onnx"], "torch", "onnx"),
    ],
)
def test_graphs_are_computed_where_there_is_nothing_else_or_no_pytorch(
    monkeypatch: pytest.MonkeyPatch, runtimes: list[str] | None, with_torch: str, without: str
) -> None:
    exported = None if runtimes is None else {"runtimes": runtimes}
    assert choose_runtime(exported) == with_torch
    monkeypatch.setattr(bundle, "is_installed", lambda name: False)
    assert choose_runtime(exported) == without


def test_a_machine_with_a_gpu_and_without_pytorch_computes_on_its_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(device, "_DEVICES", tmp_path)
    monkeypatch.setattr(device, "_CPU_INFO", tmp_path / "none")
    for module in (device, load):
        monkeypatch.setattr(module, "is_installed", lambda name: False)
    assert choose_device("auto") == "cpu"
    assert device.cpu_features() == set()
    with pytest.raises(UsageError, match=r"PyTorch is not installed; .*'meld\[torch\]'"):
        choose_device("cuda")


# ------------------------------------------------------------------------------ a clean environment


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an environment with the wheel and the extra `serve-onnx`."""
    folder = tmp_path_factory.mktemp("clean")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    asked = subprocess.run(
        [*pip, "download", "--no-deps", "--dest", folder, "markupsafe"],
        capture_output=True,
        timeout=120,
    )
    if asked.returncode != 0:
        pytest.skip("no package registry can be reached")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [wheel] = folder.glob("meld-*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True, timeout=120)
    into = [*pip, "--python", str(folder / "env/bin/python"), "install"]
    wanted = f"meld[serve-onnx] @ {wheel.as_uri()}"
    subprocess.run([*into, wanted], check=True, capture_output=True, timeout=900)
    return folder / "env"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")
    out = tmp_path_factory.mktemp("shipped") / "words"
    return in_python.export(bundled_run(), out, onnx=True).bundle


def run_in(env: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command of that environment, far from the repository."""
    return subprocess.run(
        [env / "bin/meld", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=env.parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        timeout=300,
    )


def probabilities(timeline: dict[str, Any]) -> np.ndarray[Any, Any]:
    """float64 [utterances, 7 + 3]"""
    heads = ("emotion", "sentiment")
    return np.array(
        [
            [value for head in heads for value in each[head]["probabilities"].values()]
            for each in timeline["utterances"]
        ]
    )


@pytest.fixture
def service(clean: Path, shipped: Path) -> Iterator[str]:
    """The address of a service in that environment."""
    command = [clean / "bin/meld", "serve", "--model", shipped, "--port", "0", "--json"]
    with subprocess.Popen(
        [*map(str, command), "--data-dir", str(clean.parent / "jobs")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=clean.parent,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    ) as process:
        assert process.stdout is not None
        told = ""
        while not told.endswith("}\n") or told.count("{") != told.count("}"):
            line = process.stdout.readline()
            assert line, "the service ended"
            told += line
        yield json.loads(told)["address"]
        process.terminate()


@pytest.mark.slow
def test_a_bundle_gives_the_same_answer_in_a_clean_environment_without_pytorch(
    meld: Meld, clean: Path, shipped: Path, corpus: Path, tmp_path: Path
) -> None:
    [packages] = (clean / "lib").glob("python*/site-packages")
    assert not (packages / "torch").exists()
    assert sum(each.stat().st_blocks for each in packages.rglob("*")) * 512 < 600e6
    assert re.search(r"^PyTorch +not installed$", run_in(clean, "--version").stdout, re.MULTILINE)
    clip = min(corpus.rglob("*.mp4"))
    for media in ((TALK,), (clip, "--text", "Oh no, I am so sorry!")):
        words = ("predict", *media, "--model", shipped, "--json", "--out", tmp_path / "out")
        there, here = run_in(clean, *words), meld(*words, "--runtime", "torch")
        assert there.returncode == here.status == 0, there.stderr
        [theirs], [ours] = json.loads(there.stdout)["files"], here.json["files"]
        found, wanted = probabilities(theirs["timeline"]), probabilities(ours["timeline"])
        np.testing.assert_allclose(found, wanted, atol=1e-3)
        for head in ("emotion", "sentiment"):
            labels = [
                [utterance[head]["label"] for utterance in of["timeline"]["utterances"]]
                for of in (theirs, ours)
            ]
            assert labels[0] == labels[1]
    verified = run_in(clean, "verify", shipped, "--json")
    assert json.loads(verified.stdout)["trusted"]
    for line in (f"predict {TALK}", f"evaluate {shipped}", "extract --split dev", "train-fusion"):
        done = run_in(clean, *line.split())
        assert done.returncode == 2
        assert re.fullmatch(r"meld: error: .* is not installed; get it with: .*\n", done.stderr)


@pytest.mark.slow
def test_a_service_in_a_clean_environment_answers_by_graphs(service: str) -> None:
    request = urllib.request.Request(
        f"{service}/v1/predict", data=TALK.read_bytes(), headers={"Content-Type": "video/mp4"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        timeline = json.loads(answer.read())
    assert timeline["utterances"][0]["emotion"]["label"] == "joy"
