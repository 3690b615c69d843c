"""The spectrogram encoder: log-mel statistics and a small seeded CNN; it needs no weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from pipeline.encoders.weights import load_trained_part

NUM_MELS = 80
WINDOW_S = 0.025
HOP_S = 0.010
# Added before the logarithm: about -90 dB, so silence is a finite constant.
LOG_FLOOR = 1e-9
MIN_SAMPLES = 1024
MIN_FFT = 512
QUANTILES = (0.1, 0.5, 0.9)
CNN_CHANNELS = (16, 32, 64)


class SpectrogramEncoder(nn.Module):
    """Log-mel spectrogram -> statistics over time and globally pooled CNN responses.

    The statistics (mean, spread, quantiles, mean change per mel band) carry loudness, timbre and
    how lively the voice is. The CNN's filters are random but fixed by seed 0 (random features in
    the sense of Rahimi & Recht 2007): a projection of local patterns, not a trained network;
    fine-tuning may train it.

    forward: list of [batch] float32 [samples] -> float32 [batch, 1, dim]; `masks`, one per
    waveform, hide bands and times from it (SpecAugment; Park et al. 2019, arXiv 1904.08779).
    """

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__()
        window = round(WINDOW_S * sample_rate_hz)
        num_fft = max(MIN_FFT, 1 << (window - 1).bit_length())  # the window has to fit in
        self.min_samples = max(MIN_SAMPLES, num_fft)
        self.mel = torchaudio.transforms.MelSpectrogram(
            sample_rate=sample_rate_hz,
            n_fft=num_fft,
            win_length=window,
            hop_length=round(HOP_S * sample_rate_hz),
            n_mels=NUM_MELS,
            f_min=20.0,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.cnn = _small_cnn()

    @property
    def trained_part(self) -> nn.Module:
        return self.cnn

    def log_mel(self, waveform: Tensor) -> Tensor:
        """float32 [samples] -> [mels, time], natural logarithm of power."""
        missing = self.min_samples - waveform.shape[-1]
        padded = nn.functional.pad(waveform, (0, max(missing, 0)))
        return torch.log(self.mel(padded) + LOG_FLOOR)

    def forward(
        self, waveforms: Sequence[Tensor], masks: Sequence["SpectrogramMask | None"] | None = None
    ) -> Tensor:
        # One at a time: lengths differ, and padding would leak into the statistics.
        hidden = masks if masks is not None else [None] * len(waveforms)
        rows = [self._encode(*pair) for pair in zip(waveforms, hidden, strict=True)]
        return torch.stack(rows).unsqueeze(1)

    def _encode(self, waveform: Tensor, mask: "SpectrogramMask | None") -> Tensor:
        log_mel = self.log_mel(waveform)  # [mels, time]
        if mask is not None:
            log_mel = mask.apply(log_mel)
        responses = self.cnn(log_mel[None, None])[0].flatten(1)  # [channels, mels' * time']
        pooled = torch.cat([responses.mean(1), responses.amax(1)])
        return torch.cat([mel_statistics(log_mel), pooled])


@dataclass(frozen=True)
class SpectrogramMask:
    """A band of frequencies and a span of time to hide, as shares of the whole: (from, to)."""

    band: tuple[float, float]
    span: tuple[float, float]

    def apply(self, log_mel: Tensor) -> Tensor:
        """[mels, time] -> the same; hidden is the clip's own mean, not a silence it never had."""
        mels, time = log_mel.shape
        hidden = torch.zeros_like(log_mel, dtype=torch.bool)
        hidden[round(self.band[0] * mels) : round(self.band[1] * mels)] = True
        hidden[:, round(self.span[0] * time) : round(self.span[1] * time)] = True
        return torch.where(hidden, log_mel.mean(), log_mel)


def mel_statistics(log_mel: Tensor) -> Tensor:
    """[mels, time] -> [mels * 6]: mean, standard deviation, quantiles, mean absolute change."""
    quantiles = torch.quantile(log_mel, log_mel.new_tensor(QUANTILES), dim=1)  # [3, mels]
    change = (log_mel[:, 1:] - log_mel[:, :-1]).abs().mean(1)
    spread = log_mel.std(dim=1, correction=0)
    return torch.cat([log_mel.mean(1), spread, quantiles.flatten(), change])


def _small_cnn() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels_in = 1
    for channels in CNN_CHANNELS:
        layers += [nn.Conv2d(channels_in, channels, 3, stride=2, padding=1), nn.ReLU()]
        channels_in = channels
    return nn.Sequential(*layers)


def build_audio_encoder(sample_rate_hz: int, path: Path | None = None) -> SpectrogramEncoder:
    """`path`: fine-tuned weights of its CNN.

    Raises:
        MismatchError: the file is no state dict of this CNN.
    """
    encoder = SpectrogramEncoder(sample_rate_hz)
    if path is not None:
        load_trained_part(encoder.cnn, path)
    return encoder.eval()
