"""The bundled MiniLM, and random weights of torchvision's video net. Neither to be written to."""

from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from pipeline.encoders.text import TextEncoder, build_text_encoder


@pytest.fixture(scope="session")
def minilm(minilm_folder: Path) -> TextEncoder:
    return build_text_encoder(minilm_folder, (-1,), "float32", pretrained=True)


@pytest.fixture(scope="session")
def video_state() -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return get_model("r3d_18", weights=None).state_dict()
