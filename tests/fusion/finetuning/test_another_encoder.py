"""A text encoder that the product has never heard of: one entry, and every stage takes it.

It counts words, and no command, setting or file outside this one knows its name.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.finetuning.endtoend import LearningRates
from fusion.finetuning.finetune import finetune
from fusion.finetuning.job import FinetuneConfig
from fusion.finetuning.loop import TuneConfig
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.choice import EncoderRequest
from pipeline.encoders.encoder import EncoderChoice, EncoderEntry, EncoderWish
from pipeline.encoders.registry import ENCODERS
from pipeline.encoders.saved import read_encoders
from pipeline.encoders.weights import load_trained_part, save_trained_part
from pipeline.errors import ClipError, UsageError
from pipeline.extract.extract import ExtractConfig, extract
from pipeline.parallel import engine as parallel
from pipeline.parallel.work import ShardFeatures
from pipeline.recipe import DecodeConfig, EncoderSpec, Precision
from pipeline.schema import SPLITS, DecodedClip

WORDS = 256
CUES = {"joy": ("wonderful", "positive"), "anger": ("terrible", "negative")}
FILLING = "the a we you they coffee house street and then so was on in of today again".split()


# ----------------------------------------------------------------------------- the encoder


class WordCounts:
    """An item is float32 [WORDS], a batch of them [rows, WORDS]."""

    most_rows: int | None = None

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Tensor | None]:
        return [_count(clip.utterance.text) for clip in clips]

    def shortfall(self, item: Tensor) -> ClipError | None:
        return None

    def length(self, item: Tensor) -> int:
        return int(item.sum())

    def augment(self, item: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
        return item

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(items))


def _count(text: str) -> Tensor | None:
    if not text:
        return None
    places = torch.tensor([zlib.crc32(word.encode()) % WORDS for word in text.lower().split()])
    return torch.bincount(places, minlength=WORDS).float()


class WordEncoder(nn.Module):
    batch_size: int | None = 8
    dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.preparation = WordCounts()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Linear(WORDS, 12)

    def forward(self, batch: Tensor) -> Tensor:
        return self.layer(batch).tanh().unsqueeze(1)

    def layer_depths(self) -> dict[str, int]:
        return {"layer.weight": 0, "layer.bias": 0}

    def checkpoint_gradients(self) -> None:
        pass

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        return float(rows * WORDS * value_bytes)

    def save(self, folder: Path) -> None:
        save_trained_part(self.layer, folder / "words.safetensors")


def choose(wish: EncoderWish, precision: Precision) -> EncoderChoice:
    spec = EncoderSpec(
        modality="text",
        name=wish.name,
        weights="none",
        weights_hash="seed 0",
        pooling="sum",
        precision="float32",
    )
    return EncoderChoice(spec=spec)


def build(choice: EncoderChoice, decode: DecodeConfig | None) -> WordEncoder:
    encoder = WordEncoder()
    if choice.path is not None:
        load_trained_part(encoder.layer, choice.path / "words.safetensors")
    return encoder.eval()


ENTRY = EncoderEntry(
    modality="text",
    choose=choose,
    prepare=lambda choice, decode: WordCounts(),
    build=build,
    autocast=False,
)


# -------------------------------------------------------------------------------- the stages


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "words", ENTRY)


@pytest.fixture(autouse=True)
def encoding_here(
    monkeypatch: pytest.MonkeyPatch, encode_here: Callable[..., Iterator[ShardFeatures]]
) -> None:
    """Extraction encodes in this process instead of through Ray."""
    monkeypatch.setattr(parallel, "encode_shards", encode_here)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """One word of each utterance tells its emotion."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for split in SPLITS:
        rng = random.Random(split)
        lines = ["Dialogue_ID,Utterance_ID,Speaker,Utterance,Emotion,Sentiment"]
        for row in range(64):
            emotion = rng.choice(sorted(CUES))
            cue, sentiment = CUES[emotion]
            words = rng.sample([cue, *rng.choices(FILLING, k=5)], k=6)
            lines.append(f"{row // 4},{row % 4},Ann,{' '.join(words)},{emotion},{sentiment}")
        (folder / f"{split}_sent_emo.csv").write_text("\n".join(lines) + "\n")
    return folder


def extract_text(corpus: Path, features: Path, encoders: EncoderRequest) -> Path:
    report = extract(
        ExtractConfig(data=corpus, features=features, modalities=("text",), encoders=encoders)
    )
    assert report.num_failures == 0
    return features


@pytest.mark.heavy
def test_one_entry_is_enough_to_extract_train_and_fine_tune(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = extract_text(corpus, tmp_path / "features", EncoderRequest(text="words"))
    run = train_fusion(
        TrainConfig(
            features=features,
            out=tmp_path / "run",
            model=ModelConfig(dropout=0.0, feature_dropout=0.0),
            fit=FitConfig(epochs=2),
        )
    ).run
    for tune, setting in (
        (TuneConfig(gradient_checkpointing=True), "gradient_checkpointing = True"),
        (TuneConfig(learning_rates=LearningRates(layer_decay=0.5)), "learning_rates.layer_decay"),
    ):
        with pytest.raises(UsageError, match=rf"tune\.{setting}.*: text has no layers"):
            finetune(FinetuneConfig(run=run, data=corpus, out=tmp_path / setting, tune=tune))
    alone = TuneConfig(modality_dropout=0.3)
    with pytest.raises(UsageError, match=r"tune\.modality_dropout = 0\.3: text is the only"):
        finetune(FinetuneConfig(run=run, data=corpus, out=tmp_path / "alone", tune=alone))
    with pytest.raises(UsageError, match=r"bfloat16: the encoders that learn \(text\) compute in"):
        finetune(FinetuneConfig(run=run, data=corpus, out=tmp_path / "b", precision="bfloat16"))
    tuned = finetune(
        FinetuneConfig(
            run=run,
            data=corpus,
            out=tmp_path / "tuned",
            tune=TuneConfig(
                epochs=6,
                batch_size=16,
                modality_dropout=0.0,
                learning_rates=LearningRates(text=3e-2, heads=1e-3),
            ),
        )
    )
    assert tuned.parity < 1e-4
    assert tuned.best.dev_emotion_f1 == 1.0
    (spec,) = read_encoders(tuned.run).recipe.encoders
    assert (spec.name, spec.weights, spec.started_from) == ("words", "finetuned", "none")
    assert spec.precision == "float32"
    again = extract_text(corpus, tmp_path / "again", EncoderRequest(run=tuned.run))
    report = evaluate(EvaluateConfig(run=tuned.run, split="dev", features=again))
    assert report.emotion.model == tuned.dev.emotion.model
    monkeypatch.setitem(ENCODERS, "words", replace(ENCODERS["words"], learns=False))
    for unfreeze, told in ((("text",), "--unfreeze text: its encoder words"), (None, "words")):
        out = tmp_path / f"fixed {unfreeze}"
        with pytest.raises(UsageError, match=rf"{told}.* no parameters to train"):
            finetune(FinetuneConfig(run=run, data=corpus, out=out, unfreeze=unfreeze))
