"""Mixes sound of any number of channels into one, by the rules in `DecodeConfig`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.channels import Part, energy_of
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig

# A channel has sound if its energy is at least this share of that of the loudest one: -40 dB.
_HEARD = 1e-4
# The energy of a sum of independent channels is the sum of their energies; below this share of it,
# the channels cancel each other out.
_CANCELLED = 0.1
_LOW_FREQUENCY = ("LFE", "LFE2")


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The mean of `channels` (indices); `warnings` list what was guessed or left out."""

    channels: tuple[int, ...]
    warnings: tuple[ClipError, ...] = ()

    def of(self, part: Part) -> NDArray[np.float32]:
        """float32 [samples]"""
        if len(self.channels) == 1:
            return part.samples[self.channels[0]]
        if len(self.channels) == len(part.samples):
            return part.samples.mean(axis=0, dtype=np.float32)
        return part.samples[list(self.channels)].mean(axis=0, dtype=np.float32)


def has_centre(names: Sequence[str], config: DecodeConfig) -> bool:
    """Whether to use the front centre of surround sound, which carries the dialogue."""
    return config.channel == "front_centre" and len(names) > 2 and "FC" in names


def choose_mix(
    parts: Sequence[Part], energies_so_far: NDArray[np.float64], config: DecodeConfig
) -> Mix:
    """Chooses how the channels of a window become one, by the rules in `DecodeConfig`.

    parts:           the sound of the window, all with the same channels
    energies_so_far: float64 [channels], energy of the file up to the end of the window: a centre
        with earlier speech is in use, although it is silent in this window
    """
    names = parts[0].names
    if len(names) == 1:
        return Mix(channels=(0,))
    candidates, warnings = np.arange(len(names)), []
    if has_centre(names, config):
        centre = names.index("FC")
        others = [index for index, name in enumerate(names) if name not in ("FC", *_LOW_FREQUENCY)]
        if energies_so_far[centre] >= _HEARD * max(energies_so_far[others], default=0.0):
            return Mix(channels=(centre,))
        message = "the front centre channel is silent; the mean of those that have sound was taken"
        candidates, warnings = np.array(others), [ClipError("silent_centre", message)]
    energies = np.sum([part.energies for part in parts], axis=0)[candidates]
    is_heard = energies >= _HEARD * energies.max()
    heard, energies = candidates[is_heard], energies[is_heard]
    if len(heard) > 1:
        together = sum(energy_of(part.samples[heard].sum(axis=0)) for part in parts)
        if together < _CANCELLED * energies.sum():
            # The first of those about as loud as the loudest, so that all windows use the same one.
            heard = heard[energies >= energies.max() / 2][:1]
            taken = _called(names, int(heard[0]))
            message = f"the channels cancel each other out; {taken} alone was taken"
            warnings.append(ClipError("opposite_phase", message))
    return Mix(channels=tuple(heard.tolist()), warnings=tuple(warnings))


def _called(names: Sequence[str], index: int) -> str:
    is_unique = names.count(names[index]) == 1
    return names[index] if is_unique else f"channel {index + 1} of {len(names)}"
