"""Small inputs of the three kinds, and what an encoder makes of them. No network is reached."""

import pytest
import torch

from pipeline.encoders.audio import Sound, SoundBatch, SpectrogramEncoder
from pipeline.encoders.text import TextEncoder
from pipeline.errors import MeldError
from pipeline.recipe import DecodeConfig

SENTENCES = ["Oh my God!", "We were on a break, and everybody knows it!", "Hi", "How you doin'?"]
FEW_FRAMES = DecodeConfig(num_frames=4)


def frames(batch: int = 1, height: int = 128, width: int = 171, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, FEW_FRAMES.num_frames, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def noise(samples: int, seed: int = 0, loudness: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return loudness * torch.randn(samples, generator=generator)


def read(
    encoder: TextEncoder, sentences: list[str], contexts: list[str] | None = None
) -> torch.Tensor:
    tokeniser = encoder.preparation
    return encoder(tokeniser.collate(tokeniser(sentences, contexts)))


def hear(encoder: SpectrogramEncoder, waveforms: list[torch.Tensor]) -> torch.Tensor:
    return encoder(SoundBatch(tuple(map(Sound, waveforms))))


def one_line(caught: pytest.ExceptionInfo[MeldError], *parts: object) -> None:
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
