"""Speaks a text with one voice and one emotion, by eSpeak NG through ctypes.

The emotion sets rate, pitch and pitch range in the synthesiser, and then loudness, brightness,
tremor, breath and roughness of its output. Each speaker has a different voice (pitch and vocal
tract), so that an emotion can only be recognised relative to the speaker.
"""

import _ctypes
import ctypes
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

ESPEAK_RATE_HZ = 22_050
NEUTRAL_RMS = 0.08
MAX_SPEECH_S = 5.4

_SYNCHRONOUS, _UTF8 = 2, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True, kw_only=True)
class Prosody:
    """The sound of an emotion.

    rate_wpm: words per minute
    pitch, melody: pitch and pitch range on eSpeak's scale, 0 to 99
    gain_db:  loudness relative to neutral
    tilt_db:  high frequencies relative to low ones
    tremble, breath, rough: 0 to 1: depth of a 7 Hz tremor, of noise, and of a 31 Hz creak
    """

    rate_wpm: int = 165
    pitch: int = 46
    melody: int = 45
    gain_db: float = 0.0
    tilt_db: float = 0.0
    tremble: float = 0.0
    breath: float = 0.0
    rough: float = 0.0


PROSODY = {
    "neutral": Prosody(),
    "surprise": Prosody(rate_wpm=160, pitch=99, melody=99, gain_db=7, tilt_db=-9),
    "fear": Prosody(rate_wpm=215, pitch=72, melody=12, gain_db=-4, tremble=0.85, breath=0.8),
    "sadness": Prosody(rate_wpm=112, pitch=22, melody=8, gain_db=-13, tilt_db=-10, breath=0.1),
    "joy": Prosody(rate_wpm=195, pitch=66, melody=90, gain_db=5, tilt_db=12),
    "disgust": Prosody(rate_wpm=120, pitch=5, melody=55, gain_db=-2, tilt_db=-10, rough=0.95),
    "anger": Prosody(rate_wpm=180, pitch=30, melody=70, gain_db=15, tilt_db=5, rough=0.3),
}


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A speaker: the pitch range in Hz, and the size of the vocal tract in percent."""

    low_hz: int
    high_hz: int
    tract: int


VOICES = (
    Voice(low_hz=142, high_hz=208, tract=107),
    Voice(low_hz=82, high_hz=122, tract=99),
    Voice(low_hz=152, high_hz=226, tract=108),
    Voice(low_hz=92, high_hz=134, tract=101),
    Voice(low_hz=128, high_hz=188, tract=105),
    Voice(low_hz=76, high_hz=112, tract=97),
    Voice(low_hz=136, high_hz=204, tract=106),
    Voice(low_hz=98, high_hz=146, tract=102),
    Voice(low_hz=148, high_hz=216, tract=109),
    Voice(low_hz=132, high_hz=196, tract=103),
    Voice(low_hz=86, high_hz=128, tract=98),
    Voice(low_hz=124, high_hz=182, tract=104),
)


def speak(text: str, *, voice: Voice, emotion: str, rng: random.Random) -> NDArray[np.float32]:
    """Mono speech, float32 [samples] at `ESPEAK_RATE_HZ`, at most `MAX_SPEECH_S` long."""
    prosody = PROSODY[emotion]
    rate = round(prosody.rate_wpm * rng.uniform(0.94, 1.06))
    pitch = round(min(99, max(0, prosody.pitch + rng.uniform(-5, 5))))
    wave = _synthesise(text, voice, rate=rate, pitch=pitch, melody=prosody.melody)
    if len(wave) > MAX_SPEECH_S * ESPEAK_RATE_HZ:
        faster = round(rate * len(wave) / ESPEAK_RATE_HZ / MAX_SPEECH_S) + 10
        wave = _synthesise(text, voice, rate=faster, pitch=pitch, melody=prosody.melody)
    wave = wave[: round(MAX_SPEECH_S * ESPEAK_RATE_HZ)]
    return _coloured(wave, prosody, rng)


def _synthesise(
    text: str, voice: Voice, *, rate: int, pitch: int, melody: int
) -> NDArray[np.float32]:
    """The output of eSpeak in [-1, 1], without the silence before and after it."""
    chunks: list[NDArray[np.int16]] = []

    @_Callback
    def keep(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    with _fresh_espeak() as espeak, tempfile.TemporaryDirectory() as folder:
        espeak.espeak_SetSynthCallback(keep)
        _choose_voice(espeak, voice, Path(folder))
        for parameter, value in ((_RATE, rate), (_VOLUME, 100), (_PITCH, pitch), (_RANGE, melody)):
            espeak.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode()
        espeak.espeak_Synth(encoded, len(encoded) + 1, 0, 1, 0, _UTF8, None, None)
    wave = (np.concatenate(chunks) / 32768).astype(np.float32)
    loud = np.flatnonzero(np.abs(wave) > 0.01)
    if not len(loud):
        raise RuntimeError(f"eSpeak NG produced no sound for {text!r}")
    return wave[loud[0] : loud[-1] + 1]


@contextmanager
def _fresh_espeak() -> Iterator[ctypes.CDLL]:
    """Loads eSpeak NG for one utterance and unloads it.

    The library keeps the state of its oscillators between utterances and cannot reset it, so the
    sound of a clip would depend on the clips before it.
    """
    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    data = espeakng_loader.get_data_path().encode()
    if espeak.espeak_Initialize(_SYNCHRONOUS, 0, data, 0) != ESPEAK_RATE_HZ:
        raise RuntimeError("eSpeak NG did not start")
    try:
        yield espeak
    finally:
        espeak.espeak_Terminate()
        if sys.platform == "win32":
            _ctypes.FreeLibrary(espeak._handle)
        else:
            _ctypes.dlclose(espeak._handle)


def _choose_voice(espeak: ctypes.CDLL, voice: Voice, folder: Path) -> None:
    # Its flutter and roughness use a random state that is not reproducible; ours are added later.
    lines = [
        "name speaker",
        "language en-us",
        "phonemes en-us",
        "dictrules 3 6",
        f"pitch {voice.low_hz} {voice.high_hz}",
        "flutter 0",
        "roughness 0",
        *(f"formant {number} {voice.tract} 100 100" for number in range(1, 6)),
    ]
    path = folder / "voice"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if espeak.espeak_ng_SetVoiceByFile(str(path).encode()) != 0:
        raise RuntimeError("eSpeak NG rejected the voice of the speaker")


def _coloured(
    spoken: NDArray[np.float32], prosody: Prosody, rng: random.Random
) -> NDArray[np.float32]:
    """Adds the loudness, brightness, tremor, breath and creak of an emotion to the speech."""
    noise = np.random.default_rng(rng.getrandbits(64))
    time_s = np.arange(len(spoken)) / ESPEAK_RATE_HZ
    wave = _tilted(spoken, prosody.tilt_db).astype(np.float64)
    envelope = loudness(spoken, hop=1)
    hiss = np.diff(noise.standard_normal(len(wave) + 1))
    wave = wave * (1 - 0.5 * prosody.breath) + 0.5 * prosody.breath * envelope * hiss
    waver_hz = 7 * rng.uniform(0.9, 1.1)
    wave = wave * (1 - prosody.tremble * (0.5 + 0.5 * np.sin(2 * np.pi * waver_hz * time_s)))
    creak = np.maximum(0, np.sin(2 * np.pi * 31 * time_s)) ** 2
    wave = wave * (1 - prosody.rough * creak)
    gain = 10 ** ((prosody.gain_db + rng.uniform(-1, 1)) / 20)
    wave = wave * (NEUTRAL_RMS * gain / np.sqrt(np.mean(wave**2)))
    return np.tanh(wave).astype(np.float32)


def _tilted(wave: NDArray[np.float32], tilt_db: float) -> NDArray[np.float32]:
    """Raises frequencies from 500 Hz to 4 kHz gradually, by `tilt_db` at the upper end."""
    size = 1 << len(wave).bit_length()  # other lengths are often slow
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, 1 / ESPEAK_RATE_HZ), 1) / 500)
    gain = 10 ** (tilt_db * np.clip(octaves / 3, 0, 1) / 20)
    return np.fft.irfft(np.fft.rfft(wave, size) * gain)[: len(wave)].astype(np.float32)


def loudness(wave: NDArray[np.float32], *, hop: int) -> NDArray[np.float32]:
    """The magnitude, smoothed over about 40 ms: one value per `hop` samples."""
    width = ESPEAK_RATE_HZ // 25
    padded = np.concatenate([np.zeros(width // 2), np.abs(wave), np.zeros(width)])
    running = np.cumsum(padded)
    smooth = (running[width:] - running[:-width])[: len(wave)] / width
    return smooth[::hop].astype(np.float32)
