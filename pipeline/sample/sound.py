"""Makes the sound of a clip: speech in the front centre, music and room noise around it.

The background is independent of the emotion. It makes the choice of the front centre matter: a
plain downmix would mix the background into the speech.
"""

import random
from typing import Literal

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.sample.speech import ESPEAK_RATE_HZ

RATE_HZ = 48_000
Layout = Literal["5.1", "stereo"]

_FRONT_LEFT, _FRONT_RIGHT, _FRONT_CENTRE, _LOW, _BACK_LEFT, _BACK_RIGHT = range(6)
_CHORDS = ((0, 4, 7), (0, 3, 7), (0, 5, 7), (0, 4, 9), (0, 3, 8))


def mix_sound(
    speech: NDArray[np.float32],
    *,
    layout: Layout,
    lead_s: float,
    num_samples: int,
    rng: random.Random,
) -> NDArray[np.float32]:
    """float32 [channels, num_samples] at `RATE_HZ`; speech, at eSpeak's rate, starts at lead_s."""
    dialogue = np.zeros(num_samples, np.float32)
    spoken = _at_48_khz(speech)
    start = round(lead_s * RATE_HZ)
    spoken = spoken[: num_samples - start]
    dialogue[start : start + len(spoken)] = spoken
    bed = _bed(num_samples, rng)
    if layout == "stereo":
        return np.stack([dialogue + 0.2 * channel for channel in bed[:2]])
    sound = np.zeros((6, num_samples), np.float32)
    sound[[_FRONT_LEFT, _FRONT_RIGHT]] = bed
    sound[[_BACK_LEFT, _BACK_RIGHT]] = 0.6 * bed[::-1]
    sound[_LOW] = 0.3 * _low_passed(bed[0])
    sound[_FRONT_CENTRE] = dialogue
    return sound


def _at_48_khz(speech: NDArray[np.float32]) -> NDArray[np.float32]:
    frame = av.AudioFrame.from_ndarray(speech[None], format="fltp", layout="mono")
    frame.sample_rate = ESPEAK_RATE_HZ
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE_HZ)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts]).astype(np.float32)


def _bed(num_samples: int, rng: random.Random) -> NDArray[np.float32]:
    """The background, float32 [2, num_samples]: a slow chord and room noise, left and right."""
    time_s = np.arange(num_samples, dtype=np.float32) / RATE_HZ
    root_hz = 110 * 2 ** (rng.randint(0, 11) / 12)
    music = np.zeros((2, num_samples), np.float32)
    for semitones in rng.choice(_CHORDS):
        pitch_hz = root_hz * 2 ** (semitones / 12)
        for side, detuned_hz in enumerate((pitch_hz * 0.9985, pitch_hz * 1.0015)):
            music[side] += np.sin(2 * np.pi * detuned_hz * time_s)
    music *= 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.2, 0.7) * time_s)
    noise = np.random.default_rng(rng.getrandbits(64)).standard_normal((2, num_samples))
    room = np.stack([_low_passed(channel.astype(np.float32)) for channel in noise])
    level = 10 ** (rng.uniform(-36, -26) / 20)
    return (level * (0.7 * music + rng.uniform(0.5, 3) * room)).astype(np.float32)


def _low_passed(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over 2 ms, which keeps frequencies below about 250 Hz."""
    width = RATE_HZ // 500
    running = np.cumsum(np.concatenate([np.zeros(width), wave]))
    return ((running[width:] - running[:-width]) / width).astype(np.float32)
