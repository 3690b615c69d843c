"""A bundle's ONNX graphs say what PyTorch says, where nothing else is installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fusion.export.golden import TALK
from fusion.inference.load import ModelChoice
from fusion.prediction import predict_files
from pipeline.system.extras import EXTRA_OF
from tests.conftest import ROOT, Meld

pytestmark = pytest.mark.heavy


def test_graphs_say_what_pytorch_says(meld: Meld, graphs: Path) -> None:
    told = meld("verify", graphs, "--runtime", "onnx", "--json").json
    assert told["trusted"]
    assert told["runtime"] == "onnx on cpu"
    assert "kernels" not in meld("verify", graphs, "--runtime", "onnx").out  # PyTorch's, untold
    by_torch, by_graphs = (
        ModelChoice(run=graphs, runtime=name).load()  # type: ignore[arg-type]
        for name in ("torch", "onnx")
    )
    assert by_torch.fingerprint == by_graphs.fingerprint  # the same weights
    assert by_torch.identity != by_graphs.identity  # but saved features are not mixed


# Many command lines in one process, which cannot import what it hides; nor can those that it
# starts.
HIDES = "import sys; sys.modules.update(dict.fromkeys({}, None))"
RUNS_ALL = """
import contextlib, io, json, sys
import cli, meld
told = []
for words in json.loads(sys.argv[1]):
    out, err, sys.argv, status = io.StringIO(), io.StringIO(), ["meld", *words], 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as end:
            status = end.code or 0
    told.append([status, out.getvalue(), err.getvalue()])
try:
    meld.load()
except meld.UsageError as error:
    told.append([0, str(error), ""])
print(json.dumps(told))
"""


def test_graphs_predict_where_nothing_else_is_installed_and_all_that_needs_more_says_so(
    graphs: Path, text_run: Path, tmp_path: Path
) -> None:
    hidden = EXTRA_OF.keys() - {"onnxruntime", "tokenizers"}
    (tmp_path / "sitecustomize.py").write_text(HIDES.format(sorted(hidden)))
    predicts = [
        ["predict", str(TALK), "--model", str(graphs), "--json", "-v"],
        ["verify", str(graphs), "--json"],
        ["predict", "--help"],
    ]
    needs_more = {
        "torch": ("predict|" + str(TALK), f"predict|{TALK}|--model|{text_run}"),
        "train": (
            *"extract|--split|dev train-fusion finetune|--end-to-end compare|a|b crossval".split(),
            *("ablate", "download", f"evaluate|{graphs}", f"report|{graphs}", f"info|{graphs}"),
            *("convert|train.h5|--to|npz|--out|there", "config|keys|extract"),
            f"predict|{TALK}|--model|{graphs}|--address|auto",
        ),
        "export": (f"export|{graphs}|--out|there",),
        "serve": ("serve", "listen"),
        "sample": ("sample|--out|there",),
        "train,sample,minilm": ("demo",),
    }
    refused = [(extra, each.split("|")) for extra, lines in needs_more.items() for each in lines]
    done = subprocess.run(
        [sys.executable, "-c", RUNS_ALL, json.dumps([*predicts, *(each for _, each in refused)])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    predicted, verified, helped, *told, loaded = json.loads(done.stdout)
    assert predicted[0] == verified[0] == helped[0] == 0, predicted
    assert f"PyTorch is not installed: {graphs} is computed by its ONNX graphs" in predicted[2]
    [file] = json.loads(predicted[1])["files"]
    golden = json.loads((graphs / "golden" / "golden.json").read_bytes())
    for row, utterance in zip(
        golden["probabilities"]["text"], file["timeline"]["utterances"], strict=True
    ):
        given = list(utterance["emotion"]["probabilities"].values())
        np.testing.assert_allclose(given, row[:7], atol=1e-3)
    assert json.loads(verified[1])["trusted"]
    for (extra, words), (status, _, err) in zip(refused, told, strict=True):
        assert status == 2, (words, err)
        assert err.startswith("meld: error: "), words
        assert f" is not installed; get it with: pip install 'meld[{extra}]'" in err, (words, err)
        assert err.count("\n") == 1, (words, err)
    assert "torch is not installed; get it with: pip install 'meld[torch]'" in loaded[1]


def test_many_files_are_predicted_one_after_another_where_ray_is_not_installed(
    meld: Meld, graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        shutil.copy(TALK, tmp_path / f"{number}.mp4")
    monkeypatch.setattr(predict_files, "MANY_FILES", 2)
    monkeypatch.setattr(predict_files, "num_cores", lambda: 2)
    monkeypatch.setattr(predict_files, "is_installed", lambda package: package != "ray")
    done = meld("predict", tmp_path, "--model", graphs, "--out", tmp_path / "out", "-v")
    assert done.status == 0, done.err
    assert "Ray is not installed: the files are predicted one after another" in done.err
    assert len([*(tmp_path / "out").glob("*.json")]) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--runtime", "onnx", "--precision", "bfloat16"), "weights and precision in them"),
        (("--runtime", "onnx", "--weights-dir", "w"), "weights and precision in them"),
    ],
)
def test_what_says_nothing_to_graphs_is_refused(
    meld: Meld, graphs: Path, options: tuple[str, ...], told: str
) -> None:
    done = meld("predict", TALK, "--model", graphs, *options)
    assert done.status == 2
    assert told in done.err


def test_a_run_has_no_graphs(meld: Meld, text_run: Path) -> None:
    done = meld("predict", TALK, "--model", text_run, "--runtime", "onnx")
    assert done.status == 2
    assert "meld export --onnx" in done.err
