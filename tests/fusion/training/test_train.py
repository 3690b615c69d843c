"""`train_fusion` and `evaluate` from caches to a run folder, and what they refuse."""

import dataclasses
import io
import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console, RenderableType
from safetensors.torch import load_file, save_file

from console.show.evaluation import render_report
from fusion.data.load import load_split
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.inference.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fusion.model.dims import ModelConfig
from fusion.training.build import build_model
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.history import EpochResult, read_history
from fusion.training.losses import LossConfig
from fusion.training.train import _EpochLog, train_fusion
from pipeline.cache.format import write_cache
from pipeline.errors import (
    CacheCorrupt,
    InputError,
    MismatchError,
    RecipeMismatch,
    StorageError,
    UsageError,
)

pytestmark = pytest.mark.heavy

QUICK = FitConfig(epochs=3, batch_size=150, learning_rate=1e-2)


def make_config(folder: Path) -> TrainConfig:
    return TrainConfig(features=folder / "features", out=folder / "run", fit=QUICK, device="cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, plant_cache) -> Path:
    """Planted caches and a run trained on them; tests work on copies."""
    folder = tmp_path_factory.mktemp("trained")
    for split, rows in (("train", 300), ("dev", 80), ("test", 90)):
        cache = plant_cache(split, rows, modalities=["text", "video"], carriers=["text"])
        write_cache(folder / "features" / f"{split}.h5", cache)
    train_fusion(make_config(folder))
    return folder


@pytest.fixture
def config(trained: Path, features: Path) -> TrainConfig:
    shutil.copytree(trained / "features", features)
    return make_config(features.parent)


@pytest.fixture
def run(trained: Path, config: TrainConfig) -> Path:
    assert config.out is not None
    shutil.copytree(trained / "run", config.out)
    rewrite_config(config.out, features=str(config.features))
    return config.out


def rewrite_config(run: Path, **changes: object) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def shown(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_run_holds_the_model_and_what_was_measured(config, plots):
    epochs = []
    result = train_fusion(config, on_epoch=epochs.append)
    names = {path.name for path in result.run.iterdir()}
    assert {"model.safetensors", "config.json", "metrics.json", "history.jsonl"} <= names
    assert {"dev-confusion.png", "dev-classes.png", "training.png"} <= names
    assert not [name for name in names if name.endswith(".tmp")]
    assert read_history(result.run / "history.jsonl") == epochs
    metrics = json.loads((result.run / "metrics.json").read_text())
    assert metrics["dev"] == result.dev.to_dict()
    assert metrics["best"]["epoch"] == result.best_epoch
    assert result.dev.score == pytest.approx(max(epoch.score for epoch in epochs))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_the_history_is_reported_as_such(tmp_path):
    (tmp_path / "history.jsonl").symlink_to("/dev/full")
    epoch = EpochResult(
        epoch=1,
        train_loss=1.0,
        dev_loss=1.0,
        dev_emotion_f1=None,
        dev_sentiment_f1=0.5,
        score=0.5,
        learning_rate=1e-3,
        seconds=0.1,
    )
    full = pytest.raises(StorageError, match=r"training log.* No space left")
    with full, closing(_EpochLog(tmp_path, TrainConfig())) as epoch_log:
        epoch_log.write(epoch)


def test_dev_measured_from_the_written_model_is_what_training_reported(run):
    report = evaluate(EvaluateConfig(run=run, split="dev"))
    reported = json.loads((run / "metrics.json").read_text())["dev"]
    assert report.to_dict() | {"leakage": None, "errors": None} == reported


def test_a_model_read_back_gives_equal_logits(config, tmp_path):
    data = load_split(config.features, "dev", modalities=None, input="raw")
    model = build_model(data, ModelConfig(), seed=3).eval()
    checkpoint = Checkpoint(
        dims=model.dims,
        model=model,
        recipe=data.recipe,
        projection_hash=None,
        emotion_counts=(1,) * 7,
        sentiment_counts=(1,) * 3,
        settings={},
        features=config.features,
    )
    write_checkpoint(tmp_path, checkpoint)
    again = read_checkpoint(tmp_path)
    assert dataclasses.replace(again, model=model) == checkpoint
    with torch.no_grad():
        one, other = (each(data.features, data.present) for each in (model, again.model))
    assert torch.equal(one.emotion_logits, other.emotion_logits)
    assert torch.equal(one.sentiment_logits, other.sentiment_logits)


def test_the_same_settings_write_the_same_weights(config, trained):
    one, other = trained / "run", train_fusion(config).run
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_test_is_measured_with_the_runs_own_settings(run, plots):
    report = evaluate(EvaluateConfig(run=run))
    assert (report.split, report.rows, report.run) == ("test", 90, "run")
    assert json.loads((run / "evaluation-test.json").read_text()) == report.to_dict()
    assert (run / "test-confusion.png").stat().st_size > 10_000


def test_every_look_at_test_is_counted_and_shown_and_dev_is_free(run):
    assert evaluate(EvaluateConfig(run=run, split="dev")).test_evaluations == 0
    assert not (run / "test-evaluations.jsonl").exists()
    assert evaluate(EvaluateConfig(run=run)).test_evaluations == 1
    report = evaluate(EvaluateConfig(run=run))
    assert report.test_evaluations == 2
    assert json.loads((run / "evaluation-test.json").read_text())["test_evaluations"] == 2
    assert "test was evaluated 2 times with this run" in shown(render_report(report))


def test_training_again_into_the_same_folder_forgets_no_test_evaluation(config, run):
    evaluate(EvaluateConfig(run=run))
    train_fusion(dataclasses.replace(config, overwrite=True))
    assert evaluate(EvaluateConfig(run=run)).test_evaluations == 2


def test_a_test_evaluation_that_cannot_be_recorded_shows_no_numbers(run):
    (run / "test-evaluations.jsonl").mkdir()
    with pytest.raises(StorageError, match="cannot record the test evaluation"):
        evaluate(EvaluateConfig(run=run))
    assert not (run / "evaluation-test.json").exists()


def test_scores_stand_with_their_intervals_and_the_majority_beside_them(run):
    report = evaluate(EvaluateConfig(run=run))
    for head in (report.emotion, report.sentiment):
        for value, bounds in (
            (head.model.weighted_f1, head.weighted_f1_interval),
            (head.model.accuracy, head.accuracy_interval),
        ):
            assert bounds is not None
            assert bounds.value == pytest.approx(value)
            assert bounds.low < value < bounds.high
    bounds = report.emotion.weighted_f1_interval
    text = shown(render_report(report))
    assert str(bounds) in text
    assert f"always {report.emotion.majority_label}" in text
    values = json.loads((run / "evaluation-test.json").read_text())["emotion"]
    assert values["weighted_f1_interval"] == dataclasses.asdict(bounds)


def test_which_test_clips_were_read_is_reported_wherever_a_result_is_shown(run):
    report = evaluate(EvaluateConfig(run=run))
    assert report.to_dict()["test_clips"] == report.test_clips == "fixed"
    assert "test clips fixed" in shown(render_report(report))
    assert json.loads((run / "metrics.json").read_text())["dev"]["test_clips"] == "fixed"


def test_random_weights_are_named_wherever_a_result_is_shown(run):
    report = evaluate(EvaluateConfig(run=run))
    assert report.random_modalities == ("video",)
    text = shown(render_report(report))
    assert "video: RANDOM WEIGHTS" in text
    assert "always neutral" in text or "always" in text
    assert json.loads((run / "metrics.json").read_text())["dev"]["random_modalities"] == ["video"]


def test_a_report_says_how_far_to_believe_it_and_what_missing_modalities_cost(run):
    report = evaluate(EvaluateConfig(run=run))
    decoding = read_checkpoint(run).decoding
    assert decoding is not None
    assert report.calibration.emotion.temperature == decoding.emotion
    assert decoding.emotion.rows == 80  # all of dev
    assert sum(each.rows for each in report.calibration.emotion.before.bins) == 90
    assert report.calibration.sentiment.after.nll < report.calibration.sentiment.before.nll
    assert report.joint.emotion_f1 == pytest.approx(report.emotion.model.weighted_f1)
    assert np.array(decoding.allowed).sum() == 7  # the planted corpus: one sentiment per emotion
    assert [each.modalities for each in report.subsets] == [
        ("text",),
        ("video",),
        ("text", "video"),
    ]
    written = json.loads((run / "evaluation-test.json").read_text())
    assert written["subsets"][1]["modalities"] == ["video"]
    assert written["joint"]["contradictions"] == report.joint.contradictions


def test_the_tables_fit_a_terminal_of_80_columns(run):
    console = Console(file=io.StringIO(), width=80)
    console.print(render_report(evaluate(EvaluateConfig(run=run))))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("temperature", "joint decoding", "a subset of its modalities"):
        assert words in " ".join(shown.split())
    assert "…" not in shown.split("emotion, per class")[0]


def test_a_run_without_a_decoding_is_measured_nevertheless(run):
    rewrite_config(run, decoding=None)
    report = evaluate(EvaluateConfig(run=run))
    assert (report.calibration, report.joint) == (None, None)
    assert len(report.subsets) == 3


def test_embeddings_train_as_well(write_split, config):
    for split, rows in (("train", 300), ("dev", 80)):
        write_split(split, rows, embedded=True)
    result = train_fusion(dataclasses.replace(config, input="embedding"))
    assert read_checkpoint(result.run).projection_hash == "2" * 64
    assert result.dev.emotion.model.weighted_f1 > result.dev.emotion.majority.weighted_f1


def test_only_the_modalities_asked_for_are_used(config):
    result = train_fusion(dataclasses.replace(config, modalities=("text",)))
    assert [each.modality for each in result.dev.presence] == ["text"]
    assert result.dev.random_modalities == ()


def test_layers_side_by_side_are_saved_with_the_run_and_refused_where_there_is_one(config):
    beside = dataclasses.replace(config.model, layers="beside")
    result = train_fusion(dataclasses.replace(config, model=beside))
    checkpoint = read_checkpoint(result.run)
    assert checkpoint.dims.model.layers == "beside"
    text = checkpoint.dims.modalities[0]
    assert checkpoint.model.branches["text"].project.linear.in_features == text.layers * text.dim
    assert evaluate(EvaluateConfig(run=result.run, split="dev")).emotion == result.dev.emotion
    with pytest.raises(UsageError, match=r"model\.layers = beside: no modality .* several layers"):
        train_fusion(dataclasses.replace(config, model=beside, modalities=("video",)))


def test_modality_dropout_is_refused_where_the_caches_have_one_modality(config, write_split):
    for split in ("train", "dev"):
        write_split(split, 40, modalities=["text"])
    fit = dataclasses.replace(config.fit, modality_dropout=0.3)
    with pytest.raises(
        UsageError, match=r"fit\.modality_dropout = 0\.3: text is the only modality"
    ):
        train_fusion(dataclasses.replace(config, fit=fit))


def test_features_made_in_another_way_are_refused_and_the_field_named(
    run, write_split, features, planted_recipe
):
    recipe = planted_recipe(["text", "video"], sample_rate_hz=8000)
    write_split("test", 20, modalities=["text", "video"], recipe=recipe)
    with pytest.raises(RecipeMismatch, match=r"decode.sample_rate_hz: 16000 != 8000"):
        evaluate(EvaluateConfig(run=run))


def test_features_of_other_shape_under_the_same_recipe_are_refused(run, write_split, features):
    cache = write_split("test", 20, modalities=["text", "video"])
    narrower = {**cache.raw, "text": cache.raw["text"][:, :2]}
    write_cache(features / "test.h5", dataclasses.replace(cache, raw=narrower))
    with pytest.raises(MismatchError, match=r"text features of test are \[2, 24\]"):
        evaluate(EvaluateConfig(run=run))


def test_a_modality_absent_in_all_of_test_is_no_obstacle(run, write_split, features):
    cache = write_split("test", 40, modalities=["text", "video"], carriers=["text"])
    cache.present["video"][:] = False
    write_cache(features / "test.h5", dataclasses.replace(cache, raw={"text": cache.raw["text"]}))
    report = evaluate(EvaluateConfig(run=run))
    assert [each.rows for each in report.presence] == [40, 0]


def test_a_folder_in_use_is_refused_unless_told(config, run):
    with pytest.raises(
        UsageError, match="holds a run; name another --out, or replace it with --overwrite"
    ):
        train_fusion(config)
    (run / "notes.txt").write_text("mine")
    (run / "evaluation-test.json").write_text("{}")
    train_fusion(dataclasses.replace(config, overwrite=True))
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "evaluation-test.json").exists()


def test_unnamed_runs_get_names_of_their_own(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unnamed = dataclasses.replace(config, out=None, fit=dataclasses.replace(QUICK, epochs=1))
    runs = {train_fusion(unnamed).run for _ in range(2)}
    assert len(runs) == 2
    assert all(run.parent == Path("runs") and "text+video" in run.name for run in runs)


def test_a_run_that_never_finished_is_no_run(config, run):
    (run / "config.json").unlink()
    with pytest.raises(InputError, match="unfinished"):
        read_checkpoint(run)
    with pytest.raises(InputError, match="no such folder"):
        read_checkpoint(run / "nowhere")


def test_weights_that_are_no_numbers_are_refused(run):
    weights = load_file(run / "model.safetensors")
    weights["heads.emotion.bias"][2] = float("nan")
    save_file(weights, run / "model.safetensors")
    with pytest.raises(CacheCorrupt, match=r"heads\.emotion\.bias"):
        read_checkpoint(run)


def test_a_run_whose_values_overflow_is_not_measured(run):
    """The largest of seven NaN is the first: neutral."""
    weights = load_file(run / "model.safetensors")
    save_file({name: value * 1e30 for name, value in weights.items()}, run / "model.safetensors")
    with pytest.raises(CacheCorrupt, match=r"not finite for \d+ of \d+ utterances"):
        evaluate(EvaluateConfig(run=run, split="dev"))


def test_weights_of_another_shape_or_name_are_refused(run):
    weights = load_file(run / "model.safetensors")
    bias = weights.pop("heads.emotion.bias")
    save_file(weights, run / "model.safetensors")
    with pytest.raises(CacheCorrupt, match=r"missing or unknown weights: heads\.emotion\.bias"):
        read_checkpoint(run)
    save_file({**weights, "heads.emotion.bias": bias[:3].clone()}, run / "model.safetensors")
    with pytest.raises(CacheCorrupt, match=r"heads\.emotion\.bias is .* \[3\]"):
        read_checkpoint(run)


def test_a_truncated_file_is_refused(run):
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CacheCorrupt, match="safetensors"):
        read_checkpoint(run)
    (run / "config.json").write_text("{")
    with pytest.raises(CacheCorrupt, match="not JSON"):
        read_checkpoint(run)


def test_labels_in_another_order_are_refused(run):
    labels = json.loads((run / "config.json").read_text())["labels"]
    rewrite_config(run, labels={**labels, "emotion": sorted(labels["emotion"])})
    with pytest.raises(MismatchError, match="labels"):
        read_checkpoint(run)


def test_a_recipe_that_was_edited_is_refused(run):
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    rewrite_config(run, recipe={**recipe, "revision": 99})
    with pytest.raises(CacheCorrupt, match="fingerprint"):
        read_checkpoint(run)


def test_dims_that_ask_for_all_memory_are_refused_before_taking_it(run):
    dims = json.loads((run / "config.json").read_text())["dims"]
    dims["model"]["hidden"] = 10**12
    rewrite_config(run, dims=dims)
    with pytest.raises(CacheCorrupt, match=r"config.json says .*1000000000000"):
        read_checkpoint(run)


def test_a_run_whose_settings_are_no_table_is_refused(run):
    rewrite_config(run, settings=5)
    with pytest.raises(CacheCorrupt, match="settings 5 are no table"):
        read_checkpoint(run)


def test_a_model_too_large_to_build_is_one_line_and_costs_no_earlier_run(config, run):
    huge = dataclasses.replace(config, overwrite=True, model=ModelConfig(hidden=10**12))
    with pytest.raises(UsageError, match=r"hidden = 1000000000000.*cannot be built") as raised:
        train_fusion(huge)
    assert len(str(raised.value).splitlines()) == 1
    read_checkpoint(run)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", [r"a$\foo$b", "\u60c5\u611f", "[red]run"])
def test_a_run_may_be_called_what_a_folder_may_be_called(config, name):
    out = config.features.parent / name
    quick = dataclasses.replace(config, out=out, fit=dataclasses.replace(QUICK, epochs=1))
    result = train_fusion(quick)
    assert f"{name}, dev" in shown(render_report(result.dev))


def test_settings_come_from_tables_and_round_trip_through_the_run(run, trained):
    built = TrainConfig.from_mapping(
        {
            "features": "elsewhere",
            "modalities": ["audio"],
            "fit": {"epochs": 5, "learning_rate": 1, "loss": {"label_smoothing": 0.2}},
        }
    )
    assert built == TrainConfig(
        features=Path("elsewhere"),
        modalities=("audio",),
        fit=FitConfig(epochs=5, learning_rate=1.0, loss=LossConfig(label_smoothing=0.2)),
    )
    assert TrainConfig.from_mapping(read_checkpoint(run).settings) == make_config(trained)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fit": {"lerning_rate": 1e-3}}, r"fit\.lerning_rate; did you mean learning_rate"),
        ({"modality": ["text"]}, "did you mean modalities"),
        ({"fit": {"epochs": 2.5}}, r"fit\.epochs must be int"),
        ({"seed": True}, "seed must be int"),
        ({"fit": 3}, "fit is a table"),
        ({"input": "row"}, "input must be one of raw, embedding"),
        ({"fit": {"loss": {"label_smoothing": 2.0}}}, r"fit\.loss: label_smoothing"),
        ({"modalities": ["smell"]}, "text, video, audio"),
    ],
)
def test_settings_that_make_no_sense_are_named(wrong, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig.from_mapping(wrong)


def test_a_link_that_leads_back_to_itself_is_no_folder_for_a_run(config, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match=r"cannot make the run's folder: .*loop"):
        train_fusion(dataclasses.replace(config, out=tmp_path / "loop"))
