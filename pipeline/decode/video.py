"""Packets to the sampled frames: only packets that these frames need are decoded."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.decode.container import MAX_SECONDS_PER_CLIP, MEDIA_ERRORS, is_timed, reason
from pipeline.decode.ledger import Ledger
from pipeline.decode.packets import VideoPackets
from pipeline.decode.window import shown_tick
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig

_LEANING = (PictureType.P, PictureType.B)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """frames: uint8 [num_frames, height, width, 3]; times_s: float64 [num_frames], as in
    `DecodedMedia`."""

    frames: NDArray[np.uint8]
    times_s: NDArray[np.float64]


def try_video(given: VideoPackets, config: DecodeConfig, ledger: Ledger) -> Pictures | None:
    """None, and the reason in the ledger, where there are no pictures."""
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
    if len(screen.shown) < config.num_frames:
        message = f"{len(screen.shown)} frames; some are repeated to make {config.num_frames}"
        ledger.add("video", ClipError("few_frames", message), lost=False)
    wanted = choose_frames(screen, config.num_frames)
    decoded, num_bad = _decode_wanted(packets, {int(tick) for tick in wanted}, config)
    if not decoded:
        raise ClipError("video_decode", f"none of {len(packets)} packets could be decoded")
    if num_bad:
        message = f"{num_bad} of {len(packets)} video packets could not be decoded"
        ledger.add("video", ClipError("bad_packets", message), lost=False)
    # A frame that was lost is stood in for by the nearest one that was not.
    ticks = np.array(sorted(decoded), dtype=np.int64)
    nearest = ticks[np.abs(ticks[None, :] - wanted[:, None]).argmin(axis=1)]
    return Pictures(
        frames=np.stack([decoded[int(tick)] for tick in nearest]),
        times_s=(nearest - screen.zero) * float(given.window.time_base),
    )


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What a window shows, in ticks.

    shown: int64 [pictures], sorted presentation times; the first is on screen when the window
        starts, or appears in it first
    start, end: when the screen first shows a picture of the window, and when it last does
    zero:  what times are counted from: the window's start
    """

    shown: NDArray[np.int64]
    start: float
    end: float
    zero: float


def _on_screen(given: VideoPackets) -> Screen:
    """Raises ClipError where the window shows no picture."""
    window, every = given.window, _presentation_ticks(given.packets)
    if window.shown_from is not None:
        every = every[every >= window.shown_from]
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
        raise ClipError("no_frames", "the picture begins after the span")
    # The last picture stays until the next appears, in the window or after it.
    end: float = int(shown[-1]) + max(_last_duration(given.packets, shown), 1)
    if window.end is not None:
        window_end = float(window.end)
        is_followed = given.stop == "end" or every[-1] >= window.past
        end = window_end if is_followed else min(end, window_end)
    if end <= start:
        raise ClipError("no_frames", "the picture ends before the span")
    return Screen(shown=shown, start=start, end=end, zero=zero)


def _presentation_ticks(packets: list[av.Packet]) -> NDArray[np.int64]:
    """Sorted presentation times in ticks of every picture that will be shown."""
    return np.array(
        sorted({_tick(packet) for packet in packets if not packet.is_discard}), dtype=np.int64
    )


def _tick(packet: av.Packet) -> int:
    tick = shown_tick(packet)
    if tick is None:
        raise ClipError("no_times", "a video packet has no time stamp")
    return int(tick)


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


def _decode_wanted(
    packets: list[av.Packet], wanted: set[int], config: DecodeConfig
) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """Wanted pictures by tick, and how many packets were broken."""
    context = packets[0].stream.codec_context
    if context.is_open:  # by the span before
        context.flush_buffers()
    else:
        context.thread_count = 1  # many processes decode side by side; threads would only contend
        context.thread_type = "NONE"
    timed = is_timed(packets[0].stream.container)
    try:
        decoded, num_bad = _decode_pass(packets, wanted, config, timed=timed, skipping=timed)
    except _NotIntra:
        context.flush_buffers()
        decoded, num_bad = _decode_pass(packets, wanted, config, timed=timed, skipping=False)
    return decoded or _decode_any(packets, config), num_bad


class _NotIntra(Exception):
    """A "key frame" that leans on pictures before it (x264's intra refresh, some cameras)."""


def _decode_pass(
    packets: list[av.Packet],
    wanted: set[int],
    config: DecodeConfig,
    *,
    timed: bool,
    skipping: bool,
) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """One pass over the packets; `skipping` leaves out what no wanted picture needs."""
    context = packets[0].stream.codec_context
    context.skip_frame = "DEFAULT"
    reformatter = VideoReformatter()
    deadline = time.monotonic() + MAX_SECONDS_PER_CLIP
    key_ticks = {_tick(packet) for packet in packets if packet.is_keyframe}
    in_order = iter(_presentation_ticks(packets).tolist())
    decoded: dict[int, NDArray[np.uint8]] = {}
    num_bad = 0
    for packet in _needed_packets(packets, wanted) if skipping else [*packets, None]:
        try:
            # NONREF skips pictures that no other picture needs: those we want must be exempt.
            if packet is not None and skipping:
                context.skip_frame = "DEFAULT" if _tick(packet) in wanted else "NONREF"
            for frame in context.decode(packet):
                # Without presentation times the n-th picture to come out has the n-th time.
                tick = frame.pts if timed else next(in_order, None)
                if skipping and tick in key_ticks and frame.pict_type in _LEANING:
                    raise _NotIntra
                if tick in wanted:
                    decoded[int(tick)] = _to_rgb(frame, reformatter, config)
        except FFmpegError:
            num_bad += 1
        if time.monotonic() > deadline:
            raise ClipError("timeout", f"not decoded within {MAX_SECONDS_PER_CLIP:.0f} s")
    return decoded, num_bad


def _needed_packets(packets: list[av.Packet], wanted: set[int]) -> Iterator[av.Packet | None]:
    """The packets that wanted pictures need, then None, which flushes the decoder.

    Of each group of pictures (key frame to key frame) only those up to its last wanted one are
    needed, and none of a group without one. But a picture shown before its group's key frame
    leans on the group before as well, so that one is then needed whole.
    """
    starts = [i for i, packet in enumerate(packets) if packet.is_keyframe or i == 0]
    groups = [packets[first:end] for first, end in pairwise([*starts, len(packets)])]
    for index, group in enumerate(groups):
        following = groups[index + 1] if index + 1 < len(groups) else []
        if any(_tick(packet) in wanted for packet in _leading(following)):
            yield from group
        else:
            last = max((i for i, packet in enumerate(group) if _tick(packet) in wanted), default=-1)
            yield from group[: last + 1]
    yield None


def _leading(group: list[av.Packet]) -> list[av.Packet]:
    """Pictures decoded after the group's key frame and shown before it."""
    return [packet for packet in group if _tick(packet) < _tick(group[0])]


def _decode_any(packets: list[av.Packet], config: DecodeConfig) -> dict[int, NDArray[np.uint8]]:
    """When no wanted picture came out, the first that do come out stand in for them."""
    context = packets[0].stream.codec_context
    context.flush_buffers()
    context.skip_frame = "DEFAULT"
    reformatter = VideoReformatter()
    decoded: dict[int, NDArray[np.uint8]] = {}
    deadline = time.monotonic() + MAX_SECONDS_PER_CLIP
    for packet in [*packets, None]:
        try:
            for frame in context.decode(packet):
                if frame.pts is not None:
                    decoded[int(frame.pts)] = _to_rgb(frame, reformatter, config)
        except FFmpegError:
            continue
        if len(decoded) >= config.num_frames or time.monotonic() > deadline:
            break
    return decoded


def _to_rgb(
    frame: av.VideoFrame, reformatter: VideoReformatter, config: DecodeConfig
) -> NDArray[np.uint8]:
    """uint8 [height, width, 3], upright: PyAV leaves the display rotation to its user."""
    height, width = config.frame_height, config.frame_width
    quarter_turns = round(frame.rotation / 90) % 4
    if quarter_turns % 2:
        height, width = width, height
    scaled = reformatter.reformat(
        frame, width=width, height=height, format="rgb24", interpolation="BILINEAR"
    )
    return np.ascontiguousarray(np.rot90(scaled.to_ndarray(), quarter_turns))
