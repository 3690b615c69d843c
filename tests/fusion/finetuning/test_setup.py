"""Before step 1: raw input gives the logits of the cache, and what does not fit is refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.data.load import load_split
from fusion.finetuning.clips import shuffled_batches
from fusion.finetuning.endtoend import LearningRates
from fusion.finetuning.finetune import FinetuneResult, finetune
from fusion.finetuning.job import FinetuneConfig
from fusion.finetuning.setup import build_end_to_end, check_parity
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.predict import predict_rows
from fusion.inference.predictor import Predictor
from fusion.inference.words import Turn, predict_words
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.cache.format import read_cache, write_cache
from pipeline.corpus.annotations import read_corpus
from pipeline.encoders.choice import EncoderRequest
from pipeline.errors import ParityError, RecipeMismatch, UsageError
from pipeline.recipe import DecodeConfig
from tests.fusion.finetuning.planted_words import (
    BRIEF,
    CPU,
    ROWS,
    STEADY,
    config_for,
    opened,
    write_features,
)

pytestmark = pytest.mark.heavy


def test_before_step_1_raw_input_gives_the_logits_of_the_cache(unbroken: FinetuneResult) -> None:
    assert unbroken.parity < 1e-4


def test_a_folder_in_which_no_encoder_can_be_written_is_refused(place: Path) -> None:
    """Not after the training."""
    out = place / "caf\udce9"
    with pytest.raises(UsageError, match="a name that is no UTF-8"):
        finetune(config_for(place, out))
    assert not out.exists()


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


def run_on(
    request: EncoderRequest, corpus: Path, folder: Path, decode: DecodeConfig | None = None
) -> Path:
    """folder/features as `request` says, and folder/run, trained on them."""
    features = write_features(corpus, folder / "features", request, decode)
    train_fusion(TrainConfig(features=features, out=folder / "run", fit=FitConfig(epochs=1)))
    return folder / "run"


def test_a_run_on_text_alone_needs_no_clips_though_its_cache_was_made_from_some(
    place: Path, tmp_path: Path
) -> None:
    request = EncoderRequest(text=str(place / "weights" / "tiny"))
    run = run_on(request, place / "corpus", tmp_path, DecodeConfig())
    assert opened(place, run=run).recipe.decode is None


# ------------------------------------------------------------------------------------- context


def test_with_context_the_same_function_stands_at_step_0(place: Path, tmp_path: Path) -> None:
    request = EncoderRequest(text=str(place / "weights" / "tiny"), context=2)
    run = run_on(request, place / "corpus", tmp_path)
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
    run = run_on(request, place / "corpus", tmp_path)
    live = opened(place, run=run)
    assert check_parity(build_end_to_end(live, CPU), live, CPU) < 1e-4
    assert_words_say_what_the_cache_says(run, tmp_path / "features", place)
    batches = shuffled_batches(live.train.lengths, 16, seed=0, epoch=1, groups=live.train.groups)
    assert sorted(row for batch in batches for row in batch) == list(range(ROWS["train"]))
    dialogues = [{row // 4 for row in batch} for batch in batches]
    assert sum(map(len, dialogues)) == ROWS["train"] // 4  # each in one batch
    result = finetune(config_for(place, tmp_path / "tuned", run=run, tune=BRIEF))
    assert result.history[1].train_loss is not None
    assert read_checkpoint(result.run).recipe.encoders[0].dialogue == (
        "whole" if future else "past"
    )
