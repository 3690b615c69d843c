"""Two real clips with sound through decoding and encoding; skipped where they are not at hand."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.decode.clip import decode_clip
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.recipe import DecodeConfig
from pipeline.schema import MODALITIES, ClipKey, DecodedClip, LocatedClip, Utterance

MEDIA = Path(__file__).resolve().parents[3].parent / "shared" / "media"
CLIPS = {"bigbuckbunny.mp4": 5.3, "nasa_13013.mp4": 13.0}  # seconds

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not all((MEDIA / name).is_file() for name in CLIPS), reason=f"no real clips in {MEDIA}"
    ),
]


def decode(name: str, config: DecodeConfig) -> DecodedClip:
    row = Utterance(key=ClipKey("train", 0, list(CLIPS).index(name)), text=f"This is {name}.")
    return decode_clip(LocatedClip(utterance=row, path=MEDIA / name), config, MODALITIES)


@pytest.mark.parametrize("name", CLIPS)
def test_frames_and_sound_span_the_whole_clip(name: str) -> None:
    clip = decode(name, DecodeConfig())
    assert clip.failures == ()
    assert clip.frames is not None
    assert clip.times_s is not None
    assert clip.waveform is not None
    assert clip.frames.shape == (16, 128, 171, 3)
    steps_s = np.diff(clip.times_s)
    assert steps_s.max() - steps_s.min() < 0.1
    assert clip.times_s[-1] > CLIPS[name] * 0.9
    assert len(clip.waveform) / 16_000 == pytest.approx(CLIPS[name], abs=0.3)


def test_the_front_centre_of_surround_sound_is_not_the_downmix() -> None:
    front, mixed = (
        decode("bigbuckbunny.mp4", DecodeConfig(channel=channel)).waveform
        for channel in ("front_centre", "downmix")
    )
    assert front is not None
    assert mixed is not None
    assert not np.allclose(front, mixed, atol=1e-3)


def test_all_three_encoders_take_them() -> None:
    request = EncoderRequest(text="minilm", video_weights="random")
    choices = [choose_encoder(name, request, "float32") for name in MODALITIES]
    config = DecodeConfig()
    features = encode_clips(Encoders(choices, config), [decode(name, config) for name in CLIPS])
    for clip in features:
        assert {name: raw.shape for name, raw in clip.raw.items()} == {
            "text": (7, 384),
            "video": (1, 512),
            "audio": (1, 608),
        }
