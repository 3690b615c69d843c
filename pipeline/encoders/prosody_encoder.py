"""The prosody encoder: what `prosody.py` measures, as an encoder in PyTorch."""

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.encoders.audio import SoundBatch, Sounds, window_samples
from pipeline.encoders.encoder import GraphSource
from pipeline.encoders.prosody import FEATURES, Prosody
from pipeline.recipe import DecodeConfig


class ProsodyEncoder(nn.Module):
    """Measures pitch, loudness, rhythm, voice quality and timbre of each sound.

    forward: SoundBatch -> float32 [batch, 1, len(FEATURES)]
    """

    batch_size: int | None = None

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__()
        self.prosody = Prosody(sample_rate_hz)
        self.preparation = Sounds(min_samples=window_samples(sample_rate_hz))

    @property
    def dim(self) -> int:
        return len(FEATURES)

    def forward(self, batch: SoundBatch) -> Tensor:
        rows = [self.prosody.measure(sound.waveform.cpu().numpy()) for sound in batch.sounds]
        vectors = torch.tensor([list(row.values()) for row in rows], dtype=torch.float32)
        return vectors.unsqueeze(1).to(batch.sounds[0].waveform.device)

    def layer_depths(self) -> dict[str, int]:
        """It has no parameters."""
        return {}

    def checkpoint_gradients(self) -> None:
        """It has no gradients."""

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        return 0.0

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        assert decode is not None
        return GraphSource(
            reading={
                "kind": "prosody",
                "min_samples": window_samples(decode.sample_rate_hz),
                "sample_rate_hz": decode.sample_rate_hz,
                "features": list(FEATURES),
            }
        )

    def save(self, folder: Path) -> None:
        """It has no weights."""


def build_prosody_encoder(sample_rate_hz: int) -> ProsodyEncoder:
    return ProsodyEncoder(sample_rate_hz).eval()
