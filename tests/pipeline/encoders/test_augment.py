"""Augmentation: every draw repeatable, nothing beyond what its strength allows."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from pipeline.encoders.audio import Sound, Sounds, SpectrogramMask, draw_mask
from pipeline.encoders.augment import CONCERNS, AugmentConfig
from pipeline.encoders.text import hide_tokens
from pipeline.encoders.tokens import Tokens
from pipeline.encoders.video import Frames

OFF = AugmentConfig.off()


class PlainTokeniser:
    """What `hide_tokens` needs of one."""

    mask_id = 99
    special_ids = frozenset({1, 2})


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def augment_frames(
    frames: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> torch.Tensor:
    return Frames().augment(frames, config, generator)


def augment_waveform(
    waveform: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> torch.Tensor:
    return Sounds(min_samples=1).augment(Sound(waveform), config, generator).waveform


def numbered_frames() -> torch.Tensor:
    """uint8 [16, 128, 171, 3]: channel 0 the frame's number, 1 the row, 2 the column."""
    frames = torch.zeros(16, 128, 171, 3, dtype=torch.uint8)
    frames[..., 0] = torch.arange(16)[:, None, None]
    frames[..., 1] = torch.arange(128)[None, :, None]
    frames[..., 2] = torch.arange(171)[None, None, :]
    return frames


def test_switched_off_a_clip_is_its_centre_crop() -> None:
    cropped = augment_frames(numbered_frames(), OFF, seeded())
    assert cropped.shape == (16, 112, 112, 3)
    assert cropped[:, 0, 0, 0].tolist() == list(range(16))
    assert cropped[0, 0, 0, 1:].tolist() == [8, 30]  # as the encoder's own crop rounds


def test_a_whole_clip_is_mirrored_and_cropped_at_one_place() -> None:
    config = replace(OFF, flip=1.0, crop=1.0)
    cropped = augment_frames(numbered_frames(), config, seeded(3))
    columns, rows = cropped[..., 2].int(), cropped[..., 1].int()
    assert (columns[:, :, 1:] - columns[:, :, :-1] == -1).all()
    assert (rows[:, 1:] - rows[:, :-1] == 1).all()
    assert (cropped[:, 0, 0, 1:] == cropped[0, 0, 0, 1:]).all()


def test_crops_reach_every_corner_and_never_leave_the_picture() -> None:
    config = replace(OFF, crop=1.0)
    corners = torch.stack(
        [augment_frames(numbered_frames(), config, seeded(i))[0, 0, 0, 1:].int()
         for i in range(200)]
    )  # fmt: skip
    assert corners.amin(0).max() <= 2
    assert (corners[:, 0] <= 16).all()
    assert (corners[:, 1] <= 59).all()
    assert corners.amax(0)[0] >= 15
    assert corners.amax(0)[1] >= 57


def test_jittered_frames_stay_in_order_and_near_their_place() -> None:
    config = replace(OFF, time_jitter=2)
    times = augment_frames(numbered_frames(), config, seeded(1))[:, 0, 0, 0].int()
    assert (times[1:] >= times[:-1]).all()
    assert (times - torch.arange(16)).abs().max() <= 2
    assert times.tolist() != list(range(16))


def test_gain_is_within_its_decibels() -> None:
    wave = torch.ones(100)
    config = replace(OFF, gain_db=6.0)
    gains = torch.stack([augment_waveform(wave, config, seeded(i))[0] for i in range(100)])
    assert gains.min() >= 10 ** (-6 / 20) - 1e-6
    assert gains.max() <= 10 ** (6 / 20) + 1e-6
    assert gains.std() > 0.1
    assert torch.equal(augment_waveform(wave, OFF, seeded()), wave)


def test_a_spectrogram_mask_hides_a_band_and_a_span_and_nothing_else() -> None:
    log_mel = torch.arange(80.0)[:, None] + torch.arange(100.0)[None, :]
    masked = SpectrogramMask(band=(0.25, 0.5), span=(0.1, 0.2)).apply(log_mel)
    hidden = masked != log_mel
    hidden |= masked == log_mel.mean()  # a cell that happened to hold the mean
    expected = torch.zeros(80, 100, dtype=torch.bool)
    expected[20:40] = True
    expected[:, 10:20] = True
    assert (masked[expected] == log_mel.mean()).all()
    assert torch.equal(masked[~expected], log_mel[~expected])
    assert draw_mask(OFF, seeded()) is None


def test_hidden_tokens_are_never_special_ones() -> None:
    tokens = Tokens(ids=[1, *range(10, 40), 2], types=[0] * 32, pooled=[True] * 32)
    config = replace(OFF, token_dropout=1.0)
    hidden = hide_tokens(tokens, PlainTokeniser(), config, seeded())  # type: ignore[arg-type]
    assert hidden.ids == [1, *[99] * 30, 2]
    kept = hide_tokens(tokens, PlainTokeniser(), OFF, seeded())  # type: ignore[arg-type]
    assert kept.ids == tokens.ids


@pytest.mark.parametrize("seed", range(3))
def test_the_same_generator_gives_the_same_clip(seed: int) -> None:
    first, second = (
        augment_frames(numbered_frames(), AugmentConfig(), seeded(seed)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_strengths_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="flip must be in"):
        AugmentConfig(flip=1.5)
    with pytest.raises(ValueError, match="gain_db"):
        AugmentConfig(gain_db=-1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 101.0])
def test_a_gain_that_is_no_loudness_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"^gain_db must be in \[0, 100\], not {value}$"):
        AugmentConfig(gain_db=value)


@pytest.mark.parametrize("name", ["flip", "crop", "band", "span", "token_dropout"])
@pytest.mark.parametrize("value", [math.nan, -0.1, 1.1])
def test_a_strength_that_is_no_share_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be in \[0, 1\], not {value}$"):
        AugmentConfig(**{name: value})  # type: ignore[arg-type]


def test_every_strength_is_known_to_concern_a_modality() -> None:
    assert set(CONCERNS) == {each.name for each in dataclasses.fields(AugmentConfig)}
