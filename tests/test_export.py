"""A bundle predicts what its run predicts, wherever it lies; a wrong one is refused in a line."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.export.export import ExportConfig, export
from fusion.export.gate import VariantCost
from fusion.export.golden import TALK
from fusion.inference.bundle import GRAPHS
from fusion.inference.checkpoint import read_checkpoint, write_checkpoint
from fusion.inference.load import ModelChoice
from fusion.model.dims import ModelConfig
from fusion.prediction import predict_files
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.encoders import weights
from pipeline.encoders.saved import write_encoders
from pipeline.errors import UsageError, WeightsMissing
from pipeline.schema import EMOTIONS, SENTIMENTS
from pipeline.system.extras import EXTRA_OF
from tests.conftest import Meld
from tests.runs import write_run_of_words

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def few_timed_clips(tiny_graphs_are_quantised: None) -> Iterator[None]:
    """How fast something is does not matter here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion.export.gate.TIMED_CLIPS", 3)
        yield


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All three modalities, with dialogue context, evaluated on both splits."""
    out = tmp_path_factory.mktemp("runs") / "all"
    config = TrainConfig(
        features=features,
        out=out,
        fit=FitConfig(epochs=2),
        model=ModelConfig(context="dialogue", hidden=16, projection=8),
    )
    train_fusion(config)
    evaluate(EvaluateConfig(run=out, split="dev"))
    evaluate(EvaluateConfig(run=out, split="test"))
    return out


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(ExportConfig(run=run, out=tmp_path_factory.mktemp("bundles") / "shipped")).bundle


@pytest.fixture(scope="module")
def text_run(tiny_text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "words"
    write_run_of_words(run, tiny_text_folder)
    return run


@pytest.fixture(scope="module")
def text_bundle(
    text_run: Path, tiny_text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "words"
    return export(ExportConfig(run=text_run, out=out, weights_dir=tiny_text_folder.parent)).bundle


@pytest.fixture
def copied(text_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_bundle, tmp_path / "copied"))


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any pretrained weights."""

    def missing(*_: object, **__: object) -> None:
        raise WeightsMissing("nothing is installed here")

    for name in ("find_text_encoder", "find_video_weights"):
        monkeypatch.setattr(weights, name, missing)


def timeline(meld: Meld, model: Path) -> dict[str, Any]:
    out = model.parent / "predictions"
    done = meld("predict", TALK, "--model", model, "--out", out, "--json")
    assert done.status == 0, done.err
    return done.json["files"][0]["timeline"]


def test_a_moved_bundle_predicts_what_its_run_predicts_without_any_weights_installed(
    meld: Meld, run: Path, bundle: Path, tmp_path: Path, nothing_installed: None
) -> None:
    moved = Path(shutil.copytree(bundle, tmp_path / "elsewhere"))
    found = timeline(meld, moved)
    assert found["model"]["modalities"] == ["text", "video", "audio"]
    assert len(found["utterances"]) == 5
    wanted = json.loads((moved / "golden" / "golden.json").read_bytes())
    whole = np.array(wanted["probabilities"]["text+video+audio"])
    for row, utterance in zip(whole, found["utterances"], strict=True):
        given = list(utterance["emotion"]["probabilities"].values())
        np.testing.assert_allclose(given, row[:7], atol=1e-3)


def test_run_and_bundle_give_one_timeline(meld: Meld, run: Path, bundle: Path) -> None:
    of_run, of_bundle = timeline(meld, run), timeline(meld, bundle)
    assert of_run["model"].pop("name") == "all"
    assert of_bundle["model"].pop("name") == "shipped"
    assert of_run == of_bundle


def test_a_bundle_is_measured_as_its_run_is(
    run: Path, bundle: Path, features: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(bundle, tmp_path / "shipped"))  # scores are written into it
    of_run = evaluate(EvaluateConfig(run=run, split="dev"))
    of_bundle = evaluate(EvaluateConfig(run=bundle, split="dev", features=features))
    assert (of_run.fitted_here, of_bundle.fitted_here) == (True, None)
    # What stands in train as well is looked for beside the run's own features alone.
    unlike = {"run": "", "leakage": None, "errors": None, "features": None, "fitted_here": None}
    first, second = (replace(each, **unlike).to_dict() for each in (of_run, of_bundle))
    assert json.dumps(first) == json.dumps(second)  # as text: a number may be none


def test_the_card_says_what_was_measured_and_nothing_of_the_corpus(
    run: Path, bundle: Path, features: Path
) -> None:
    card = (bundle / "README.md").read_text()
    test = json.loads((run / "evaluation-test.json").read_bytes())["emotion"]
    assert f"| **weighted F1** | {test['model']['weighted_f1']:.3f}" in card
    for each in test["model"]["classes"]:
        f1 = "not measured" if each["f1"] is None else f"{each['f1']:.3f}"
        assert f"| {each['label']} | {f1} |" in card
    assert "RANDOM WEIGHTS" in card  # of the generated corpus's video net
    assert "text + video + audio" in card
    assert json.loads((run / "evaluation-dev.json").read_bytes())["errors"]  # texts of the corpus
    for path in bundle.glob("evaluation-*.json"):
        assert json.loads(path.read_bytes())["errors"] is None
    for path in (*bundle.glob("*.json"), bundle / "README.md"):
        assert str(features) not in path.read_text()
        assert str(run.parent) not in path.read_text()


def test_a_run_of_one_modality_of_several_ships_its_encoder_alone(
    features: Path, tmp_path: Path
) -> None:
    config = TrainConfig(
        features=features, out=tmp_path / "run", modalities=("audio",), fit=FitConfig(epochs=1)
    )
    shipped = export(ExportConfig(run=train_fusion(config).run, out=tmp_path / "out"))
    assert {path.name for path in (shipped.bundle / "encoders").iterdir()} == {
        "audio",
        "encoders.json",
    }
    assert ModelChoice(run=shipped.bundle).load().modalities == ("audio",)


def test_verify_trusts_a_bundle_where_it_was_made(meld: Meld, bundle: Path) -> None:
    done = meld("verify", bundle, "--json")
    assert done.status == 0, done.err
    told = done.json
    assert told["trusted"]
    stages = {stage["stage"]: stage["largest"] for stage in told["stages"]}
    assert stages["decoded video"] == stages["decoded audio"] == 0
    assert stages["probabilities from text+video+audio"] < 1e-6
    assert "trusted" in meld("verify", bundle).out


def test_verify_says_by_how_much_another_machine_differs(meld: Meld, copied: Path) -> None:
    """The planted machine computed other features and other probabilities."""
    path = copied / "golden" / "golden.json"
    golden = json.loads(path.read_bytes())
    golden["machine"]["kernels"] = "VSX"  # of a processor that runs none of these tests
    golden["probabilities"]["text"][2][0] += 0.02
    path.write_text(json.dumps(golden))
    values = load_file(copied / "golden" / "features.safetensors")
    values["text"] = values["text"] * np.float32(1.001)
    save_file(values, copied / "golden" / "features.safetensors")
    rehash(copied)
    done = meld("verify", copied)
    assert done.status == 6
    assert "probabilities from text: they differ by 0.02" in done.err
    assert "VSX where it was exported" in done.out
    assert "1.0e-03" in done.out


@pytest.fixture(scope="module")
def graphs(
    text_run: Path, tiny_text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "graphs"
    config = ExportConfig(run=text_run, out=out, onnx=True, weights_dir=tiny_text_folder.parent)
    return export(config).bundle


@pytest.fixture
def traced_once(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export of `text_run` takes the float graphs above: tracing them anew gives the same, and
    takes most of the time of an export in 8 bits."""
    monkeypatch.setattr(
        "fusion.export.export.write_graphs",
        lambda runtime, folder: shutil.copytree(graphs / GRAPHS, folder),
    )


def test_graphs_say_what_pytorch_says(meld: Meld, graphs: Path) -> None:
    told = meld("verify", graphs, "--runtime", "onnx", "--json").json
    assert told["trusted"]
    assert told["runtime"] == "onnx on cpu"
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


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of words alone: dev has 12 dialogues of 3 utterances."""
    folder = tmp_path_factory.mktemp("words")
    rows = [
        f'{number},"{EMOTIONS[number % 7]} number {number}",Joey,{EMOTIONS[number % 7]},'
        f"{SENTIMENTS[number % 3]},{number // 3},{number % 3},1,1"
        for number in range(36)
    ]
    head = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode"
    (folder / "dev_sent_emo.csv").write_text("\n".join([head, *rows]))
    return folder


@pytest.mark.usefixtures("traced_once")
def test_8_bits_that_lose_little_are_written_without_pytorch_and_with_what_they_cost(
    meld: Meld, text_run: Path, tiny_text_folder: Path, words: Path, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    config = ExportConfig(
        run=text_run,
        out=out,
        quantise="int8",
        max_loss=100,
        data=words,
        weights_dir=tiny_text_folder.parent,
    )
    gate = export(config).gate
    assert gate is not None
    by_torch, in_float, in_8_bits = gate.variants
    assert (gate.rows, gate.dialogues) == (36, 12)
    assert in_float.emotion.largest_logit_error < 1e-4 < in_8_bits.emotion.largest_logit_error
    assert in_8_bits.num_bytes < 0.4 * in_float.num_bytes
    assert by_torch.emotion.agreement == in_float.emotion.agreement == 1
    assert not (out / "encoders").exists()
    assert "| ONNX int8 |" in (out / "README.md").read_text()
    exported = json.loads((out / "export.json").read_bytes())
    assert exported["runtimes"] == ["onnx"]
    assert exported["gate"]["passes"]
    told = meld("verify", out, "--json").json
    assert told["trusted"]
    assert timeline(meld, out)["model"]["precision"] == {"text": "int8"}


def test_8_bit_graphs_read_no_cached_features(meld: Meld, graphs: Path, tmp_path: Path) -> None:
    small = Path(shutil.copytree(graphs, tmp_path / "small"))
    change_json("export.json", lambda values: values.update(runtimes=["onnx"]))(small)
    done = meld("evaluate", small, "--features", tmp_path)
    assert done.status == 2
    assert "8-bit graphs, which read no cached features" in done.err


def test_a_folder_that_is_taken_is_refused_before_any_work(
    meld: Meld, graphs: Path, text_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        pytest.fail("the model is loaded")

    monkeypatch.setattr("fusion.inference.predictor.Predictor.load", load)
    (tmp_path / "holiday.jpg").touch()
    for out, told in ((graphs, "holds a run; name another --out"), (tmp_path, "holds no run")):
        done = meld("export", text_run, "--out", out, "--onnx")
        assert (done.status, told in done.err) == (2, True), done.err
    done = meld("export", text_run, "--out", text_run, "--overwrite")
    assert "is needed and lies in" in done.err


@pytest.mark.usefixtures("traced_once")
def test_an_export_that_the_gate_refuses_replaces_nothing_and_shows_what_was_lost(
    meld: Meld,
    text_run: Path,
    text_bundle: Path,
    tiny_text_folder: Path,
    words: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(VariantCost, "passes", lambda self, max_loss: False)
    monkeypatch.setattr("fusion.export.graphs._rank", lambda *_: [])
    out = Path(shutil.copytree(text_bundle, tmp_path / "shipped"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    options = ("--quantise", "int8", "--data", words, "--weights-dir", tiny_text_folder.parent)
    done = meld("export", text_run, "--out", out, "--overwrite", *options)
    assert done.status == 6
    assert "nothing was written" in done.err
    assert "ONNX int8" in done.out
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("traced_once")
def test_layers_that_lose_too_much_in_8_bits_compute_in_float_and_stay_small(
    text_run: Path,
    tiny_text_folder: Path,
    words: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The planted gate lets pass what errs less than all layers in 8 bits do."""
    errors: list[float] = []

    def passes(self: VariantCost, max_loss: float) -> bool:
        errors.append(self.emotion.largest_logit_error)
        return len(errors) == 3

    monkeypatch.setattr(VariantCost, "passes", passes)
    config = ExportConfig(
        run=text_run,
        out=tmp_path / "small",
        quantise="int8",
        data=words,
        weights_dir=tiny_text_folder.parent,
    )
    gate = export(config).gate
    assert gate is not None
    assert len(gate.float_layers) == 2
    in_float, in_8_bits = gate.variants[1:]
    assert in_8_bits.num_bytes < 0.4 * in_float.num_bytes


@pytest.mark.slow
def test_planted_scales_that_are_off_by_two_are_found_and_nothing_is_written(
    meld: Meld,
    text_run: Path,
    tiny_text_folder: Path,
    words: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.onnx import quantise

    right = quantise._round_to_8_bits

    def off_by_two(values: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        rounded, scale = right(values, axes)
        return rounded, 2 * scale

    monkeypatch.setattr(quantise, "_round_to_8_bits", off_by_two)
    out = tmp_path / "small"
    options = ("--quantise", "int8", "--data", words, "--weights-dir", tiny_text_folder.parent)
    done = meld("export", text_run, "--out", out, "--max-loss", "100", *options)
    assert done.status == 6
    assert "the largest error is" in done.err
    assert not out.exists()


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


@pytest.mark.parametrize("option", [("--max-loss", 3), ("--split", "test"), ("--data", "d")])
def test_what_is_measured_is_said_with_quantise_alone(
    meld: Meld, text_run: Path, tmp_path: Path, option: tuple[object, ...]
) -> None:
    done = meld("export", text_run, "--out", tmp_path / "out", *option)
    assert done.status == 2
    assert "nothing is measured without --quantise" in done.err


def test_8_bit_graphs_are_not_exported_again(meld: Meld, graphs: Path, tmp_path: Path) -> None:
    small = Path(shutil.copytree(graphs, tmp_path / "small"))
    change_json("export.json", lambda values: values.update(runtimes=["onnx"]))(small)
    done = meld("export", small, "--out", tmp_path / "out")
    assert done.status == 2
    assert "export the run that they were made from" in done.err


def test_a_run_has_no_graphs(meld: Meld, text_run: Path) -> None:
    done = meld("predict", TALK, "--model", text_run, "--runtime", "onnx")
    assert done.status == 2
    assert "meld export --onnx" in done.err


def test_verify_refuses_a_run(meld: Meld, text_run: Path) -> None:
    done = meld("verify", text_run)
    assert done.status == 4
    assert "is no bundle" in done.err


def test_linked_encoders_are_found_again_and_are_not_in_the_bundle(
    text_run: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "linked"
    config = ExportConfig(
        run=text_run, out=out, link_encoders=True, weights_dir=tiny_text_folder.parent
    )
    assert not (export(config).bundle / "encoders").exists()
    ModelChoice(run=out, weights_dir=tiny_text_folder.parent).load()
    with pytest.raises(WeightsMissing, match="--weights-dir"):
        ModelChoice(run=out).load()


def test_encoders_that_exist_in_one_run_alone_cannot_be_linked(
    text_run: Path, text_bundle: Path, tmp_path: Path
) -> None:
    predictor = ModelChoice(run=text_bundle).load()
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    encoders = dict(predictor.runtime.encoders.items())  # type: ignore[attr-defined]
    recipe = write_encoders(tuned, encoders, predictor.recipe, tuned=("text",))
    checkpoint = read_checkpoint(text_run)
    write_checkpoint(tuned, replace(checkpoint, recipe=recipe, finetuned=("text",)))
    with pytest.raises(UsageError, match="fine-tuned and exists in its run alone"):
        export(ExportConfig(run=tuned, out=tmp_path / "out", link_encoders=True))
    shipped = export(ExportConfig(run=tuned, out=tmp_path / "out")).bundle
    assert ModelChoice(run=shipped).load().recipe == recipe


def test_an_export_replaces_a_bundle_when_asked_and_nothing_of_the_users(
    text_bundle: Path, copied: Path
) -> None:
    (copied / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        export(ExportConfig(run=text_bundle, out=copied))
    export(ExportConfig(run=text_bundle, out=copied, overwrite=True))
    assert (copied / "notes.txt").read_text() == "mine"
    ModelChoice(run=copied).load()


def test_an_export_into_a_folder_of_something_else_is_refused(
    text_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(UsageError, match="holds no run of meld"):
        export(ExportConfig(run=text_bundle, out=tmp_path, overwrite=True))
    assert (tmp_path / "README.md").read_text() == "my project"


def rehash(bundle: Path) -> None:
    """As whoever changes a bundle on purpose would."""
    from fusion.inference.bundle import hash_file
    from pipeline.encoders.weights import hash_weights

    path = bundle / "encoders" / "encoders.json"
    if path.is_file():
        index = json.loads(path.read_bytes())
        index["files"] = {name: hash_weights(path.parent / name) for name in index["files"]}
        path.write_text(json.dumps(index))
    path = bundle / "export.json"
    values = json.loads(path.read_bytes())
    values["files"] = {
        name: hash_file(bundle / name) for name in values["files"] if (bundle / name).is_file()
    }
    path.write_text(json.dumps(values))


def change_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        values = json.loads((bundle / name).read_bytes())
        change(values)
        (bundle / name).write_text(json.dumps(values))

    return apply


def change_weights(
    name: str, change: Callable[[dict[str, np.ndarray]], object]
) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        values = load_file(bundle / name)
        change(values)
        save_file(values, bundle / name, metadata={"format": "pt"})

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        (bundle / name).write_bytes(content)

    return apply


EXECUTED = "was-executed"  # beside the bundle


class Exploit:
    """What a pickle may do when it is loaded."""

    def __init__(self, bundle: Path) -> None:
        self.trace = bundle.parent / EXECUTED

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.trace, "yes"))


def a_pickle(bundle: Path) -> None:
    (bundle / FUSION).write_bytes(pickle.dumps(Exploit(bundle)))


def only_a_pickle(bundle: Path) -> None:
    (bundle / TEXT).unlink()
    (bundle / "encoders/text/pytorch_model.bin").write_bytes(pickle.dumps(Exploit(bundle)))


def code_in_the_bundle(bundle: Path) -> None:
    trace = str(bundle.parent / EXECUTED)
    (bundle / "encoders/text/evil.py").write_text(f"open({trace!r}, 'w').write('yes')")
    change_json(
        "encoders/text/config.json",
        lambda config: config.update(
            auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, model_type="evil"
        ),
    )(bundle)


def first(values: dict[str, np.ndarray], name: str) -> str:
    return next(key for key in values if name in key)


def spoil(values: dict[str, np.ndarray], name: str) -> None:
    key = first(values, name)
    values[key] = np.full_like(values[key], np.nan)


FUSION, TEXT = "model.safetensors", "encoders/text/model.safetensors"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights of another shape": (
        change_weights(FUSION, lambda w: w.update({"heads.emotion.bias": np.zeros(6, "f4")})),
        r"heads.emotion.bias is",
    ),
    "weights that are not numbers": (
        change_weights(FUSION, lambda w: spoil(w, "heads.emotion.weight")),
        "not finite",
    ),
    "an encoder's weights that are not numbers": (
        change_weights(TEXT, lambda w: spoil(w, "attention.self.query.weight")),
        "not finite",
    ),
    "a missing weight": (
        change_weights(FUSION, lambda w: w.pop("heads.emotion.bias")),
        "missing or unknown weights: heads.emotion.bias",
    ),
    "an unknown weight": (
        change_weights(FUSION, lambda w: w.update(extra=np.zeros(1, "f4"))),
        "missing or unknown weights: extra",
    ),
    "an encoder's missing weight": (
        change_weights(TEXT, lambda w: w.pop(first(w, "attention.self.query.weight"))),
        "no usable Hugging Face text model",
    ),
    "a pickle for weights": (a_pickle, "not a safetensors file"),
    "a pickle for an encoder": (only_a_pickle, "no usable Hugging Face text model"),
    "code of its own": (code_in_the_bundle, "no usable Hugging Face text model"),
    "a header of exabytes": (
        write(FUSION, (2**62).to_bytes(8, "little") + b"{}"),
        "not a safetensors file",
    ),
    "labels in another order": (
        change_json("config.json", lambda c: c["labels"]["emotion"].reverse()),
        "labels are",
    ),
    "another version of the run's format": (
        change_json("config.json", lambda c: c.update(format_version=99)),
        "format version 99",
    ),
    "another version of the bundle's format": (
        change_json("export.json", lambda c: c.update(format_version=99)),
        "format version 99",
    ),
    "another version of the encoders' format": (
        change_json("encoders/encoders.json", lambda c: c.update(format_version=99)),
        "format version 99",
    ),
    "dims for all memory there is": (
        change_json("config.json", lambda c: c["dims"]["model"].update(hidden=2**62)),
        "not a run's description",
    ),
    "another recipe than its fingerprint": (
        change_json("config.json", lambda c: c["recipe"].update(revision=3)),
        "does not match its fingerprint",
    ),
    "another encoder than the config's": (
        change_json(
            "encoders/encoders.json",
            lambda c: c["recipe"]["encoders"][0].update(weights_hash="sha256:other"),
        ),
        "is not the one that made the features",
    ),
    "a tokenizer that is none": (
        write("encoders/text/tokenizer.json", b'{"version": "1.0", "model": {"type": "Evil"}}'),
        "no usable Hugging Face text model",
    ),
    "JSON nested without end": (write("config.json", b"[" * 100_000), "not JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_refused_in_a_line_and_executes_nothing(
    kind: str, copied: Path, tmp_path: Path, meld: Meld
) -> None:
    damage, told = HOSTILE[kind]
    damage(copied)
    rehash(copied)
    done = meld("predict", TALK, "--model", copied, "--out", tmp_path / "out", "--json")
    assert done.status in (5, 6), done.err
    assert told in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / EXECUTED).exists()


def test_the_planted_pickle_would_tell_if_it_were_loaded(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Exploit(tmp_path / "bundle")))
    assert (tmp_path / EXECUTED).exists()


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("model.safetensors", lambda path: path.write_bytes(b"other"), "not the file that was"),
        ("model.safetensors", Path.unlink, "is missing"),
        ("golden/talk.mp4", lambda path: path.write_bytes(b"other"), "not the file that was"),
    ],
)
def test_verify_finds_a_file_that_was_changed_on_the_way(
    copied: Path, meld: Meld, name: str, change: Callable[[Path], object], told: str
) -> None:
    change(copied / name)
    done = meld("verify", copied)
    assert done.status == 5
    assert told in done.err


@pytest.mark.parametrize("outside", ["../../secret", "/etc/hostname"])
def test_verify_reads_nothing_outside_of_the_bundle(copied: Path, meld: Meld, outside: str) -> None:
    change_json("export.json", lambda values: values["files"].update({outside: "0" * 64}))(copied)
    done = meld("verify", copied)
    assert done.status == 5
    assert "lies outside of the bundle" in done.err
