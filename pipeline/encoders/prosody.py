"""What a voice does, in numbers that have names; without PyTorch.

    waveform -> frames of 40 ms, every 10 ms
             -> tracks: pitch, harmonicity, loudness, balance of the spectrum, cepstrum
             -> functionals over time, and counts of what happens in it

It follows the minimal parameter sets of the field (Eyben et al. 2016, "The Geneva Minimalistic
Acoustic Parameter Set", IEEE Transactions on Affective Computing 7(2)) in what it measures, and is
written from the published definitions, which its functions name. Nothing in it is trained or
random, and it computes on the CPU, wherever the other encoders do (`prosody_encoder.py`).

Each feature has a name (`FEATURES`), and a zero means "as in an ordinary voice" or "none of it":
pitch is in octaves above 150 Hz. Features of a voice are 0 where nothing is voiced, and
`voiced_share` tells.
"""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.pitch import (
    HOP_S,
    Floats,
    Framing,
    Pitch,
    hann,
    signals_of,
    spectra_of,
    track_pitch,
)

NAME = "prosody"
PITCH_REFERENCE_HZ = 150.0
LEAST_RATE_HZ = 4000  # of samples: a lower rate has no bands to measure the balance of
NUM_MELS = 26
# As in the Geneva set: without the 0th, which is loudness, and without the higher ones, which tell
# speakers apart rather than what they do.
NUM_CEPSTRA = 4
POWER_FLOOR = 1e-10  # -100 dB of full scale: silence is a finite constant
SOUNDING_DB = 30.0  # frames this far below the loud ones, or further, are pauses
SYLLABLE_DIP_DB = 2.0  # between two syllables loudness falls by so much at least
SYLLABLE_REACH_DB = 25.0  # a syllable's peak is no further below the loud ones
# Two cycles whose lengths or amplitudes differ by more are no two cycles of one voice (the limits
# of Praat's manual, "Voice 2. Jitter").
MOST_PERIOD_RATIO = 1.3
MOST_AMPLITUDE_RATIO = 1.6
_PERIODS_SEARCHED = (0.75, 1.25)  # lengths of the next cycle that are tried
_LEAST_CORRELATION = 0.5  # of two neighbouring cycles

_STATISTICS = ("mean", "deviation", "low", "median", "high", "range")
# The balance of the spectrum, after Eyben et al. 2016, section 3.1.
_BALANCE = ("slope_low", "slope_middle", "alpha_ratio", "hammarberg", "centroid", "flux")
# The names of the values, in their order.
FEATURES: tuple[str, ...] = (
    *(f"pitch_{each}" for each in _STATISTICS),
    *("pitch_slope", "pitch_change", "pitch_rise", "pitch_fall"),
    *("hnr_mean", "hnr_deviation"),
    *("voiced_share", "voiced_share_of_sounding"),
    *("voiced_runs_per_s", "voiced_run_s", "unvoiced_run_s", "sounding_share", "pause_s"),
    *(f"loudness_{each}" for each in _STATISTICS),
    *("loudness_slope", "loudness_change", "loudness_rise", "loudness_fall"),
    *("syllables_per_s", "syllables_per_sounding_s"),
    *("jitter", "shimmer", "shimmer_db", "cycle_correlation"),
    *(
        f"{track}_{where}"
        for track in _BALANCE
        for where in ("voiced_mean", "voiced_deviation", "unvoiced_mean")
    ),
    *(
        f"mfcc{number}_{each}"
        for each in ("mean", "deviation", "change")
        for number in range(1, NUM_CEPSTRA + 1)
    ),
)

Mask = NDArray[np.bool_]
Values = dict[str, float]


class Prosody:
    """Measures pitch, loudness, rhythm, voice quality and timbre; see `FEATURES`."""

    def __init__(self, sample_rate_hz: int) -> None:
        self.framing = Framing.at(sample_rate_hz)
        num_bins = self.framing.num_fft // 2 + 1
        self.filters = mel_filters(
            num_bins, sample_rate_hz, NUM_MELS, low_hz=20.0, high_hz=min(8000.0, sample_rate_hz / 2)
        )
        self.cosines = cosine_transform(NUM_CEPSTRA + 1, NUM_MELS)[:, 1:]

    def measure(self, waveform: NDArray[np.float32]) -> Values:
        """float32 [samples] -> the value of each of `FEATURES`."""
        framing = self.framing
        frames = framing.cut(waveform)
        frames = frames - frames.mean(axis=1, keepdims=True)  # [frames, window]
        window = hann(framing.window)
        spectra = spectra_of(frames * window, framing.num_fft)
        power = spectra.real**2 + spectra.imag**2  # float32 [frames, bins]
        pitch = track_pitch(frames, power, framing)
        # Parseval: the mean square under the window, so that a sine of amplitude 1 has -3 dB.
        mean_square = 2 * power.sum(axis=1) / framing.num_fft / np.sum(window**2)
        loudness_db = 10 * np.log10(mean_square + POWER_FLOOR)
        sounding = _sounding(loudness_db)
        balance = _balance(power / np.sum(window**2), framing)
        cepstra = np.log(power @ self.filters + POWER_FLOOR) @ self.cosines
        return (
            _of_pitch(pitch)
            | _of_voicing(pitch.voiced, sounding)
            | _of_loudness(loudness_db, sounding, pitch.voiced)
            | _of_cycles(waveform, pitch, framing)
            | _of_balance(balance, pitch.voiced, sounding)
            | _of_cepstra(cepstra, sounding)
        )


def mel_filters(
    num_bins: int, rate_hz: int, num_mels: int, *, low_hz: float, high_hz: float
) -> NDArray[np.float32]:
    """float32 [bins, mels]: triangles of height 1, evenly spaced on the mel scale of HTK
    (O'Shaughnessy 1987: 2595 log10(1 + f / 700 Hz))."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    bins_hz = np.linspace(0, rate_hz // 2, num_bins)
    edges_hz = 700 * (10 ** (np.linspace(mel(low_hz), mel(high_hz), num_mels + 2) / 2595) - 1)
    away_hz = edges_hz - bins_hz[:, None]  # [bins, mels + 2]
    width_hz = np.diff(edges_hz)
    rising = -away_hz[:, :-2] / width_hz[:-1]
    falling = away_hz[:, 2:] / width_hz[1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def cosine_transform(num_cepstra: int, num_mels: int) -> NDArray[np.float32]:
    """float32 [mels, cepstra]: the orthonormal discrete cosine transform, type II."""
    angles = np.pi / num_mels * (np.arange(num_mels)[:, None] + 0.5) * np.arange(num_cepstra)
    cosines = np.cos(angles) * math.sqrt(2 / num_mels)
    cosines[:, 0] /= math.sqrt(2)
    return cosines.astype(np.float32)


# ---------------------------------------------------------------------------------- functionals


def _statistics(name: str, track: Floats) -> Values:
    """Of one track over the frames that count; all 0 where there are none."""
    if not len(track):
        track = np.zeros(1)
    low, middle, high = np.quantile(track, (0.1, 0.5, 0.9))
    return {
        f"{name}_mean": float(track.mean()),
        f"{name}_deviation": float(track.std()),
        f"{name}_low": float(low),
        f"{name}_median": float(middle),
        f"{name}_high": float(high),
        f"{name}_range": float(high - low),
    }


def _mean(track: Floats) -> float:
    return float(track.mean()) if len(track) else 0.0


def _slope(times_s: Floats, track: Floats) -> float:
    """Per second, of the line through all points (least squares)."""
    if len(track) < 2:
        return 0.0
    centred = times_s - times_s.mean()
    return float(centred @ track / max(centred @ centred, 1e-12))


def _changes(track: Floats, counts: Mask) -> Floats:
    """Per second, between neighbouring frames that both count."""
    both = counts[1:] & counts[:-1]
    return np.diff(track)[both] / HOP_S


def _run_lengths(flags: Mask) -> NDArray[np.int64]:
    """The lengths of all runs of True."""
    edges = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    return np.flatnonzero(edges < 0) - np.flatnonzero(edges > 0)


# --------------------------------------------------------------------------------------- groups


def _of_pitch(pitch: Pitch) -> Values:
    """In octaves above `PITCH_REFERENCE_HZ`, which is how pitch is heard."""
    voiced = pitch.voiced
    track = np.zeros(len(voiced))
    track[voiced] = np.log2(pitch.f0_hz[voiced] / PITCH_REFERENCE_HZ)
    changes = _changes(track, voiced)
    times_s = np.flatnonzero(voiced) * HOP_S
    return _statistics("pitch", track[voiced]) | {
        "pitch_slope": _slope(times_s, track[voiced]),
        "pitch_change": _mean(np.abs(changes)),
        "pitch_rise": _mean(changes[changes > 0]),
        "pitch_fall": _mean(changes[changes < 0]),
        "hnr_mean": _mean(pitch.hnr_db[voiced]),
        "hnr_deviation": float(pitch.hnr_db[voiced].std()) if voiced.any() else 0.0,
    }


def _of_voicing(voiced: Mask, sounding: Mask) -> Values:
    seconds = len(voiced) * HOP_S
    runs, gaps = _run_lengths(voiced), _run_lengths(~voiced)
    return {
        "voiced_share": float(voiced.mean()),
        "voiced_share_of_sounding": float((voiced & sounding).sum() / max(sounding.sum(), 1)),
        "voiced_runs_per_s": len(runs) / seconds,
        "voiced_run_s": _mean(runs * HOP_S),
        "unvoiced_run_s": _mean(gaps * HOP_S),
        "sounding_share": float(sounding.mean()),
        "pause_s": _mean(_run_lengths(~sounding) * HOP_S),
    }


def _sounding(loudness_db: Floats) -> Mask:
    loud_db = np.quantile(loudness_db, 0.95)
    return (loudness_db > loud_db - SOUNDING_DB) & (loudness_db > 10 * np.log10(POWER_FLOOR) + 10)


def _of_loudness(loudness_db: Floats, sounding: Mask, voiced: Mask) -> Values:
    """In dB of full scale, of the frames that sound."""
    track = loudness_db[sounding]
    changes = _changes(loudness_db, sounding)
    syllables = _count_syllables(loudness_db, sounding & voiced)
    return _statistics("loudness", track) | {
        "loudness_slope": _slope(np.flatnonzero(sounding) * HOP_S, track),
        "loudness_change": _mean(np.abs(changes)),
        "loudness_rise": _mean(changes[changes > 0]),
        "loudness_fall": _mean(changes[changes < 0]),
        "syllables_per_s": syllables / (len(loudness_db) * HOP_S),
        "syllables_per_sounding_s": syllables / max(sounding.sum() * HOP_S, HOP_S),
    }


def _count_syllables(loudness_db: Floats, is_nucleus: Mask) -> int:
    """Peaks of loudness that are voiced and loud, with a dip of 2 dB between any two (de Jong &
    Wempe 2009, "Praat script to detect syllable nuclei", Behavior Research Methods 41(2))."""
    if not is_nucleus.any():
        return 0
    smooth = np.convolve(np.pad(loudness_db, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    least = np.quantile(loudness_db, 0.95) - SYLLABLE_REACH_DB
    count, top, valley, rising = 0, -math.inf, math.inf, True
    at_top = False  # whether the highest frame since the last dip is a nucleus
    for level, nucleus in zip(smooth.tolist(), is_nucleus.tolist(), strict=True):
        if rising:
            if level > top:
                top, at_top = level, nucleus and level > least
            elif level < top - SYLLABLE_DIP_DB:
                count += at_top
                valley, rising = level, False
        elif level < valley:
            valley = level
        elif level > valley + SYLLABLE_DIP_DB:
            top, at_top, rising = level, nucleus and level > least, True
    return count + (rising and at_top)


def _of_cycles(signal: Floats, pitch: Pitch, framing: Framing) -> Values:
    """Jitter and shimmer: by how much neighbouring cycles of the voice differ, as shares of a mean
    cycle's length and amplitude ("local" in Praat's manual); measured by matching waveforms, which
    noise disturbs less than it disturbs peaks (Boersma 2009, "Should jitter be measured by peak
    picking or by waveform matching?", Folia Phoniatrica et Logopaedica 61(5)).

    One pair of cycles is measured in every voiced frame, not every pair: the clip's mean is the
    same, and all frames are one array.
    """
    nothing = {"jitter": 0.0, "shimmer": 0.0, "shimmer_db": 0.0, "cycle_correlation": 0.0}
    voiced = np.flatnonzero(pitch.voiced)
    if not len(voiced):
        return nothing
    periods = framing.rate_hz / pitch.f0_hz[voiced]  # [voiced], samples
    margin = int(np.ceil(4 * framing.rate_hz / 75.0))
    padded = np.pad(signal, margin)
    starts = _strongest(padded, framing.middles(len(pitch.f0_hz))[voiced] + margin, periods)
    first, likeness = _next_cycle(padded, starts, periods)
    following = starts + np.rint(first).astype(np.int64)
    second, likeness_after = _next_cycle(padded, following, periods)
    one = _amplitude(padded, starts, periods)
    other = _amplitude(padded, following, periods)
    ratio = np.maximum(first, second) / np.minimum(first, second)
    louder = np.maximum(one, other) / np.maximum(np.minimum(one, other), 1e-12)
    counts = (
        (np.minimum(likeness, likeness_after) > _LEAST_CORRELATION)
        & (ratio < MOST_PERIOD_RATIO)
        & (louder < MOST_AMPLITUDE_RATIO)
    )
    if not counts.any():
        return nothing
    first, second, one, other = (each[counts] for each in (first, second, one, other))
    return {
        "jitter": float(np.abs(first - second).mean() / ((first + second) / 2).mean()),
        "shimmer": float(np.abs(one - other).mean() / ((one + other) / 2).mean()),
        "shimmer_db": float(np.abs(20 * np.log10(one / other)).mean()),
        "cycle_correlation": float(likeness[counts].mean()),
    }


def _strongest(signal: Floats, middles: NDArray[np.int64], periods: Floats) -> NDArray[np.int64]:
    """The strongest sample within half a period of each middle: a cycle is cut between two
    excitations, not at one."""
    reach = int(np.ceil(periods.max() / 2))
    offsets = np.arange(-reach, reach + 1)
    near = np.abs(signal[middles[:, None] + offsets])
    near[np.abs(offsets) > periods[:, None] / 2] = -1
    return middles + offsets[near.argmax(axis=1)]


def _next_cycle(
    signal: Floats, centres: NDArray[np.int64], periods: Floats
) -> tuple[Floats, Floats]:
    """How many samples later the cycle around each centre comes again, and its correlation with
    itself there."""
    half = np.rint(periods / 2).astype(np.int64)
    length = int(2 * half.max())
    shortest, longest = (
        int(np.floor(_PERIODS_SEARCHED[0] * periods.min())) - 1,
        int(np.ceil(_PERIODS_SEARCHED[1] * periods.max())) + 1,
    )
    # Lags up to `longest` need no more: what wraps around lies at longer ones.
    size = 1 << int(np.ceil(np.log2(length + longest)))
    steps = np.arange(length + longest)
    ahead = signal[np.minimum((centres - half)[:, None] + steps, len(signal) - 1)]
    is_cycle = np.arange(length) < 2 * half[:, None]
    cycle = np.where(is_cycle, ahead[:, :length], 0)
    across = np.conj(spectra_of(cycle, size)) * spectra_of(ahead, size)
    products = signals_of(across, size)[:, : longest + 1]
    squares = np.cumsum(np.pad(ahead, ((0, 0), (1, 0))) ** 2, axis=1, dtype=np.float64)
    lags = np.arange(longest + 1)
    ends = np.minimum(lags + 2 * half[:, None], squares.shape[1] - 1)
    energies = np.take_along_axis(squares, ends, axis=1) - squares[:, : longest + 1]
    own = (cycle**2).sum(axis=1, keepdims=True)
    likeness = products / np.sqrt(np.maximum(own * energies, 1e-20))
    low, high = (share * periods[:, None] for share in _PERIODS_SEARCHED)
    allowed = (lags >= np.maximum(low, shortest)) & (lags <= high)
    best = np.where(allowed, likeness, -np.inf).argmax(axis=1).clip(1, longest - 1)
    rows = np.arange(len(best))
    below, at, above = (likeness[rows, best + step] for step in (-1, 0, 1))
    curve = np.minimum(below - 2 * at + above, -1e-12)
    return best + np.clip(0.5 * (below - above) / curve, -0.5, 0.5), at


def _amplitude(signal: Floats, centres: NDArray[np.int64], periods: Floats) -> Floats:
    """Root mean square of the cycle around each centre."""
    half = np.rint(periods / 2).astype(np.int64)
    squares = np.concatenate([[0.0], np.cumsum(signal**2, dtype=np.float64)])
    ends = np.minimum(centres + half, len(signal))
    return np.sqrt(np.maximum(squares[ends] - squares[centres - half], 0) / (2 * half))


def _balance(power: Floats, framing: Framing) -> dict[str, Floats]:
    """Tracks [frames]: slopes of the spectrum from 0 to 500 and from 500 to 1500 Hz, in dB per kHz;
    alpha ratio, power from 1 to 5 kHz over that from 50 Hz to 1 kHz, in dB; Hammarberg index, the
    highest peak below 2 kHz over that from 2 to 5 kHz, in dB; centroid in octaves above 1 kHz;
    flux, by how much the shape changed from the frame before, 0 to 1."""
    bins_hz = np.arange(power.shape[1]) * framing.rate_hz / framing.num_fft
    level_db = 10 * np.log10(power + POWER_FLOOR)
    shape = power / np.maximum(power.sum(axis=1, keepdims=True), POWER_FLOOR)

    def band(low_hz: float, high_hz: float) -> slice:
        first, end = np.searchsorted(bins_hz, (low_hz, high_hz))
        return slice(int(first), max(int(end), int(first) + 2))

    def slope(low_hz: float, high_hz: float) -> Floats:
        inside = band(low_hz, high_hz)
        khz = (bins_hz[inside] - bins_hz[inside].mean()) / 1000
        return level_db[:, inside] @ khz / (khz @ khz)

    def total_db(low_hz: float, high_hz: float) -> Floats:
        return 10 * np.log10(power[:, band(low_hz, high_hz)].sum(axis=1) + POWER_FLOOR)

    centroid_hz = np.maximum(shape @ bins_hz, 20.0)
    change = np.abs(np.diff(shape, axis=0)).sum(axis=1) / 2
    return {
        "slope_low": slope(0, 500),
        "slope_middle": slope(500, 1500),
        "alpha_ratio": total_db(1000, 5000) - total_db(50, 1000),
        "hammarberg": level_db[:, band(0, 2000)].max(axis=1)
        - level_db[:, band(2000, 5000)].max(axis=1),
        "centroid": np.log2(centroid_hz / 1000),
        "flux": np.concatenate([[0.0], change]),
    }


def _of_balance(tracks: dict[str, Floats], voiced: Mask, sounding: Mask) -> Values:
    values: Values = {}
    for name in _BALANCE:
        in_voice = tracks[name][voiced]
        values |= {
            f"{name}_voiced_mean": _mean(in_voice),
            f"{name}_voiced_deviation": float(in_voice.std()) if len(in_voice) else 0.0,
            f"{name}_unvoiced_mean": _mean(tracks[name][sounding & ~voiced]),
        }
    return values


def _of_cepstra(cepstra: Floats, sounding: Mask) -> Values:
    """Mean, deviation and mean absolute change per second of each mel cepstral coefficient
    (Davis & Mermelstein 1980)."""
    inside = cepstra[sounding]
    both = sounding[1:] & sounding[:-1]
    changes = np.abs(np.diff(cepstra, axis=0))[both] / HOP_S
    if not len(inside):
        inside = np.zeros((1, NUM_CEPSTRA))
    if not len(changes):
        changes = np.zeros((1, NUM_CEPSTRA))
    values: Values = {}
    for name, each in (
        ("mean", inside.mean(axis=0)),
        ("deviation", inside.std(axis=0)),
        ("change", changes.mean(axis=0)),
    ):
        values |= {f"mfcc{k + 1}_{name}": float(value) for k, value in enumerate(each)}
    return values
