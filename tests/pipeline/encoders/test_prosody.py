"""The prosody encoder against voices that are made up: pitch, jitter, shimmer, noise and syllables
are planted, and have to be found."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torchaudio
from numpy.typing import NDArray

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.audio import Sound
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.pitch import Framing, hann, spectra_of, track_pitch
from pipeline.encoders.prosody import FEATURES, Prosody, cosine_transform, mel_filters
from pipeline.encoders.prosody_encoder import ProsodyEncoder, build_prosody_encoder
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipKey, DecodedClip, Utterance

RATE = 16_000
Wave = NDArray[np.float32]


@pytest.fixture(scope="module")
def prosody() -> Prosody:
    return Prosody(RATE)


@pytest.fixture(scope="module")
def encoder() -> ProsodyEncoder:
    return build_prosody_encoder(RATE)


def pulses(f0_hz: float, seconds: float = 1.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """When the vocal folds close, and how strongly: a steady voice."""
    times_s = np.arange(0.01, seconds - 0.01, 1 / f0_hz)
    return times_s, np.ones(len(times_s))


def vowel(
    times_s: NDArray[np.float64], strengths: NDArray[np.float64], seconds: float = 1.0
) -> Wave:
    """An "a": each pulse rings in three formants, from its exact time on, not the next sample's."""
    clock_s = np.arange(round(seconds * RATE)) / RATE
    signal = np.zeros(len(clock_s))
    for time_s, strength in zip(times_s, strengths, strict=True):
        since_s = clock_s[(clock_s >= time_s) & (clock_s < time_s + 0.02)] - time_s
        first = round(math.ceil(time_s * RATE))
        for formant_hz, bandwidth_hz, share in (
            (700, 130, 1.0),
            (1220, 150, 0.5),
            (2600, 200, 0.2),
        ):
            ring = np.sin(2 * np.pi * formant_hz * since_s) * np.exp(
                -np.pi * bandwidth_hz * since_s
            )
            signal[first : first + len(ring)] += strength * share * ring
    return (0.3 * signal / max(np.abs(signal).max(), 1e-9)).astype(np.float32)


def noise(samples: int, loudness: float = 0.1, seed: int = 0) -> Wave:
    return (loudness * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def clip_of(waveform: Wave) -> DecodedClip:
    utterance = Utterance(key=ClipKey("train", 0, 0), text="")
    return DecodedClip(utterance=utterance, waveform=waveform)


def octaves(f0_hz: float) -> float:
    return math.log2(f0_hz / 150)


def test_every_value_has_a_name_and_is_in_its_place(
    prosody: Prosody, encoder: ProsodyEncoder
) -> None:
    waveform = vowel(*pulses(120))
    values = prosody.measure(waveform)
    assert tuple(values) == FEATURES
    [row] = encoder(encoder.preparation.collate([Sound(torch.from_numpy(waveform))]))
    assert row.shape == (1, len(FEATURES))
    assert row.dtype == torch.float32
    assert row[0].tolist() == pytest.approx(list(values.values()), rel=1e-6)


@pytest.mark.parametrize("f0_hz", [82, 110, 150, 223, 310, 440, 580])
def test_the_pitch_of_a_vowel(prosody: Prosody, f0_hz: float) -> None:
    values = prosody.measure(vowel(*pulses(f0_hz)))
    assert values["pitch_median"] == pytest.approx(octaves(f0_hz), abs=0.01)  # 0.7 %
    assert values["pitch_range"] < 0.02
    assert values["voiced_share"] > 0.9
    assert values["pitch_change"] < 0.3


def test_a_rising_voice_rises_and_a_falling_one_falls(prosody: Prosody) -> None:
    """From 120 to 240 Hz within a second: one octave."""
    positions = np.arange(0, 173)  # 120 * (2 ** t - 1) / ln 2 pulses until t
    times_s = np.log2(1 + positions * math.log(2) / 120)
    rising = prosody.measure(vowel(times_s, np.ones(len(times_s))))
    falling = prosody.measure(vowel(times_s, np.ones(len(times_s)))[::-1].copy())
    assert rising["pitch_slope"] == pytest.approx(1, abs=0.05)
    assert rising["pitch_range"] == pytest.approx(0.8, abs=0.05)  # between both outer tenths
    assert rising["pitch_rise"] == pytest.approx(1, abs=0.1)
    assert falling["pitch_slope"] == pytest.approx(-1, abs=0.05)


def test_noise_and_silence_are_not_voiced(prosody: Prosody) -> None:
    hiss = prosody.measure(noise(RATE))
    assert hiss["voiced_share"] < 0.05
    assert hiss["sounding_share"] == 1
    silence = prosody.measure(np.zeros(RATE, np.float32))
    assert silence["voiced_share"] == silence["sounding_share"] == 0
    assert silence["pitch_median"] == silence["jitter"] == silence["syllables_per_s"] == 0


@pytest.mark.parametrize("share", [0.005, 0.01, 0.03])
def test_planted_jitter_is_found(prosody: Prosody, share: float) -> None:
    """Each cycle has a length of its own; the mean difference of two Gaussian draws is 2 / sqrt(pi)
    deviations."""
    found = []
    for seed in range(4):
        draws = np.random.default_rng(seed).standard_normal(280)
        lengths_s = (1 + share * math.sqrt(math.pi) / 2 * draws) / 140
        times_s = 0.01 + np.cumsum(lengths_s)
        found.append(prosody.measure(vowel(times_s, np.ones(280), 2.0))["jitter"])
    assert np.mean(found) == pytest.approx(share, rel=0.25)


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_planted_shimmer_is_found(prosody: Prosody, share: float) -> None:
    found = []
    for seed in range(4):
        times_s, strengths = pulses(140, 2.0)
        draws = np.random.default_rng(seed).standard_normal(len(strengths))
        strengths = strengths + share * math.sqrt(math.pi) / 2 * draws
        found.append(prosody.measure(vowel(times_s, strengths, 2.0))["shimmer"])
    assert np.mean(found) == pytest.approx(share, rel=0.25)


def test_a_steady_voice_has_neither(prosody: Prosody) -> None:
    values = prosody.measure(vowel(*pulses(140)))
    assert values["jitter"] < 0.001
    assert values["shimmer"] < 0.005
    assert values["cycle_correlation"] > 0.99


@pytest.mark.parametrize("ratio_db", [5, 10, 20])
def test_planted_noise_lowers_the_harmonics_to_noise_ratio(
    prosody: Prosody, ratio_db: float
) -> None:
    voice = vowel(*pulses(200))
    power = float(np.mean(voice[800:-800] ** 2))
    hiss = noise(len(voice), loudness=math.sqrt(power / 10 ** (ratio_db / 10)))
    assert prosody.measure(voice + hiss)["hnr_mean"] == pytest.approx(ratio_db, abs=1.0)


@pytest.mark.parametrize("per_s", [2, 4, 6])
def test_syllables_are_counted(prosody: Prosody, per_s: int) -> None:
    voice = vowel(*pulses(130, 2.0), 2.0)
    times_s = np.arange(len(voice)) / RATE
    swell = (0.52 - 0.48 * np.cos(2 * np.pi * per_s * times_s)).astype(np.float32)
    values = prosody.measure(voice * swell)
    assert values["syllables_per_s"] == pytest.approx(per_s, abs=0.3)


def test_loudness_is_in_decibels_of_full_scale(prosody: Prosody) -> None:
    times_s = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 200 * times_s).astype(np.float32)
    assert prosody.measure(tone)["loudness_median"] == pytest.approx(-3.01, abs=0.1)
    assert prosody.measure(tone / 10)["loudness_median"] == pytest.approx(-23.01, abs=0.1)
    fading = tone * (10 ** (-20 * times_s / 20)).astype(np.float32)
    assert prosody.measure(fading)["loudness_slope"] == pytest.approx(-20, abs=1)


def test_a_brighter_voice_is_flatter(prosody: Prosody) -> None:
    dull = vowel(*pulses(150))
    bright = np.diff(dull, prepend=dull[:1]) * 3
    values, brighter = prosody.measure(dull), prosody.measure(bright.astype(np.float32))
    assert brighter["alpha_ratio_voiced_mean"] > values["alpha_ratio_voiced_mean"] + 3
    assert brighter["hammarberg_voiced_mean"] < values["hammarberg_voiced_mean"]
    assert brighter["centroid_voiced_mean"] > values["centroid_voiced_mean"]


def test_an_octave_is_not_mistaken_where_the_loudness_changes(prosody: Prosody) -> None:
    """The tracker's path: no frame of a steady voice may jump."""
    framing = Framing.at(RATE)
    times_s, strengths = pulses(180)
    strengths[::2] *= 0.7  # as if every second cycle were the voice's own
    frames = framing.cut(vowel(times_s, strengths))
    frames = frames - frames.mean(axis=1, keepdims=True)
    power = np.abs(spectra_of(frames * hann(framing.window), framing.num_fft)) ** 2
    found = track_pitch(frames, power, framing)
    inside = found.f0_hz[found.voiced]
    assert np.ptp(np.log2(inside)) < 0.1


@pytest.mark.parametrize("samples", [0, 1, 399])
def test_sound_that_fills_no_window_is_absent_and_recorded(samples: int) -> None:
    choice = choose_encoder("audio", EncoderRequest(audio="prosody"), "float32")
    [features] = encode_clips(Encoders([choice], DecodeConfig()), [clip_of(noise(samples))])
    assert features.raw == {}
    assert [failure.code for failure in features.failures] == ["nothing_to_encode"]


@pytest.mark.parametrize("samples", [400, 641, RATE, 30 * RATE + 1])
@pytest.mark.parametrize("loudness", [0.0, 1e-7, 1.0])
def test_silence_and_odd_lengths_are_present_and_finite(samples: int, loudness: float) -> None:
    choice = choose_encoder("audio", EncoderRequest(audio="prosody"), "bfloat16")
    assert choice.spec.precision == "float32"
    encoders = Encoders([choice], DecodeConfig())
    [features] = encode_clips(encoders, [clip_of(noise(samples, loudness))])
    assert features.raw["audio"].shape == (1, len(FEATURES))
    assert features.failures == ()


def test_a_voice_is_measured_the_same_whoever_is_beside_it(encoder: ProsodyEncoder) -> None:
    def encode(waveforms: Sequence[Wave]) -> torch.Tensor:
        sounds = [Sound(torch.from_numpy(each)) for each in waveforms]
        return encoder(encoder.preparation.collate(sounds))

    waveforms = [vowel(*pulses(120)), noise(700), vowel(*pulses(300))]
    assert torch.equal(encode(waveforms), torch.cat([encode([each]) for each in waveforms]))


@pytest.mark.parametrize("rate_hz", [8_000, 44_100])
def test_any_sample_rate_of_a_recipe_works(rate_hz: int) -> None:
    values = Prosody(rate_hz).measure(noise(rate_hz))
    assert tuple(values) == FEATURES
    assert np.isfinite(list(values.values())).all()


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_mel_filters_and_cosines_are_those_of_torchaudio(rate_hz: int) -> None:
    bins, high_hz = Framing.at(rate_hz).num_fft // 2 + 1, min(8000.0, rate_hz / 2)
    filters = mel_filters(bins, rate_hz, 26, low_hz=20.0, high_hz=high_hz)
    wanted = torchaudio.functional.melscale_fbanks(bins, 20.0, high_hz, 26, rate_hz)
    np.testing.assert_allclose(filters, wanted.numpy(), atol=5e-5)
    cosines = torchaudio.functional.create_dct(5, 26, "ortho")
    np.testing.assert_allclose(cosine_transform(5, 26), cosines.numpy(), atol=1e-6)
