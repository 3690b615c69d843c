"""The pitch of a voice: fundamental frequency and harmonicity, frame by frame.

The method is the autocorrelation method of Boersma (1993), "Accurate short-term analysis of the
fundamental frequency and the harmonics-to-noise ratio of a sampled sound", Proceedings of the
Institute of Phonetic Sciences 17, 97-110, with the settings of that paper. It is written from the
paper's formulas.

    frames of 3 longest periods -> autocorrelation over that of the window -> peaks, and "unvoiced"
    -> the path through the frames that costs least (Viterbi)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLOOR_HZ = 75.0
CEILING_HZ = 600.0
WINDOW_S = 3 / FLOOR_HZ
HOP_S = 0.010

# The paper's names; costs are in units of correlation. Jumps are priced for frames 10 ms apart.
SILENCE_THRESHOLD = 0.03  # of the clip's largest amplitude
VOICING_THRESHOLD = 0.45
OCTAVE_COST = 0.01
OCTAVE_JUMP_COST = 0.35
VOICED_UNVOICED_COST = 0.14

_CANDIDATES = 10  # of a frame, the strongest
_FINER = 2  # lags lie this many to a sample: peaks of high voices are narrow
_SILENT = 1e-6  # a largest amplitude below this is digital silence

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Framing:
    """How a waveform is cut: frames of `window` samples, every `hop` samples, `rate_hz` a second.

    num_fft: of the spectrum of one frame; it has room for the lags of the autocorrelation
    """

    rate_hz: int
    window: int
    hop: int
    num_fft: int

    @classmethod
    def at(cls, rate_hz: int) -> "Framing":
        window = max(round(WINDOW_S * rate_hz), 4)
        longest_lag = rate_hz / FLOOR_HZ
        num_fft = 1 << int(np.ceil(np.log2(window + longest_lag + 2)))
        return cls(rate_hz, window, max(round(HOP_S * rate_hz), 1), num_fft)

    def cut(self, waveform: Floats) -> Floats:
        """[samples] -> [frames, window], at least one: shorter sound is padded by silence on both
        sides."""
        missing = max(self.window - len(waveform), 0)
        padded = np.pad(waveform, (missing // 2, missing - missing // 2))
        return np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]

    def middles(self, num_frames: int) -> NDArray[np.int64]:
        """The sample in the middle of each frame."""
        return np.arange(num_frames) * self.hop + self.window // 2


@dataclass(frozen=True)
class Pitch:
    """f0_hz, hnr_db: float64 [frames], 0 where a frame is unvoiced. hnr_db: ratio of the harmonic
    part's power to that of the noise."""

    f0_hz: Floats
    hnr_db: Floats

    @property
    def voiced(self) -> NDArray[np.bool_]:
        return self.f0_hz > 0


def hann(samples: int) -> Floats:
    """float32 [samples]"""
    angles = 2 * np.pi * (np.arange(samples) + 0.5) / samples
    return (0.5 - 0.5 * np.cos(angles)).astype(np.float32)


def spectra_of(rows: Floats, size: int) -> NDArray[np.complexfloating]:
    """[rows, samples] -> [rows, size / 2 + 1], in the precision of the rows."""
    return np.fft.rfft(rows, size, axis=1)


def signals_of(spectra: NDArray[np.inexact], size: int) -> Floats:
    """The inverse: [rows, bins] -> [rows, size]."""
    return np.fft.irfft(spectra, size, axis=1)


def track_pitch(frames: Floats, power: Floats, framing: Framing) -> Pitch:
    """
    frames: float32 [frames, window], each with its mean subtracted, not windowed
    power:  float32 [frames, num_fft / 2 + 1], the power spectrum of the same under a Hann window
    """
    peaks = np.abs(frames).max(axis=1)  # [frames]
    loudest = peaks.max(initial=0.0)
    if loudest < _SILENT:
        nothing = np.zeros(len(frames))
        return Pitch(nothing, nothing)
    lags_s, heights = (  # [frames, candidates]
        each.astype(np.float64) for each in _candidates(power, framing)
    )
    # Equation 24: in soft frames the unvoiced candidate is stronger.
    softness = 2 - peaks / loudest * (1 + VOICING_THRESHOLD) / SILENCE_THRESHOLD
    unvoiced = VOICING_THRESHOLD + np.maximum(0, softness)
    there = heights > 0
    # Equation 25: of equal peaks the one at the shortest lag.
    strengths = np.where(there, heights - OCTAVE_COST * np.log2(FLOOR_HZ * lags_s), -np.inf)
    path = _cheapest_path(np.log2(lags_s), np.column_stack([strengths, unvoiced]))
    rows = np.arange(len(frames))
    is_voiced = path < lags_s.shape[1]
    chosen = np.where(is_voiced, path, 0)
    share = np.clip(heights[rows, chosen], 1e-4, 1 - 1e-6)  # of the power that is periodic
    return Pitch(
        f0_hz=np.where(is_voiced, 1 / lags_s[rows, chosen], 0.0),
        hnr_db=np.where(is_voiced, 10 * np.log10(share / (1 - share)), 0.0),
    )


def _candidates(power: Floats, framing: Framing) -> tuple[Floats, Floats]:
    """The highest peaks of each frame's normalised autocorrelation between both limits: lags in
    seconds and heights, [frames, candidates]; height 0 where there are fewer."""
    size = framing.num_fft * _FINER  # a spectrum padded by zeros has a smooth autocorrelation
    step_s = 1 / (framing.rate_hz * _FINER)
    # One lag more on each side, for the tops of the outermost peaks.
    first = max(int(np.floor(1 / (CEILING_HZ * step_s))) - 1, 1)
    last = int(np.ceil(1 / (FLOOR_HZ * step_s))) + 2
    window = np.abs(spectra_of(hann(framing.window)[None], framing.num_fft)) ** 2
    of_window = signals_of(window, size)[0]
    found = signals_of(power, size)
    energy = np.maximum(found[:, :1], 1e-30)
    # Equation 9: without the window's own decline.
    ratio = (found[:, first:last] / energy) / (of_window[first:last] / of_window[0])
    below, at, above = ratio[:, :-2], ratio[:, 1:-1], ratio[:, 2:]
    is_peak = (at > 0) & (at >= below) & (at > above)
    curve = np.minimum(below - 2 * at + above, -1e-12)
    shift = np.clip(0.5 * (below - above) / curve, -0.5, 0.5)
    height = at - 0.25 * (below - above) * shift
    height = np.minimum(height, 1 / np.maximum(height, 1))  # one above 1 is mirrored (section 3.3)
    lag_s = (np.arange(first + 1, last - 1, dtype=np.float32) + shift) * np.float32(step_s)
    inside = is_peak & (lag_s >= 1 / CEILING_HZ) & (lag_s <= 1 / FLOOR_HZ)
    height = np.where(inside, height, 0)
    count = min(_CANDIDATES, height.shape[1])
    best = np.argpartition(-height, count - 1, axis=1)[:, :count]
    heights = np.take_along_axis(height, best, axis=1)
    lags = np.take_along_axis(lag_s, best, axis=1)
    return np.where(heights > 0, lags, 1 / FLOOR_HZ), heights


def _cheapest_path(octaves: Floats, strengths: Floats) -> NDArray[np.int64]:
    """The best candidate of each frame, the last column being "unvoiced" (equation 27).

    octaves: [frames, candidates], base-2 logarithm of the lags
    strengths: [frames, candidates + 1]
    """
    frames, states = strengths.shape
    costs = np.full((frames - 1, states, states), VOICED_UNVOICED_COST)
    costs[:, -1, -1] = 0
    costs[:, :-1, :-1] = OCTAVE_JUMP_COST * np.abs(octaves[:-1, :, None] - octaves[1:, None, :])
    came_from = np.zeros((frames, states), np.int64)
    best = strengths[0]
    columns = np.arange(states)
    for frame in range(1, frames):
        reached = best[:, None] - costs[frame - 1]  # [from, to]
        came_from[frame] = reached.argmax(axis=0)
        best = reached[came_from[frame], columns] + strengths[frame]
    path = np.empty(frames, np.int64)
    path[-1] = best.argmax()
    for frame in range(frames - 1, 0, -1):
        path[frame - 1] = came_from[frame, path[frame]]
    return path
