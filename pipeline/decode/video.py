"""Decodes the packets of a window into its sampled frames, with entries in the ledger."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.decode.container import MEDIA_ERRORS, reason
from pipeline.decode.ledger import Ledger
from pipeline.decode.packets import VideoPackets
from pipeline.decode.wanted import Decoded, decode_wanted, tick_of, ticks_shown
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """frames: uint8 [num_frames, height, width, 3]; times_s: float64 [num_frames], as in
    `DecodedMedia`."""

    frames: NDArray[np.uint8]
    times_s: NDArray[np.float64]


def try_video(given: VideoPackets, config: DecodeConfig, ledger: Ledger) -> Pictures | None:
    """Decodes the sampled frames; None, with the reason in the ledger, if there are none."""
    try:
        if given.error is not None:
            raise given.error
        return _decode_video(given, config, ledger)
    except ClipError as error:
        ledger.add("video", error, lost=True)
    except MEDIA_ERRORS as error:
        ledger.add("video", ClipError("video_decode", reason(error)), lost=True)
    return None


def _decode_video(given: VideoPackets, config: DecodeConfig, ledger: Ledger) -> Pictures:
    packets = given.packets
    if not packets:
        raise ClipError("no_frames", "the video stream holds no frame")
    screen = _on_screen(given)
    wanted, decoded = _decode_chosen(given, screen, config)
    first = _first_shown(given, screen, decoded)
    if first > screen.shown[0]:
        screen = _on_screen(given, first)
        wanted, decoded = _decode_chosen(given, screen, config)
    if len(screen.shown) < config.num_frames:
        message = f"{len(screen.shown)} frames; some are repeated to make {config.num_frames}"
        ledger.add("video", ClipError("few_frames", message), lost=False)
    if decoded.num_bad:
        message = f"{decoded.num_bad} of {len(packets)} video packets could not be decoded"
        ledger.add("video", ClipError("bad_packets", message), lost=False)
    time_base = float(given.window.time_base)
    _note_stand_ins(wanted, decoded, time_base, ledger)
    shown = [decoded.shown_for[tick] for tick in wanted]
    return Pictures(
        frames=np.stack([decoded.pictures[tick] for tick in shown]),
        times_s=(np.array(shown, dtype=np.float64) - screen.zero) * time_base,
    )


def _decode_chosen(
    given: VideoPackets, screen: "Screen", config: DecodeConfig
) -> tuple[list[int], Decoded]:
    """The ticks to sample, and the pictures decoded for them."""
    packets, wanted = given.packets, choose_frames(screen, config.num_frames).tolist()
    begins_whole = packets[0].is_keyframe and tick_of(packets[0]) <= screen.shown[0]
    is_whole = begins_whole or given.window.start is not None
    return wanted, decode_wanted(packets, wanted, config, is_whole=is_whole)


def _first_shown(given: VideoPackets, screen: "Screen", decoded: Decoded) -> int:
    """The tick of the first picture that can be shown at the start of a stream.

    A file that was cut out of another may begin with pictures that refer to removed ones: those
    before its first key frame, and those decoded after it but shown before it. They do not count as
    pictures of the file; later lost pictures do.
    """
    start = int(screen.shown[0])
    keys = [tick_of(packet) for packet in given.packets if packet.is_keyframe]
    if given.window.start is not None or not keys:
        return start
    return max(start, min(decoded.first, keys[0]))


def _note_stand_ins(
    wanted: Sequence[int], decoded: Decoded, time_base: float, ledger: Ledger
) -> None:
    away = [
        abs(tick - decoded.shown_for[tick])
        for tick in wanted
        if tick != decoded.shown_for[tick] and tick not in decoded.continued
    ]
    if away:
        message = (
            f"{len(away)} of {len(wanted)} sampled frames were not decoded; frames up to "
            f"{max(away) * time_base:.2f} s away replace them"
        )
        ledger.add("video", ClipError("stand_ins", message), lost=False)


@dataclass(frozen=True, kw_only=True)
class Screen:
    """The pictures on screen in a window, in ticks.

    shown: int64 [pictures], sorted presentation times; the first picture is on screen when the
        window starts, or is the first to appear in it
    start, end: first and last time at which a picture of the window is on screen
    zero:  the origin of times: the start of the window
    """

    shown: NDArray[np.int64]
    start: float
    end: float
    zero: float


def _on_screen(given: VideoPackets, first: int | None = None) -> Screen:
    """Raises ClipError if the window shows no picture.

    first: the tick of the first picture that can be shown, if it is not the first packet's
    """
    window, every = given.window, ticks_shown(given.packets)
    for limit in (window.shown_from, first):
        if limit is not None:
            every = every[every >= limit]
    if len(every) == 0:
        raise ClipError("no_frames", "the video stream holds no frame")
    start: float = int(every[0])
    zero = float(window.zero)
    shown = every
    if window.start is not None:
        # The picture that is on screen when the window starts appeared before it.
        before = int(np.searchsorted(every, math.floor(window.start), "right"))
        start = zero if before else start
        shown = every[max(before - 1, 0) :]
    shown = shown[shown < (window.limit if window.end is None else window.past)]
    if len(shown) == 0:
        raise ClipError("no_frames", "the video begins after the span")
    # The last picture stays until the next appears, in the window or after it.
    end: float = int(shown[-1]) + max(_last_duration(given.packets, shown), 1)
    if window.end is not None:
        window_end = float(window.end)
        is_followed = given.stop == "end" or every[-1] >= window.past
        end = window_end if is_followed else min(end, window_end)
    if end <= start:
        raise ClipError("no_frames", "the video ends before the span")
    return Screen(shown=shown, start=start, end=end, zero=zero)


def _last_duration(packets: list[av.Packet], shown: NDArray[np.int64]) -> int:
    if packets[-1].duration:
        return int(packets[-1].duration)
    return int(np.median(np.diff(shown))) if len(shown) > 1 else 1


def choose_frames(screen: Screen, num_frames: int) -> NDArray[np.int64]:
    """Which frames to sample: the one on screen at the middle of each of `num_frames` equal
    parts of the window.

    By time, not by index, so that a variable frame rate does not distort. With fewer pictures
    than `num_frames`, pictures repeat.

    Returns:
        int64 [num_frames], elements of `screen.shown`, ascending.
    """
    length = screen.end - screen.start
    middles = screen.start + (2 * np.arange(num_frames) + 1) * length / (2 * num_frames)
    return screen.shown[np.searchsorted(screen.shown, middles, side="right") - 1]
