"""Fine-tuning: a planted word is learned, in parts or by workers alike, and the best is kept."""

import gc
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from fusion.finetuning.clips import shuffled_batches
from fusion.finetuning.endtoend import LearningRates, parameter_groups
from fusion.finetuning.finetune import FinetuneResult, finetune
from fusion.finetuning.loop import StepResult, load
from fusion.finetuning.setup import build_end_to_end
from fusion.finetuning.workers import Worker
from fusion.inference.checkpoint import read_checkpoint
from pipeline.errors import CacheCorrupt, InputError, RecipeMismatch, UsageError
from tests.fusion.finetuning.planted_words import BRIEF, CPU, STEADY, config_for, opened

pytestmark = pytest.mark.heavy


def test_a_planted_word_that_frozen_features_hide_is_learned(
    place: Path, unbroken: FinetuneResult
) -> None:
    frozen = json.loads((place / "run" / "metrics.json").read_text())["best"]["dev_emotion_f1"]
    assert frozen < 0.9
    assert unbroken.best.dev_emotion_f1 is not None
    assert unbroken.best.dev_emotion_f1 > 0.95  # all of 32 rows, or all but one


def test_encoders_do_not_change_while_only_the_heads_are_trained(place: Path) -> None:
    model = build_end_to_end(opened(place), CPU)
    model.let_encoders_learn(False)
    assert not any(p.requires_grad for p in model.encoders.parameters())
    assert all(p.requires_grad for p in model.fusion.parameters())
    model.train()
    assert not any(module.training for module in model.encoders.by_modality["text"].modules())


def test_every_parameter_is_in_one_group_and_lower_layers_learn_slower(place: Path) -> None:
    model = build_end_to_end(opened(place), CPU)
    rates = LearningRates(text=1e-3, heads=1e-2, layer_decay=0.5)
    groups = parameter_groups(model, rates, weight_decay=0.1)
    by_id = {id(p): group for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(by_id) == sum(len(group["params"]) for group in groups)
    expected = {"embeddings.word": 2.5e-4, "layer.0.": 5e-4, "layer.1.": 1e-3}
    for part, rate in expected.items():
        paths = [path for path in named if part in path]
        assert paths
        assert {by_id[id(named[path])]["lr"] for path in paths} == {rate}
    assert by_id[id(named["fusion.heads.emotion.weight"])]["lr"] == 1e-2
    for path, parameter in named.items():
        if ".pooler." in path:
            assert id(parameter) not in by_id
        else:
            assert by_id[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


def test_parts_of_a_batch_add_up_to_the_batch(
    place: Path, tmp_path: Path, unbroken: FinetuneResult
) -> None:
    in_parts = finetune(
        config_for(place, tmp_path / "run", tune=replace(STEADY, micro_batch_size=7))
    )
    for one, other in zip(unbroken.history[1:], in_parts.history[1:], strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
        assert one.dev_loss == pytest.approx(other.dev_loss, abs=1e-4)


def test_gradient_checkpointing_changes_memory_not_the_result(
    place: Path, tmp_path: Path, unbroken: FinetuneResult
) -> None:
    config = config_for(place, tmp_path / "run", tune=replace(STEADY, gradient_checkpointing=True))
    again = finetune(config)
    assert again.history[-1].dev_loss == pytest.approx(unbroken.history[-1].dev_loss, abs=1e-4)


@pytest.mark.slow
def test_two_ray_train_workers_have_the_loss_curve_of_one(
    place: Path, tmp_path: Path, unbroken: FinetuneResult
) -> None:
    told: list[StepResult] = []
    two = finetune(config_for(place, tmp_path / "run", workers=2), on_step=told.append)
    assert len(two.history) == len(unbroken.history)
    for one, other in zip(unbroken.history[1:], two.history[1:], strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
        assert one.dev_loss == pytest.approx(other.dev_loss, abs=1e-4)
    assert not (tmp_path / "run" / "checkpoints" / "ray").exists()


def test_a_loss_that_is_no_number_stops_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, output: Any, *_: object, **__: object) -> torch.Tensor:
        return output.emotion_logits.sum() * float("nan")

    monkeypatch.setattr("fusion.finetuning.loop.MultiTaskLoss.__call__", broken)
    with pytest.raises(UsageError, match="the loss became nan in epoch 1"):
        finetune(config_for(place, tmp_path / "run"))


def test_the_start_is_kept_where_no_epoch_is_better(place: Path, tmp_path: Path) -> None:
    """Rates at which every epoch forgets what the start knew."""
    rates = LearningRates(text=0.5, heads=0.5)
    wild = replace(STEADY, learning_rates=rates, epochs=4, patience=2)
    result = finetune(config_for(place, tmp_path / "run", tune=wild))
    assert [each.epoch for each in result.history] == [0, 1, 2]  # patience counts from the start
    assert result.best.epoch == 0
    assert result.history[0].train_loss is None
    start = read_checkpoint(result.start).model.state_dict()
    kept = read_checkpoint(result.run).model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in start.items())
    assert result.dev.score == pytest.approx(result.history[0].score)


def test_without_dev_the_dialogues_that_the_start_set_aside_choose_here_too(
    place: Path, tmp_path: Path
) -> None:
    corpus, features = tmp_path / "corpus", tmp_path / "features"
    corpus.mkdir()
    shutil.copy(place / "corpus" / "train_sent_emo.csv", corpus)
    features.mkdir()
    shutil.copy(place / "features" / "train.h5", features)
    config = replace(
        config_for(place, tmp_path / "run", tune=replace(STEADY, epochs=1)),
        run=None,
        data=corpus,
        features=features,
        dev_share=0.25,
    )
    result = finetune(config)
    aside = result.dev.set_aside
    assert aside is not None
    assert len(aside.dialogues) == 6  # of 24
    assert read_checkpoint(result.start).set_aside == aside
    assert read_checkpoint(result.run).set_aside == aside
    assert result.dev.rows == 24
    assert result.plan.clips == 72


def test_every_row_is_in_one_batch_beside_rows_of_its_length() -> None:
    lengths = [random.Random(row).randint(3, 60) for row in range(1000)]
    batches = shuffled_batches(lengths, 16, seed=1, epoch=1)
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    spread = [max(map(lengths.__getitem__, b)) - min(map(lengths.__getitem__, b)) for b in batches]
    assert np.mean(spread) < 5
    assert batches == shuffled_batches(lengths, 16, seed=1, epoch=1)
    assert batches != shuffled_batches(lengths, 16, seed=1, epoch=2)


@pytest.mark.heavy
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_damaged_clip_is_reported_in_one_line_whoever_reads_it(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch waits so long, 5 s by default, for the process that read it.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)

    class Damaged(Dataset):
        preparations: ClassVar[dict[str, Any]] = {}
        reads_media = True

        def __getitem__(self, epoch_and_row: tuple[int, int]) -> None:
            raise CacheCorrupt(f"shard-0: row {epoch_and_row[1]} is damaged: decode it again")

    worker = Worker(device=torch.device("cpu"))
    with pytest.raises(CacheCorrupt) as caught:
        list(load(Damaged(), [[7]], worker, epoch=1, ahead=ahead))
    assert str(caught.value) == "shard-0: row 7 is damaged: decode it again"
    del caught
    gc.collect()


def test_a_mistaken_command_leaves_nothing_and_destroys_nothing(
    place: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        finetune(config_for(place, tmp_path / "new", run=tmp_path / "typo"))
    assert not (tmp_path / "new").exists()
    for inputs in ({"out": place / "run"}, {"out": place}):
        with pytest.raises(UsageError, match="is needed and lies in"):
            finetune(config_for(place, overwrite=True, **{"out": place, **inputs}))
    assert (place / "run" / "config.json").is_file()


def test_what_is_refused_after_its_folder_was_made_leaves_the_folder_to_the_corrected_command(
    place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    moved = tmp_path / "corpus"
    shutil.copytree(place / "corpus", moved)
    with (moved / "train_sent_emo.csv").open("a") as file:
        file.write("99,0,Ann,a wonderful coffee,joy,positive\n")
    with pytest.raises(RecipeMismatch):
        finetune(config_for(place, out, data=moved, tune=BRIEF))
    assert [path.name for path in out.iterdir()] == [".meld-run"]
    assert finetune(config_for(place, out, tune=BRIEF)).run == out
