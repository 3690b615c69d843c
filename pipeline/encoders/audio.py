"""The spectrogram encoder: log-mel statistics and a small seeded CNN; it needs no weights."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchaudio
from torch import Tensor, nn

from pipeline.encoders.augment import AugmentConfig, draw
from pipeline.encoders.encoder import GraphSource
from pipeline.encoders.weights import load_trained_part, save_trained_part
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
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

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        assert decode is not None
        return GraphSource(
            net=SpectrogramGraph(self),
            inputs={"waveform": torch.zeros(decode.sample_rate_hz)},
            lengths={"waveform": {0: "samples"}},
            outputs=("features",),
            reading={
                "kind": "waveform",
                "min_samples": window_samples(decode.sample_rate_hz),
                "sample_rate_hz": decode.sample_rate_hz,
            },
        )

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


class SpectrogramGraph(nn.Module):
    """The same computation by operators that a graph has: no Fourier transform and no quantiles.

    The transform is a convolution with windowed sines and cosines; frames are cut and the edges
    reflected, as `torch.stft` does it, by indices; quantiles are read off the sorted values.

    forward: float32 [samples] -> float32 [1, dim]
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, encoder: SpectrogramEncoder) -> None:
        super().__init__()
        self.cnn = encoder.cnn
        self.min_samples = encoder.min_samples
        self.num_fft: int = encoder.mel.n_fft
        self.hop: int = encoder.mel.hop_length
        window = encoder.mel.spectrogram.window.double()
        left = (self.num_fft - len(window)) // 2
        right = self.num_fft - len(window) - left
        waves = sines_and_cosines(self.num_fft) * nn.functional.pad(window, (left, right))
        self.register_buffer("basis", waves.float().unsqueeze(1))  # [2 * bins, 1, num_fft]
        # Divided by the floor, to which 1 is then added: the exporter takes a constant as near to
        # zero as the floor for zero and leaves it out (onnxscript 0.7), and silence would be NaN.
        filters = encoder.mel.mel_scale.fb.T / LOG_FLOOR
        self.register_buffer("filters", filters.contiguous())  # [mels, bins]

    def forward(self, waveform: Tensor) -> Tensor:
        log_mel = self.log_mel(waveform)
        responses = self.cnn(log_mel[None, None])[0].flatten(1)
        pooled = torch.cat([responses.mean(1), responses.amax(1)])
        return torch.cat([self.statistics(log_mel), pooled]).unsqueeze(0)

    def log_mel(self, waveform: Tensor) -> Tensor:
        """[samples] -> [mels, time]"""
        samples = torch.sym_max(waveform.shape[0], self.min_samples)
        last = samples - 1
        at = (torch.arange(samples + self.num_fft) - self.num_fft // 2).abs()
        at = last - (last - at).abs()
        padded = torch.cat([waveform, waveform.new_zeros(self.min_samples)])[at]
        waves = nn.functional.conv1d(padded[None, None], self.basis, stride=self.hop)[0]
        real, imaginary = waves.chunk(2, dim=0)
        power = self.filters @ (real * real + imaginary * imaginary)
        return torch.log(power + 1) + math.log(LOG_FLOOR)

    def statistics(self, log_mel: Tensor) -> Tensor:
        """`mel_statistics`"""
        ordered = log_mel.sort(dim=1).values
        last = torch.scalar_tensor(log_mel.shape[1], dtype=torch.float32) - 1
        mean = log_mel.mean(1)
        change = (log_mel[:, 1:] - log_mel[:, :-1]).abs().mean(1)
        spread = (log_mel - mean[:, None]).square().mean(1).sqrt()
        quantiles = [_quantile(ordered, share * last) for share in QUANTILES]
        return torch.cat([mean, spread, *quantiles, change])


def sines_and_cosines(length: int) -> Tensor:
    """float64 [2 * (length // 2 + 1), length]; cosines first. Angles are reduced while they are
    whole numbers: the sine of a large angle is less exact."""
    turns = torch.outer(torch.arange(length // 2 + 1), torch.arange(length)) % length
    angles = turns.double() * (2 * math.pi / length)
    return torch.cat([angles.cos(), -angles.sin()])


def _quantile(ordered: Tensor, rank: Tensor) -> Tensor:
    """Between the two values that are nearest to `rank`; ordered: [mels, time], rising."""
    below = ordered.index_select(1, rank.floor().long()[None])[:, 0]
    above = ordered.index_select(1, rank.ceil().long()[None])[:, 0]
    return below + (above - below) * (rank - rank.floor())


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
