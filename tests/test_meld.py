"""`import meld`: the commands as functions, with messages that speak Python."""

import ast
import functools
import inspect
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import typer.main

import cli
import meld
from pipeline.python_messages import in_python
from tests.conftest import Meld

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = {
    "extract": meld.extract,
    "train-fusion": meld.train_fusion,
    "finetune": meld.finetune,
    "evaluate": meld.evaluate,
    "convert": meld.convert,
    "export": meld.export,
    "verify": meld.verify,
}
# Of a command line alone: what is printed, and what a function returns or is told instead.
NOT_ARGUMENTS = {"as_json", "dry_run", "errors", "end_to_end", "help", "verbose"}


@pytest.fixture
def shell(request: pytest.FixtureRequest) -> Meld:
    """The command line; its fixture has the name of the module."""
    run: Meld = request.getfixturevalue("meld")
    return run


@pytest.mark.heavy
def test_importing_it_imports_nothing_heavy() -> None:
    script = "import sys, meld; print(*{name.split('.')[0] for name in sys.modules})"
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    heavy = set(
        "torch torchvision numpy scipy ray h5py av transformers pandas sklearn typer".split()
    )
    assert set(finished.stdout.split()) & heavy == set()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_are_named_as_the_commands_options(name: str) -> None:
    command = typer.main.get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    options = {
        option.removeprefix("--").replace("-", "_")
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    arguments = set(inspect.signature(FUNCTIONS[name]).parameters)
    missing = {each for each in options - {"json", *NOT_ARGUMENTS} if each not in arguments}
    assert missing == set()


def test_a_wrong_argument_is_named_without_dashes(tmp_path: Path) -> None:
    with pytest.raises(meld.UsageError) as caught:
        meld.extract("train", data=tmp_path, modalities="smell")
    assert str(caught.value) == ("modalities smell: a comma-separated subset of text, video, audio")


def test_advice_is_a_call_and_not_a_command(tmp_path: Path) -> None:
    with pytest.raises(meld.InputError) as caught:
        meld.evaluate(tmp_path / "nothing")
    assert str(caught.value).endswith("train one with: meld.train_fusion()")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("name its folder with --weights-dir", "name its folder with weights_dir"),
        ("replace it with --overwrite", "replace it with overwrite=True"),
        (
            "run meld extract --split train, then meld extract --split dev, or train on raw",
            'run meld.extract(split="train"), then meld.extract(split="dev"), or train on raw',
        ),
        ("(meld finetune --end-to-end)", "(meld.finetune())"),
        ("meld train-fusion --input raw", 'meld.train_fusion(input="raw")'),
        (
            "train on others: meld train-fusion --modalities text,audio ...",
            'train on others: meld.train_fusion(modalities="text,audio") ...',
        ),
        ("make it: meld extract --features .", 'make it: meld.extract(features=".")'),
        (
            """meld extract --features 'my features, it'"'"'s' --overwrite.""",
            'meld.extract(features="my features, it\'s", overwrite=True).',
        ),
        ("see meld doctor --data data", "see meld doctor --data data"),
        ("runs/a--out/config.json: no such file", "runs/a--out/config.json: no such file"),
        ("meld evaluate runs/x --split test", "meld evaluate runs/x --split test"),
        ("get it with: pip install --no-deps x", "get it with: pip install --no-deps x"),
    ],
)
def test_what_is_typed_becomes_what_is_called(typed: str, said: str) -> None:
    assert in_python(typed, meld._FUNCTIONS) == said


def messages() -> Iterator[str]:
    """Every string of the code below the command line that names an option."""
    for folder in ("pipeline", "fusion"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docs = {
                ast.get_docstring(node, clean=False)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            }
            for node in ast.walk(tree):
                value = node.value if isinstance(node, ast.Constant) else None
                if isinstance(value, str) and value not in docs and re.search(r"--[a-z]", value):
                    yield value


@pytest.mark.heavy
def test_no_message_names_an_option_that_is_an_argument_here() -> None:
    found = [*messages()]
    assert len(found) > 40
    arguments = {
        name.replace("_", "-")
        for each in [*FUNCTIONS.values(), meld.import_features, meld.load, meld.Model.predict]
        for name in inspect.signature(each).parameters
    }
    for message in found:
        kept = re.findall(r"(?<!\w )--([a-z][a-z-]*[a-z])", in_python(message, meld._FUNCTIONS))
        commands = re.findall(
            r"(?:meld|pip|docker) [a-z]+ --.*", in_python(message, meld._FUNCTIONS)
        )
        assert commands or not set(kept) & arguments, message


def test_importing_meld_and_reading_a_cache_gives_arrays(features: Path) -> None:
    cache = meld.read_cache(features / "dev.h5", modalities="text", want=("raw",))
    assert cache.raw["text"].shape[0] == len(cache) == len(cache.text)
    assert set(cache.raw) == {"text"}


def test_the_readmes_example_runs(
    corpus: Path,
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    [example, *_] = re.findall(
        r"```python\n(import meld\n.*?)```", (ROOT / "docs/python.md").read_text(), re.DOTALL
    )
    (tmp_path / "data").symlink_to(corpus)
    # Everything is extracted already, with two pictures a clip: the example finds it done.
    shutil.copytree(features, tmp_path / "features")
    few_frames = {"num_frames": 2, "rows_per_shard": 2}
    monkeypatch.setattr(meld, "extract", functools.partial(meld.extract, config=few_frames))
    monkeypatch.chdir(tmp_path)
    exec(compile(textwrap.dedent(example), "docs/python.md", "exec"), {})
    assert re.search(r"0\.\d+", capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments",
    [
        {"modalities": 5},
        {"modalities": []},
        {"weights": 5},
        {"config": 5},
        {"config": {1: 2}},
        {"data": 5},
        {"features": b"features"},
    ],
)
def test_a_value_of_a_wrong_type_is_reported_as_ours(arguments: dict[str, object]) -> None:
    with pytest.raises(meld.UsageError, match=f"{next(iter(arguments))}|unknown setting 1"):
        meld.extract("train", **arguments)  # type: ignore[arg-type]


def test_what_is_wanted_of_a_cache_is_checked(features: Path) -> None:
    assert meld.read_cache(features / "dev.h5", want="raw").raw
    with pytest.raises(meld.UsageError, match="want: raw, embedding or both, not 'x'"):
        meld.read_cache(features / "dev.h5", want=["x"])  # type: ignore[list-item]
    with pytest.raises(meld.UsageError, match="file must be a path, not 5"):
        meld.read_cache(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: meld.evaluate(None), "run is needed"),  # type: ignore[arg-type]
        (lambda: meld.verify(None), "bundle is needed"),  # type: ignore[arg-type]
        (lambda: meld.export(None, "shipped"), "run is needed"),  # type: ignore[arg-type]
        (lambda: meld.export("runs/x", None), "out is needed"),  # type: ignore[arg-type]
        (lambda: meld.export("x", "y", prune="0.5"), "prune must be float"),  # type: ignore[arg-type]
        (lambda: meld.convert(None, "npz", out="x"), "source is needed"),  # type: ignore[arg-type]
        (lambda: meld.read_cache("x.h5", want=None), "want: raw"),  # type: ignore[arg-type]
        (lambda: meld.torch_dataset(None), "cache must be a"),  # type: ignore[arg-type]
        (lambda: meld.hf_dataset(None), "cache must be a"),  # type: ignore[arg-type]
        (lambda: meld.extract("dev", context="2"), "whole number or one of dialogue, not '2'"),  # type: ignore[arg-type]
        (lambda: meld.extract("val"), "split must be one of train, dev, test, all, not 'val'"),  # type: ignore[arg-type]
        (lambda: meld.train_fusion(fusion=np.array(["late", "early"])), "fusion must be one of"),  # type: ignore[arg-type]
    ],
)
def test_what_is_missing_or_of_a_wrong_type_is_named(call: Callable[[], object], told: str) -> None:
    with pytest.raises(meld.UsageError, match=told):
        call()


def test_a_result_in_place_of_its_folder_is_told_in_a_short_line(features: Path) -> None:
    cache = meld.read_cache(features / "dev.h5")
    with pytest.raises(meld.UsageError, match=r"run must be a path, not FeatureCache\(") as caught:
        meld.evaluate(cache)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 150
    assert "\n" not in str(caught.value)


def test_any_mapping_is_taken_for_settings(tmp_path: Path) -> None:
    config = MappingProxyType({"fit": MappingProxyType({"epochs": 0})})
    with pytest.raises(meld.UsageError, match="epochs must be at least 1"):
        meld.train_fusion(features=tmp_path, config=config, learning_rate=1e-3)


def test_what_the_system_refuses_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(meld.StorageError, match="File name too long"):
        meld.read_cache(tmp_path / ("x" * 300))


def test_advice_about_a_folder_with_a_blank_can_be_copied(tmp_path: Path, shell: Meld) -> None:
    folder = tmp_path / "my features"
    told = shell("train-fusion", "--features", folder, "--out", tmp_path / "run")
    assert told.err.endswith(f"meld extract --split train --features '{folder}'\n")
    with pytest.raises(meld.InputError) as caught:
        meld.train_fusion(features=folder, out=tmp_path / "run")
    assert str(caught.value).endswith(f'meld.extract(split="train", features="{folder}")')
