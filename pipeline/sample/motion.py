"""Motion by frame: the place of the head, the opening of the mouth, and blinks."""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FRAME_RATE = (24_000, 1001)  # frames per second, MELD's own
FRAME_S = FRAME_RATE[1] / FRAME_RATE[0]

_STEP = 4  # in pixels: few different places, so that few different pictures are drawn
_MOUTH_LEVELS = (0.0, 0.45, 1.0)


class Pose(NamedTuple):
    """The parts that differ between frames: shift right and down, mouth opening, eyes."""

    right: int
    down: int
    mouth: float
    blink: bool


def poses(loudness: NDArray[np.float32], emotion: str, *, rng: random.Random) -> list[Pose]:
    """Makes one pose per frame.

    loudness: [num_frames], any unit; the mouth opens in proportion to it, fully at its maximum
    """
    mouths = _mouth_openings(loudness)
    blinks = _blinks(len(loudness), rng)
    if emotion in ("surprise", "fear"):  # wide eyes do not blink
        blinks = [False] * len(loudness)
    move, phase = _MOVES[emotion], rng.uniform(0, 0.5)
    drawn: list[Pose] = []
    for index, (mouth, blink) in enumerate(zip(mouths, blinks, strict=True)):
        if index % 2:  # each pose lasts two frames, as in drawn animation
            drawn.append(drawn[-1])
            continue
        right, down = move(index * FRAME_S + phase)
        drawn.append(Pose(_stepped(right), _stepped(down), mouth, blink))
    return drawn


def _mouth_openings(loudness: NDArray[np.float32]) -> list[float]:
    relative = loudness / max(float(loudness.max()), 1e-9)
    levels = np.digitize(relative, (0.12, 0.5))
    return [_MOUTH_LEVELS[level] for level in levels]


def _blinks(num_frames: int, rng: random.Random) -> list[bool]:
    blinks = [False] * num_frames
    start = rng.randint(8, 40)
    while start < num_frames:
        blinks[start : start + 4] = [True] * len(blinks[start : start + 4])
        start += rng.randint(40, 90)
    return blinks


def _stepped(distance: float) -> int:
    return round(distance / _STEP) * _STEP


def _sine(time_s: float, rate_hz: float) -> float:
    return math.sin(2 * math.pi * rate_hz * time_s)


_MOVES: dict[str, Callable[[float], tuple[float, float]]] = {
    "neutral": lambda t: (5 * _sine(t, 0.35), 0),
    "surprise": lambda t: (0, -36 * min(1.0, max(0.0, (t - 0.3) / 0.2))),
    "fear": lambda t: (16 * (1 if _sine(t, 6) > 0 else -1), 4),
    "sadness": lambda t: (5 * _sine(t, 0.25), 24 + 24 * min(1.0, t / 1.4)),
    "joy": lambda t: (8 * _sine(t, 0.9), -24 * abs(_sine(t, 0.9))),
    "disgust": lambda t: (-40 * min(1.0, t / 0.8), 8),
    "anger": lambda t: (20 * _sine(t, 2.6), 8),
}
