"""Text whose emotion is one planted word, for a tiny BERT that must learn it."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from fusion.finetuning.endtoend import LearningRates
from fusion.finetuning.job import FinetuneConfig, choose_hardware, resolve
from fusion.finetuning.loop import TuneConfig
from fusion.finetuning.setup import LiveData, open_live
from pipeline.cache.format import FeatureCache, write_cache
from pipeline.corpus.annotations import hash_rows, read_corpus
from pipeline.corpus.texts import with_surroundings
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import SPLITS, DecodedClip, Split

CPU = torch.device("cpu")
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


def assert_same_weights(mine: Path, theirs: Path) -> None:
    for name in ("model.safetensors", "encoders/text/model.safetensors"):
        one, other = load_file(mine / name), load_file(theirs / name)
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key]), key


class Stopped(Exception):
    pass


def stop(*_: object) -> None:
    raise Stopped
