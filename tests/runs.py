"""Runs that were not trained."""

from pathlib import Path

import torch

from fusion.inference.checkpoint import Checkpoint, write_checkpoint
from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.fusion import FusionModel
from pipeline.encoders.encoder import EncoderWish
from pipeline.encoders.registry import find_entry
from pipeline.recipe import FeatureRecipe


def write_run_of_words(run: Path, encoder: Path) -> None:
    """A model of random weights on a tiny text encoder: where only the files matter."""
    wish = EncoderWish(name=str(encoder), weights="pretrained")
    spec = find_entry("text", str(encoder)).choose(wish, "float32").spec
    dims = FusionDims(
        modalities=(ModalityDims(modality="text", layers=3, dim=48),),
        model=ModelConfig(hidden=8, projection=8),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = FusionModel(dims).eval()
    run.mkdir()
    checkpoint = Checkpoint(
        model=model,
        dims=dims,
        recipe=FeatureRecipe(encoders=(spec,), decode=None),
        projection_hash=None,
        emotion_counts=(1,) * 7,
        sentiment_counts=(1,) * 3,
        settings={},
        features=None,
    )
    write_checkpoint(run, checkpoint)
