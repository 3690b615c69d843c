"""The spectrogram encoder: log-mel statistics and a small seeded CNN; it needs no weights."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from pipeline.encoders.augment import AugmentConfig, draw
from pipeline.encoders.weights import load_trained_part, save_trained_part
from pipeline.errors import ClipError
from pipeline.schema import DecodedClip

NAME = "spectrogram"
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

    forward: SoundBatch -> float32 [batch, 1, dim]
    """

    batch_size: int | None = None

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__()
        window = window_samples(sample_rate_hz)
        self.preparation = Sounds(min_samples=window)
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
    def dim(self) -> int:
        return 6 * NUM_MELS + 2 * CNN_CHANNELS[-1]

    def log_mel(self, waveform: Tensor) -> Tensor:
        """float32 [samples] -> [mels, time], natural logarithm of power."""
        missing = self.min_samples - waveform.shape[-1]
        padded = nn.functional.pad(waveform, (0, max(missing, 0)))
        return torch.log(self.mel(padded) + LOG_FLOOR)

    def forward(self, batch: "SoundBatch") -> Tensor:
        # One at a time: lengths differ, and padding would leak into the statistics.
        return torch.stack([self._encode(sound) for sound in batch.sounds]).unsqueeze(1)

    def _encode(self, sound: "Sound") -> Tensor:
        log_mel = self.log_mel(sound.waveform)  # [mels, time]
        if sound.mask is not None:
            log_mel = sound.mask.apply(log_mel)
        responses = self.cnn(log_mel[None, None])[0].flatten(1)  # [channels, mels' * time']
        pooled = torch.cat([responses.mean(1), responses.amax(1)])
        return torch.cat([mel_statistics(log_mel), pooled])

    def layer_depths(self) -> dict[str, int]:
        """All layers have the same learning rate."""
        return dict.fromkeys((path for path, _ in self.named_parameters()), 0)

    def checkpoint_gradients(self) -> None:
        """Does nothing: it keeps hardly any intermediate values."""

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        return 0.0  # beside the other encoders'

    def save(self, folder: Path) -> None:
        save_trained_part(self.cnn, folder / f"{NAME}.safetensors")


@dataclass(frozen=True)
class SpectrogramMask:
    """A band of frequencies and a span of time to hide, as shares of the whole: (from, to)."""

    band: tuple[float, float]
    span: tuple[float, float]

    def apply(self, log_mel: Tensor) -> Tensor:
        """[mels, time] -> the same; masked parts are set to the clip's own mean."""
        mels, time = log_mel.shape
        hidden = torch.zeros_like(log_mel, dtype=torch.bool)
        hidden[round(self.band[0] * mels) : round(self.band[1] * mels)] = True
        hidden[:, round(self.span[0] * time) : round(self.span[1] * time)] = True
        return torch.where(hidden, log_mel.mean(), log_mel)


@dataclass(frozen=True)
class Sound:
    """waveform: float32 [samples]; mask: what training hides of its spectrogram."""

    waveform: Tensor
    mask: SpectrogramMask | None = None


@dataclass(frozen=True)
class SoundBatch:
    sounds: tuple[Sound, ...]

    def to(self, device: torch.device) -> "SoundBatch":
        return SoundBatch(
            tuple(replace(sound, waveform=sound.waveform.to(device)) for sound in self.sounds)
        )


class Sounds:
    """A clip's waveform; a batch of them side by side, each as long as it is.

    min_samples: shorter sound does not fill one window of the spectrogram: there is nothing to pool
    """

    most_rows: int | None = None

    def __init__(self, *, min_samples: int) -> None:
        self._min_samples = min_samples

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Sound | None]:
        return [self._prepare(clip) for clip in clips]

    def _prepare(self, clip: DecodedClip) -> Sound | None:
        if clip.waveform is None or len(clip.waveform) < self._min_samples:
            return None
        return Sound(torch.from_numpy(clip.waveform))

    def shortfall(self, item: Sound) -> ClipError | None:
        return None

    def length(self, item: Sound) -> int:
        return 0  # each is encoded alone: beside whom does not matter

    def augment(self, item: Sound, config: AugmentConfig, generator: torch.Generator) -> Sound:
        """Changes the loudness, and masks a band and a span of time (SpecAugment; Park et al. 2019,
        arXiv 1904.08779)."""
        gain_db = (2 * draw(generator) - 1) * config.gain_db
        return Sound(item.waveform * 10 ** (gain_db / 20), draw_mask(config, generator))

    def collate(self, items: Sequence[Sound]) -> SoundBatch:
        return SoundBatch(tuple(items))


def window_samples(sample_rate_hz: int) -> int:
    return round(WINDOW_S * sample_rate_hz)


def draw_mask(config: AugmentConfig, generator: torch.Generator) -> SpectrogramMask | None:
    if config.band == config.span == 0:
        return None
    return SpectrogramMask(
        band=_draw_interval(config.band, generator), span=_draw_interval(config.span, generator)
    )


def _draw_interval(longest: float, generator: torch.Generator) -> tuple[float, float]:
    length = draw(generator) * longest
    start = draw(generator) * (1 - length)
    return start, start + length


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
    """`path`: a folder that `save` wrote fine-tuned weights of its CNN into.

    Raises:
        MismatchError: the file is no state dict of this CNN.
    """
    encoder = SpectrogramEncoder(sample_rate_hz)
    if path is not None:
        load_trained_part(encoder.cnn, path / f"{NAME}.safetensors")
    return encoder.eval()
