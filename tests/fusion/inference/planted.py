"""Sound files whose utterances are known."""

import random
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fusion.inference.voice import as_samples, read_sound
from pipeline.recipe import DecodeConfig
from pipeline.sample.speech import ESPEAK_RATE_HZ, VOICES, speak


@dataclass(frozen=True)
class Planted:
    """spoken: what is said, with its first and last millisecond"""

    path: Path
    spoken: tuple[tuple[str, int, int], ...]
    duration_ms: int

    def samples(self) -> NDArray[np.int16]:
        """[samples] at 16 kHz, as a live client sends them."""
        blocks = read_sound(self.path, DecodeConfig(), duration_ms=self.duration_ms)
        return as_samples(np.concatenate(list(blocks)))


def plant_speech(path: Path, parts: Sequence[str | int], *, noise: float = 0.0) -> Planted:
    """parts: words, which are spoken, and numbers, which are milliseconds of silence"""
    waves: list[NDArray[np.float32]] = []
    spoken: list[tuple[str, int, int]] = []
    position = 0
    for number, part in enumerate(parts):
        if isinstance(part, int):
            waves.append(np.zeros(part * ESPEAK_RATE_HZ // 1000, np.float32))
        else:
            waves.append(speak(part, voice=VOICES[3], emotion="neutral", rng=random.Random(number)))
            start_ms = position * 1000 // ESPEAK_RATE_HZ
            end_ms = (position + len(waves[-1])) * 1000 // ESPEAK_RATE_HZ
            spoken.append((part, start_ms, end_ms))
        position += len(waves[-1])
    sound = np.concatenate(waves)
    sound = sound + noise * np.random.default_rng(0).standard_normal(len(sound))
    write_sound(path, sound, ESPEAK_RATE_HZ)
    return Planted(path, tuple(spoken), position * 1000 // ESPEAK_RATE_HZ)


def write_sound(path: Path, sound: NDArray[np.floating], rate_hz: int = 16_000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes((np.clip(sound, -1, 1) * 32_767).astype("<i2").tobytes())
    return path


def sounds_without_voice(seconds: int) -> dict[str, NDArray[np.float64]]:
    """At 16 kHz: what recognisers are known to invent words in."""
    rng = np.random.default_rng(0)
    num = seconds * 16_000
    times_s = np.arange(num) / 16_000
    white = rng.standard_normal(num)
    pink = np.fft.irfft(
        np.fft.rfft(white) / np.sqrt(np.maximum(np.fft.rfftfreq(num, 1 / 16_000), 20)), num
    )
    claps = np.zeros(num)
    for at in rng.integers(0, num - 400, seconds * 40):
        claps[at : at + 200] += rng.standard_normal(200) * np.hanning(200)
    return {
        "silence": np.zeros(num),
        "white noise": 0.1 * white,
        "pink noise": 0.1 * pink / pink.std(),
        "chord": 0.1 * sum(np.sin(2 * np.pi * pitch * times_s) for pitch in (262, 330, 392)),
        "music": _music(rng, seconds),
        "applause": 0.2 * claps / claps.std(),
    }


def _music(rng: np.random.Generator, seconds: int) -> NDArray[np.float64]:
    """A melody with overtones, four notes a second, over a beat."""
    beats = []
    for number in range(4 * seconds):
        times_s = np.arange(4_000) / 16_000
        pitch = 220 * 2 ** (rng.choice([0, 2, 4, 7, 9, 12]) / 12)
        note = sum(np.sin(2 * np.pi * k * pitch * times_s) / k for k in range(1, 9))
        drum = rng.standard_normal(4_000) if number % 2 else np.sin(400 * times_s)
        beats.append(0.15 * note * np.exp(-6 * times_s) + 0.2 * drum * np.exp(-30 * times_s))
    return np.concatenate(beats)
