"""A bundle predicts what its run predicts, wherever it lies, and `meld verify` says so."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.export.export import ExportConfig, export
from fusion.inference.load import ModelChoice
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.encoders import weights
from pipeline.errors import WeightsMissing
from tests.bundles.forging import rehash
from tests.bundles.talk import timeline
from tests.conftest import Meld

pytestmark = pytest.mark.heavy


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


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any pretrained weights."""

    def missing(*_: object, **__: object) -> None:
        raise WeightsMissing("nothing is installed here")

    for name in ("find_text_encoder", "find_video_weights"):
        monkeypatch.setattr(weights, name, missing)


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


def test_verify_refuses_a_run(meld: Meld, text_run: Path) -> None:
    done = meld("verify", text_run)
    assert done.status == 4
    assert "is no bundle" in done.err
