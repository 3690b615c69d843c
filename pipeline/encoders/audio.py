"""The spectrogram encoder: log-mel statistics and a small seeded CNN; it needs no weights."""

from collections.abc import Sequence

import torch
import torchaudio
from torch import Tensor, nn

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

    forward: list of [batch] float32 [samples] -> float32 [batch, 1, dim]
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

    def log_mel(self, waveform: Tensor) -> Tensor:
        """float32 [samples] -> [mels, time], natural logarithm of power."""
        missing = self.min_samples - waveform.shape[-1]
        padded = nn.functional.pad(waveform, (0, max(missing, 0)))
        return torch.log(self.mel(padded) + LOG_FLOOR)

    def forward(self, waveforms: Sequence[Tensor]) -> Tensor:
        # One at a time: lengths differ, and padding would leak into the statistics.
        return torch.stack([self._encode(waveform) for waveform in waveforms]).unsqueeze(1)

    def _encode(self, waveform: Tensor) -> Tensor:
        log_mel = self.log_mel(waveform)  # [mels, time]
        responses = self.cnn(log_mel[None, None])[0].flatten(1)  # [channels, mels' * time']
        pooled = torch.cat([responses.mean(1), responses.amax(1)])
        return torch.cat([mel_statistics(log_mel), pooled])


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


def build_audio_encoder(sample_rate_hz: int) -> SpectrogramEncoder:
    return SpectrogramEncoder(sample_rate_hz).eval()
