"""Reads the names and samples of the channels of decoded sound, and avoids crashes of PyAV."""

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import av
import numpy as np
from av.audio.plane import AudioPlane
from numpy.typing import NDArray

from pipeline.errors import ClipError

# The maximum of FFmpeg's resampler; a window of all channels is in memory.
MAX_CHANNELS = 64
# The names of a layout's channels, by FFmpeg's name of the layout. Files decide how many there are.
_KNOWN: dict[str, tuple[str, ...]] = {}
_MOST_KNOWN = 256
# FFmpeg's name of a channel whose position is unknown.
UNKNOWN = "NONE"
# FFmpeg's sample formats, without the "p" of the planar ones; integers with their full scale.
_FORMATS = {
    "u8": (np.uint8, 2**7),
    "s16": (np.int16, 2**15),
    "s32": (np.int32, 2**31),
    "s64": (np.int64, 2**63),
    "flt": (np.float32, 1),
    "dbl": (np.float64, 1),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A piece of consecutive samples.

    names:       of the channels (see `channel_names`)
    samples:     float32 [channels, samples], every one a number
    is_repaired: some were not finite and were replaced by silence
    """

    names: tuple[str, ...]
    samples: NDArray[np.float32]
    is_repaired: bool = False

    @property
    def num_samples(self) -> int:
        return self.samples.shape[1]

    def cut(self, start: int, end: int) -> "Part":
        if start <= 0 and end >= self.num_samples:
            return self
        samples = self.samples[:, max(start, 0) : max(end, 0)]
        return Part(names=self.names, samples=samples, is_repaired=self.is_repaired)

    @cached_property
    def energies(self) -> NDArray[np.float64]:
        """float64 [channels]: sums of squares"""
        with np.errstate(over="ignore"):
            energies = np.vecdot(self.samples, self.samples).astype(np.float64)
        if np.isfinite(energies).all():
            return energies
        exact = self.samples.astype(np.float64)  # far beyond full scale
        return np.vecdot(exact, exact)


def settle_channels(context: av.AudioCodecContext) -> tuple[str, ...]:
    """The names of the channels as the container has them; to be called before the decoder opens.

    For channels in an unusual order (QuickTime has "L C R Ls Rs LFE"), FFmpeg allocates a list. In
    PyAV 18.1 each `AudioLayout` copies the pointer to that list and frees it, as the decoder and
    each frame do. It is freed twice, which crashes the process. So the one layout made here is kept
    for ever, and the decoder only gets the number of channels.

    Raises ClipError for more than `MAX_CHANNELS`.
    """
    layout = context.layout
    names = _names(layout)
    if len(names) > MAX_CHANNELS:
        message = f"{len(names)} channels of sound; at most {MAX_CHANNELS} are read"
        raise ClipError("too_many_channels", message)
    if _is_listed(layout.name):
        context.options = {**context.options, "ch_layout": f"{len(names)} channels"}
    return names


def channel_names(frame: av.AudioFrame) -> tuple[str, ...]:
    """FFmpeg's names: "FL", "FC"; `UNKNOWN` if the position of a channel is unknown."""
    return _names(frame.layout)


def _names(layout: av.AudioLayout) -> tuple[str, ...]:
    name = layout.name
    if _is_listed(name):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
        return tuple(channel.name for channel in layout.channels)
    if name not in _KNOWN:  # asked for every frame: making the channels anew takes longer
        names = tuple(channel.name for channel in layout.channels)
        if len(_KNOWN) >= _MOST_KNOWN:
            return names
        _KNOWN[name] = names
    return _KNOWN[name]


def _is_listed(layout: str) -> bool:
    """FFmpeg writes "6 channels (FL+FC+FR+SL+SR+LFE)"; a few in the common order too."""
    return "(" in layout.partition(" ")[2]


def read_part(frame: av.AudioFrame, names: tuple[str, ...]) -> Part:
    """A decoded frame's samples. `names`: those of its channels.

    Raises ValueError for more than `MAX_CHANNELS`.
    """
    if len(names) > MAX_CHANNELS:
        raise ValueError(f"{len(names)} channels; at most {MAX_CHANNELS} are read")
    samples = _read_samples(frame, len(names))
    # The sum of squares is finite only if all samples are; it overflows for very large ones too.
    if np.isfinite(np.vdot(samples, samples)) or np.isfinite(samples).all():
        return Part(names=names, samples=samples)
    samples = np.nan_to_num(samples, nan=0.0, posinf=0.0, neginf=0.0)
    return Part(names=names, samples=samples, is_repaired=True)


def _read_samples(frame: av.AudioFrame, num_channels: int) -> NDArray[np.float32]:
    """[channels, samples]

    This avoids `frame.to_ndarray()` and `frame.planes`. In PyAV 18.1 they count the planes of a
    frame up to the first null pointer. A planar frame of eight channels fills all of
    `AVFrame.data`, so the memory behind it (`linesize`) is read as a ninth plane, which crashes
    the process. With more channels, they read beyond the array of pointers.
    """
    sample_type, full_scale = _FORMATS[frame.format.name.removesuffix("p")]

    def plane(index: int, num: int) -> NDArray[Any]:
        there: Any = AudioPlane(frame, index)
        return np.frombuffer(there, sample_type, num)

    samples = np.empty((num_channels, frame.samples), np.float32)
    with np.errstate(over="ignore"):  # a double may be too large: infinite, and repaired as such
        if frame.format.is_planar:
            for channel in range(num_channels):
                samples[channel] = plane(channel, frame.samples)
        else:
            samples[:] = plane(0, frame.samples * num_channels).reshape(-1, num_channels).T
    if sample_type is np.uint8:
        samples -= full_scale
    if full_scale != 1:  # to [-1, 1), to the bit as FFmpeg's resampler does
        samples *= np.float32(1 / full_scale)
    return samples


def energy_of(samples: NDArray[np.float32]) -> float:
    energy = float(np.vdot(samples, samples))
    if np.isfinite(energy):
        return energy
    exact = samples.astype(np.float64)  # far beyond full scale
    return float(np.vdot(exact, exact))
