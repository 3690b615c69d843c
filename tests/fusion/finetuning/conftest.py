"""A run on planted words and a fine-tuning of it, made once; neither to be written to."""

from pathlib import Path

import pytest

from fusion.finetuning.finetune import FinetuneResult, finetune
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.encoders.choice import EncoderRequest
from tests.conftest import MadeOnce
from tests.fusion.finetuning.planted_words import config_for, write_corpus, write_features
from tests.tiny_bert import write_tiny_bert


@pytest.fixture(scope="session")
def place(minilm_folder: Path, made_once: MadeOnce) -> Path:
    """corpus/, weights/tiny/, features/ and run/, trained on them; no dropout anywhere."""

    def make(place: Path) -> Path:
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

    return made_once("finetune", make)


@pytest.fixture(scope="session")
def unbroken(place: Path, made_once: MadeOnce) -> FinetuneResult:
    return made_once("unbroken", lambda _: finetune(config_for(place, place / "unbroken")))
