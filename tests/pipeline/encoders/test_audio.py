"""The spectrogram encoder: its statistics, any sound and rate, silence and splinters."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.audio import SpectrogramEncoder, build_audio_encoder, mel_statistics
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipFeatures, ClipKey, DecodedClip, Utterance
from tests.pipeline.encoders.inputs import hear, noise


@pytest.fixture(scope="module")
def spectrogram() -> SpectrogramEncoder:
    return build_audio_encoder(16_000)


def test_the_statistics_of_a_spectrogram_by_hand() -> None:
    """[mels, time]: a band that goes up and down, and one that rises."""
    statistics = mel_statistics(torch.tensor([[0.0, 4, 0, 4, 2], [0.0, 1, 2, 3, 4]]))
    mean, spread, low, middle, high, change = statistics.view(6, 2)
    assert mean.tolist() == [2, 2]
    assert spread.tolist() == pytest.approx([3.2**0.5, 2**0.5])
    assert low.tolist() == pytest.approx([0, 0.4])
    assert middle.tolist() == [2, 2]
    assert high.tolist() == pytest.approx([4, 3.6])
    assert change.tolist() == [3.5, 1]  # how lively, not where it ends


@pytest.mark.parametrize("samples", [0, 1, 399, 512, 1024, 16_000])
@pytest.mark.parametrize("loudness", [0.0, 1e-7, 1.0])
def test_silence_and_splinters_are_finite(
    spectrogram: SpectrogramEncoder, samples: int, loudness: float
) -> None:
    with torch.inference_mode():
        features = hear(spectrogram, [noise(samples, loudness=loudness)])
    assert features.shape[:2] == (1, 1)
    assert torch.isfinite(features).all()


def encode_alone(waveform: NDArray[np.float32]) -> ClipFeatures:
    utterance = Utterance(key=ClipKey("train", 0, 0), text="")
    choice = choose_encoder("audio", EncoderRequest(), "float32")
    clips = [DecodedClip(utterance=utterance, waveform=waveform)]
    [features] = encode_clips(Encoders([choice], DecodeConfig()), clips)
    return features


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_sound_that_fills_no_window_is_absent_and_recorded(samples: int) -> None:
    """25 ms at 16 kHz are 400 samples; padding would be most of what is pooled."""
    features = encode_alone(noise(samples).numpy())
    assert features.raw == {}
    [failure] = features.failures
    assert (failure.modality, failure.code, failure.lost) == ("audio", "nothing_to_encode", True)


@pytest.mark.parametrize("samples", [400, 16_000])
def test_silence_is_a_measurement_and_present(samples: int) -> None:
    features = encode_alone(np.zeros(samples, np.float32))
    assert np.isfinite(features.raw["audio"]).all()
    assert features.failures == ()


def test_louder_higher_and_livelier_sound_all_differ(spectrogram: SpectrogramEncoder) -> None:
    times_s = torch.arange(16_000) / 16_000
    low, high = torch.sin(2 * torch.pi * 200 * times_s), torch.sin(2 * torch.pi * 3000 * times_s)
    bursts = low * (times_s % 0.2 < 0.1)
    with torch.inference_mode():
        features = hear(spectrogram, [0.1 * low, 0.5 * low, 0.1 * high, 0.1 * bursts])[:, 0]
        quiet, loud = hear(spectrogram, [noise(16_000), noise(16_000, loudness=0.5)])[:, 0, :80]
    assert torch.cdist(features, features).add(torch.eye(4) * 1e9).min() > 1
    spread = features[:, 80:160]
    assert spread[3].mean() > spread[0].mean() + 0.5
    assert torch.allclose(loud - quiet, torch.tensor(25.0).log(), atol=1e-3)  # power is squared


def test_a_sound_is_encoded_the_same_whoever_is_beside_it(spectrogram: SpectrogramEncoder) -> None:
    sounds = [noise(16_000), noise(700, 1), noise(48_000, 2)]
    with torch.inference_mode():
        together = hear(spectrogram, sounds)
        alone = torch.cat([hear(spectrogram, [sound]) for sound in sounds])
    assert torch.equal(together, alone)


def test_the_filters_are_the_same_in_every_process(spectrogram: SpectrogramEncoder) -> None:
    torch.manual_seed(123)
    again = build_audio_encoder(16_000)
    for key, value in again.state_dict().items():
        assert torch.equal(value, spectrogram.state_dict()[key])


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.filterwarnings("ignore:At least one mel filterbank")
def test_any_sample_rate_of_a_recipe_works(rate_hz: int) -> None:
    encoder = build_audio_encoder(rate_hz)
    with torch.inference_mode():
        assert torch.isfinite(hear(encoder, [noise(10), noise(rate_hz)])).all()
