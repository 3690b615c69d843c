"""A fine-tuned run owns its encoders: it predicts, is extracted with and fine-tuned again."""

import csv
import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import meld
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.finetuning.finetune import FinetuneResult, finetune
from fusion.inference.checkpoint import read_checkpoint
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.saved import read_encoders
from pipeline.errors import CacheCorrupt, InputError, RecipeMismatch, UsageError, WeightsMissing
from pipeline.extract.extract import ExtractConfig, extract, plan
from pipeline.parallel import engine as parallel
from pipeline.parallel.work import ShardFeatures
from tests.fusion.finetuning.planted_words import (
    BRIEF,
    STEADY,
    Stopped,
    config_for,
    opened,
    stop,
    write_features,
)
from tests.media import write_clip

pytestmark = pytest.mark.heavy


def test_the_run_owns_its_encoders_and_says_so(place: Path, unbroken: FinetuneResult) -> None:
    saved = read_encoders(unbroken.run)
    (spec,) = saved.recipe.encoders
    assert (spec.weights, spec.started_from) == ("finetuned", "pretrained")
    assert read_checkpoint(unbroken.run).recipe == saved.recipe
    assert read_checkpoint(unbroken.run).finetuned == ("text",)
    with pytest.raises(InputError, match="only a fine-tuned run does"):
        read_encoders(place / "run")


def test_the_run_has_a_decoding_of_its_own_dev_predictions(
    place: Path, unbroken: FinetuneResult
) -> None:
    own, start = read_checkpoint(unbroken.run).decoding, read_checkpoint(place / "run").decoding
    assert own is not None
    assert start is not None
    assert own.allowed == start.allowed  # the same train split
    assert (own.emotion, own.sentiment) != (start.emotion, start.sentiment)
    assert unbroken.dev.calibration is not None
    assert unbroken.dev.calibration.emotion is not None
    assert unbroken.dev.calibration.emotion.temperature == own.emotion


@pytest.fixture(scope="module")
def own_features(
    place: Path, unbroken: FinetuneResult, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the run's own encoders make of the corpus."""
    folder = tmp_path_factory.mktemp("own-features")
    return write_features(place / "corpus", folder, EncoderRequest(run=unbroken.run))


def test_features_of_its_encoders_give_what_fine_tuning_measured(
    unbroken: FinetuneResult, own_features: Path
) -> None:
    report = evaluate(EvaluateConfig(run=unbroken.run, split="dev", features=own_features))
    assert report.emotion.model == unbroken.dev.emotion.model


def test_any_media_file_with_a_rows_words_gets_the_probabilities_that_evaluate_gives_the_row(
    tmp_path: Path, unbroken: FinetuneResult, own_features: Path
) -> None:
    table = tmp_path / "dev.csv"
    config = EvaluateConfig(run=unbroken.run, split="dev", features=own_features, predictions=table)
    evaluate(config, draw=False)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    media = write_clip(tmp_path / "any.mp4", num_frames=12)
    model = meld.load(unbroken.run)
    for row in rows[:8]:
        [utterance] = model.predict(media, text=row["text"])
        assert utterance.prediction is not None
        for head in ("emotion", "sentiment"):
            predicted = getattr(utterance.prediction, head)
            assert predicted.label == row[f"predicted_{head}"]
            for name, probability in predicted.probabilities.items():
                assert probability == pytest.approx(float(row[f"{head}_{name}"]), abs=1e-4)
    assert len({row["predicted_emotion"] for row in rows[:8]}) > 1


def test_on_an_old_cache_it_is_refused_with_the_way_out(
    place: Path, unbroken: FinetuneResult
) -> None:
    with pytest.raises(RecipeMismatch) as refused:
        evaluate(EvaluateConfig(run=unbroken.run, split="dev", features=place / "features"))
    assert "meld extract --split dev --encoders" in str(refused.value)
    assert "text.weights: finetuned != pretrained" in str(refused.value)


def test_a_changed_encoder_file_of_a_run_is_noticed(
    place: Path, tmp_path: Path, unbroken: FinetuneResult
) -> None:
    run = shutil.copytree(unbroken.run, tmp_path / "run")
    config = run / "encoders" / "text" / "config.json"
    config.write_text(config.read_text().replace("gelu", "relu"))
    with pytest.raises(CacheCorrupt, match="not the files that fine-tuning wrote"):
        choose_encoder("text", EncoderRequest(run=run), "float32")


def test_a_runs_encoder_files_are_hashed_once_and_not_at_all_for_a_dry_run(
    place: Path, tmp_path: Path, unbroken: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    genuine = hashlib.file_digest

    def count(stream: Any, name: str) -> Any:
        hashed.append(Path(stream.name).name)
        return genuine(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", count)
    config = ExtractConfig(
        data=place / "corpus", features=tmp_path, encoders=EncoderRequest(run=unbroken.run)
    )
    plan(config)
    assert hashed == []
    monkeypatch.setattr("pipeline.extract.extract._encode_missing", stop)
    with pytest.raises(Stopped):
        extract(config)
    assert sorted(hashed) == sorted(set(hashed))
    assert "model.safetensors" in hashed


def test_a_fine_tuned_run_can_be_fine_tuned_again(
    place: Path, tmp_path: Path, unbroken: FinetuneResult, own_features: Path
) -> None:
    again = finetune(
        config_for(
            place,
            tmp_path / "again",
            run=unbroken.run,
            features=own_features,
            weights_dir=None,
            tune=BRIEF,
        )
    )
    assert again.parity < 1e-4
    (spec,) = read_encoders(again.run).recipe.encoders
    assert (spec.weights, spec.started_from) == ("finetuned", "pretrained")


@pytest.fixture
def encoding_here(
    monkeypatch: pytest.MonkeyPatch, encode_here: Callable[..., Iterator[ShardFeatures]]
) -> None:
    """Extraction encodes its text in this process instead of through Ray."""
    monkeypatch.setattr(parallel, "encode_shards", encode_here)


@pytest.mark.usefixtures("encoding_here")
def test_a_run_on_a_fine_tuned_runs_features_can_be_fine_tuned_wherever_both_moved(
    place: Path, tmp_path: Path, unbroken: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """README: runs/tuned makes features-tuned, on which runs/again is trained."""
    project, archive = tmp_path / "project", tmp_path / "archive"
    shutil.copytree(unbroken.run, project / "runs" / "tuned")
    monkeypatch.chdir(project)
    extract(
        ExtractConfig(
            data=place / "corpus",
            features=Path("features-tuned"),
            encoders=EncoderRequest(run=Path("runs/tuned")),
        )
    )
    again = project / "runs" / "again"
    train_fusion(TrainConfig(features=Path("features-tuned"), out=again, fit=FitConfig(epochs=1)))
    assert read_checkpoint(again).encoders_run == "runs/tuned"
    one_epoch = {"tune": replace(STEADY, epochs=1), "weights_dir": None}
    tuned_again = finetune(config_for(place, Path("runs/third"), run=again, **one_epoch))
    assert tuned_again.parity < 1e-4
    with pytest.raises(UsageError, match="is needed and lies in"):  # the encoders it starts with
        finetune(config_for(place, Path("runs/tuned"), run=again, overwrite=True, **one_epoch))

    monkeypatch.chdir(tmp_path)
    (project / "runs").rename(archive)
    assert opened(place, run=archive / "again", **one_epoch).choices[0].path == (
        archive / "tuned" / "encoders" / "text"
    )
    (archive / "tuned").rename(tmp_path / "renamed")
    with pytest.raises(WeightsMissing, match=r"run runs/tuned, which is not there .*--encoders"):
        opened(place, run=archive / "again", **one_epoch)
    named = opened(place, run=archive / "again", encoders=tmp_path / "renamed", **one_epoch)
    assert named.choices[0].path == tmp_path / "renamed" / "encoders" / "text"
