"""What training changes in a clip before the encoders see it: each modality in its own way.

Every draw comes from the generator that is handed in, so an epoch can be repeated to the bit.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from pipeline.encoders.audio import SpectrogramMask
from pipeline.encoders.text import Tokeniser, Tokens


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Strengths; 0 switches one off.

    flip:           chance that a clip is mirrored
    crop:           how far from the middle a crop may lie, as a share of the room there is
    time_jitter:    how many frames a frame's neighbour may stand in for it
    gain_db:        loudness changes by up to so much, either way
    band, span:     largest share of the mel bands, of the time, that SpecAugment hides
    token_dropout:  chance that a token of the sentence or its context is hidden by the mask token
    """

    flip: float = 0.5
    crop: float = 1.0
    time_jitter: int = 1
    gain_db: float = 6.0
    band: float = 0.2
    span: float = 0.2
    token_dropout: float = 0.05

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value < 0 or (each.name not in ("gain_db", "time_jitter") and value > 1):
                raise ValueError(f"{each.name} must be in [0, 1], not {value}")

    @classmethod
    def off(cls) -> "AugmentConfig":
        return cls(flip=0, crop=0, time_jitter=0, gain_db=0, band=0, span=0, token_dropout=0)


def augment_frames(
    frames: Tensor, size: tuple[int, int], config: AugmentConfig, generator: torch.Generator
) -> Tensor:
    """uint8 [frames, height, width, 3] -> the same cropped to `size` (height, width).

    Crop and flip are one draw for the whole clip: what moves must be the face, not the camera.
    """
    num_frames, height, width, _ = frames.shape
    if config.time_jitter:
        reach = config.time_jitter
        shift = torch.randint(-reach, reach + 1, (num_frames,), generator=generator)
        order = (torch.arange(num_frames) + shift).clamp(0, num_frames - 1).sort().values
        frames = frames[order]
    top = _crop_start(height - size[0], config.crop, generator)
    left = _crop_start(width - size[1], config.crop, generator)
    cropped = frames[:, top : top + size[0], left : left + size[1]]
    return cropped.flip(2) if _draw(generator) < config.flip else cropped


def _crop_start(room: int, share: float, generator: torch.Generator) -> int:
    """Around the middle, where the encoder's own crop lies (rounded as it rounds)."""
    offset = (2 * _draw(generator) - 1) * share * room / 2
    return min(max(round(room / 2 + offset), 0), room)


def augment_waveform(waveform: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
    """float32 [samples] -> the same, louder or softer."""
    gain_db = (2 * _draw(generator) - 1) * config.gain_db
    return waveform * 10 ** (gain_db / 20)


def draw_mask(config: AugmentConfig, generator: torch.Generator) -> SpectrogramMask | None:
    if config.band == config.span == 0:
        return None
    return SpectrogramMask(
        band=_draw_interval(config.band, generator), span=_draw_interval(config.span, generator)
    )


def _draw_interval(longest: float, generator: torch.Generator) -> tuple[float, float]:
    length = _draw(generator) * longest
    start = _draw(generator) * (1 - length)
    return start, start + length


def hide_tokens(
    tokens: Tokens, tokeniser: Tokeniser, config: AugmentConfig, generator: torch.Generator
) -> Tokens:
    """Some tokens become the mask token; special ones never do."""
    hidden = torch.rand(len(tokens.ids), generator=generator) < config.token_dropout
    if tokeniser.mask_id is None:
        return tokens
    ids = [
        tokeniser.mask_id if hide and token not in tokeniser.special_ids else token
        for token, hide in zip(tokens.ids, hidden.tolist(), strict=True)
    ]
    return replace(tokens, ids=ids)


def _draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))
