"""A corpus without a dev split: dialogues of train choose the epoch, and everyone knows which."""

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console, RenderableType

from console.show.ablation import render_ablation
from console.show.comparison import render_comparison
from console.show.evaluation import render_report
from console.show.training import show_training
from fusion.data.batches import Rows
from fusion.data.set_aside import SetAside
from fusion.data.split import pool_splits
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.evaluation.leakage import Leakage
from fusion.experiments.ablation import AblateConfig, ablate
from fusion.experiments.compare import CompareConfig, compare
from fusion.inference.checkpoint import read_checkpoint
from fusion.model.fusion import FusionModel
from fusion.reporting.html import HtmlReportConfig, write_html_report
from fusion.reporting.reproduce import remake
from fusion.training.build import build_model
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig, Training, fit_together
from fusion.training.parts import load_parts
from fusion.training.train import train_fusion
from pipeline.cache.format import FeatureCache, read_cache, write_cache
from pipeline.errors import InputError, MismatchError, UsageError

pytestmark = pytest.mark.heavy

QUICK = FitConfig(epochs=2, batch_size=64, learning_rate=3e-3)


@pytest.fixture
def config(features: Path, write_split: Callable[..., FeatureCache]) -> TrainConfig:
    """20 dialogues of train, nothing else."""
    write_split("train", 100)
    return TrainConfig(features=features, out=features.parent / "run", fit=QUICK, device="cpu")


def shown(renderable: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_corpus_of_one_split_is_trained_on_and_says_what_chose(
    config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train_fusion(config)
    aside = result.dev.set_aside
    assert aside is not None
    assert (result.train.rows, result.dev.rows) == (90, 10)
    assert str(aside) == "dev: 2 of the 20 dialogues of train, held out"
    checkpoint = read_checkpoint(result.run)
    assert checkpoint.set_aside == aside
    assert sum(checkpoint.emotion_counts) == 90
    assert checkpoint.settings["dev_share"] == 0.1
    metrics = json.loads((result.run / "metrics.json").read_text())
    assert metrics["set_aside"] == metrics["dev"]["set_aside"] == aside.to_dict()
    show_training(result, config.features, as_json=False)
    told = capsys.readouterr().out
    assert str(aside) in told
    assert f"meld evaluate {result.run}" not in told  # there is no test
    assert "meld crossval" in told


def test_evaluating_its_dev_measures_the_same_dialogues_and_its_train_the_others(
    config: TrainConfig,
) -> None:
    result = train_fusion(config)
    dev = evaluate(EvaluateConfig(run=result.run, split="dev"))
    assert dev.to_dict() | {"leakage": None, "errors": None} == result.dev.to_dict()
    assert "held out" in shown(render_report(dev))
    assert evaluate(EvaluateConfig(run=result.run, split="train")).rows == 90
    with pytest.raises(InputError, match=r"test\.h5: no such cache \(there is train\)"):
        evaluate(EvaluateConfig(run=result.run))


def test_what_was_set_aside_is_no_leak_from_train(config: TrainConfig) -> None:
    run = train_fusion(config).run
    leakage = evaluate(EvaluateConfig(run=run, split="dev")).leakage
    assert isinstance(leakage, Leakage)
    assert (leakage.seen.rows, leakage.copied) == (0, ())


def test_a_share_that_is_asked_for_is_taken_from_train_and_dev_is_not_read(
    config: TrainConfig, features: Path
) -> None:
    (features / "dev.h5").write_bytes(b"no cache at all")
    result = train_fusion(dataclasses.replace(config, dev_share=0.25))
    assert result.dev.set_aside is not None
    assert len(result.dev.set_aside.dialogues) == 5
    assert (result.train.rows, result.dev.rows) == (75, 25)


def test_where_dev_has_a_cache_nothing_is_set_aside(
    config: TrainConfig, write_split: Callable[..., FeatureCache]
) -> None:
    write_split("dev", 20)
    result = train_fusion(config)
    assert (result.train.rows, result.dev.rows, result.dev.set_aside) == (100, 20, None)
    assert read_checkpoint(result.run).settings["dev_share"] is None


def test_runs_of_other_seeds_and_modalities_are_compared_on_one_dev(
    config: TrainConfig, tmp_path: Path
) -> None:
    first = train_fusion(config).run
    other = dataclasses.replace(config, seed=5, modalities=("audio",), out=tmp_path / "other")
    compared = compare(
        CompareConfig(run_a=first, run_b=train_fusion(other).run, split="dev", samples=100)
    )
    assert compared.rows == 10
    assert compared.set_aside_a == compared.set_aside_b is not None
    assert "A: dev: 2 of the 20 dialogues of train" in shown(render_comparison(compared))


def test_going_on_from_a_run_leaves_aside_what_it_left_aside(
    config: TrainConfig, tmp_path: Path, write_split: Callable[..., FeatureCache]
) -> None:
    first = train_fusion(dataclasses.replace(config, dev_share=0.3))
    write_split("dev", 20)  # came later, and was never asked
    on = dataclasses.replace(config, start=first.run, out=tmp_path / "on")
    second = train_fusion(on)
    assert second.dev.set_aside == first.dev.set_aside
    assert read_checkpoint(second.run).settings["dev_share"] == 0.3
    with pytest.raises(UsageError, match=r"--dev-share 0\.1: the run of --start set 0\.3"):
        train_fusion(dataclasses.replace(on, dev_share=0.1, out=tmp_path / "refused"))


def test_nothing_of_a_train_that_the_start_learned_from_can_choose(
    config: TrainConfig, tmp_path: Path, write_split: Callable[..., FeatureCache]
) -> None:
    write_split("dev", 20)
    start = train_fusion(config).run
    on = dataclasses.replace(config, start=start, out=tmp_path / "on")
    with pytest.raises(UsageError, match=r"--dev-share 0\.2: .*learned from all of train"):
        train_fusion(dataclasses.replace(on, dev_share=0.2))
    (config.features / "dev.h5").unlink()
    with pytest.raises(InputError, match=r"no dev\.h5: .*learned from all of train"):
        train_fusion(on)


def test_no_dialogue_of_train_is_unseen_by_encoders_that_were_tuned_on_it(
    config: TrainConfig, write_split: Callable[..., FeatureCache], planted_recipe: Callable
) -> None:
    recipe = planted_recipe(["text", "audio"])
    text, audio = recipe.encoders
    tuned = (dataclasses.replace(text, weights="finetuned"), audio)
    write_split("train", 100, recipe=dataclasses.replace(recipe, encoders=tuned))
    with pytest.raises(MismatchError, match=r"fine-tuned on the labels of train.*--start"):
        train_fusion(config)
    train_fusion(dataclasses.replace(config, modalities=("audio",)))


def test_features_without_those_dialogues_cannot_measure_its_dev(config: TrainConfig) -> None:
    run = train_fusion(config).run
    cache = read_cache(config.features / "train.h5")
    write_cache(
        config.features / "train.h5",
        dataclasses.replace(cache, dialogue_id=cache.dialogue_id + 1000),
    )
    with pytest.raises(MismatchError, match="these features of train have no dialogue"):
        evaluate(EvaluateConfig(run=run, split="dev"))


def test_one_dialogue_that_cannot_be_shared_is_told_with_what_asked_for_it(
    config: TrainConfig, write_split: Callable[..., FeatureCache]
) -> None:
    write_split("train", 5)
    with pytest.raises(InputError, match=r"no dev\.h5: train has 1 dialogue, one with labels"):
        train_fusion(config)
    write_split("dev", 10)
    with pytest.raises(InputError, match=r"--dev-share 0\.5: train has 1 dialogue") as raised:
        train_fusion(dataclasses.replace(config, dev_share=0.5))
    assert "no dev" not in str(raised.value)
    assert "leave --dev-share out" in str(raised.value)


@pytest.mark.parametrize("share", [0, 1, 1.5, float("nan"), True, "some"])
def test_a_share_without_meaning_is_refused(share: object) -> None:
    with pytest.raises(UsageError, match="dev_share"):
        TrainConfig.from_mapping({"dev_share": share})


def test_an_ablation_and_a_page_say_which_dialogues_dev_is(
    config: TrainConfig, tmp_path: Path
) -> None:
    report = ablate(
        AblateConfig(
            features=config.features,
            modalities=("text",),
            fusions=("late",),
            seeds=1,
            fit=QUICK,
            out=tmp_path / "ablation",
        )
    )
    assert report.rows == 10
    assert isinstance(report.set_aside, SetAside)
    assert str(report.set_aside) in shown(render_ablation(report))
    run = train_fusion(config).run
    page = HtmlReportConfig(runs=(run,), split="dev", out=tmp_path / "report.html")
    write_html_report(page)
    words = page.out.read_text()
    assert "dev: 2 of the 20 dialogues of train, held out" in words
    assert "--dev-share 0.1" in words  # of the command that makes it again


def test_a_refit_learns_from_all_of_train_and_keeps_the_scores_of_what_was_held_out(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train_fusion(dataclasses.replace(config, out=tmp_path / "first"))
    again = train_fusion(dataclasses.replace(config, refit=True))
    assert again.dev.set_aside == first.dev.set_aside
    scores, as_before = again.dev.to_dict(), first.dev.to_dict()
    assert scores | {"run": ""} == as_before | {"run": ""}
    assert (first.rows_refitted, again.rows_refitted) == (None, 100)
    before, after = read_checkpoint(first.run), read_checkpoint(again.run)
    assert after.decoding == before.decoding
    assert after.set_aside is None
    assert sum(after.emotion_counts) == 100
    assert leave_nothing_out(config).items() <= values_of(after.model).items()
    assert evaluate(EvaluateConfig(run=again.run, split="train")).rows == 100
    with pytest.raises(InputError, match=r"dev\.h5: no such cache"):
        evaluate(EvaluateConfig(run=again.run, split="dev"))
    show_training(again, config.features, as_json=False)
    assert "then trained again on all 100 rows of train" in capsys.readouterr().out
    commands = remake(after, again.run, data=None).commands
    assert [" --refit" in command for command in commands] == [False, True]


def leave_nothing_out(config: TrainConfig) -> dict[str, bytes]:
    """By hand: both parts as one, every epoch, the last one's weights."""
    parts = load_parts(
        config.features, modalities=None, input="raw", dev_share=None, loss=config.fit.loss
    )
    whole = pool_splits([parts.train, parts.dev])
    model = build_model(whole, config.model, seed=config.seed)
    rows = Rows.prepare(model, whole, torch.device("cpu"))
    training = Training(model=model, train=rows, dev=rows, seed=config.seed, chooses_epoch=False)
    [result] = fit_together([training], config.fit)
    assert result.best.epoch == config.fit.epochs
    return values_of(model)


def values_of(model: FusionModel) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def test_a_refit_is_refused_where_it_would_change_nothing(
    config: TrainConfig, write_split: Callable[..., FeatureCache], tmp_path: Path
) -> None:
    run = train_fusion(config).run
    with pytest.raises(UsageError, match="--refit: the run of --start"):
        dataclasses.replace(config, start=run, refit=True)
    write_split("dev", 20)
    with pytest.raises(UsageError, match="--refit: dev has a cache"):
        train_fusion(dataclasses.replace(config, refit=True, out=tmp_path / "again"))


def test_dev_of_another_corpus_is_its_own_and_not_the_same_dialogue_numbers(
    config: TrainConfig, tmp_path: Path, plant_cache: Callable[..., FeatureCache]
) -> None:
    run = train_fusion(config).run
    aside = read_checkpoint(run).set_aside
    assert aside is not None
    other = tmp_path / "other"
    cache = plant_cache("train", 150)
    texts = [f"another {text}" for text in cache.text]
    write_cache(other / "train.h5", dataclasses.replace(cache, text=texts, rows_hash="3" * 64))
    with pytest.raises(MismatchError, match="set aside"):
        evaluate(EvaluateConfig(run=run, split="dev", features=other))
    as_it_is = evaluate(EvaluateConfig(run=run, split="train", features=other))
    assert (as_it_is.rows, as_it_is.set_aside) == (150, None)
    write_cache(other / "dev.h5", plant_cache("dev", 35))
    dev = evaluate(EvaluateConfig(run=run, split="dev", features=other))
    assert (dev.rows, dev.set_aside, dev.fitted_here) == (35, None, False)
    (other / "train.h5").unlink()
    dev = evaluate(EvaluateConfig(run=run, split="dev", features=other))
    assert (dev.rows, dev.set_aside, dev.fitted_here) == (35, None, False)
    again = Path(shutil.copytree(config.features, tmp_path / "again"))
    own = evaluate(EvaluateConfig(run=run, split="dev", features=again))
    assert (own.rows, own.fitted_here) == (10, True)
    assert own.set_aside is not None
    assert own.set_aside.dialogues == aside.dialogues
