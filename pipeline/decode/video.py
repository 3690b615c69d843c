"""Packets to the sampled frames: what nobody asked for is hardly ever decoded."""

import time
from collections.abc import Iterator
from itertools import pairwise

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.decode.container import MAX_SECONDS_PER_CLIP, MEDIA_ERRORS, reason
from pipeline.decode.ledger import Ledger
from pipeline.decode.packets import Packets
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig

_LEANING = (PictureType.P, PictureType.B)


def try_video(
    packets: Packets, config: DecodeConfig, ledger: Ledger
) -> tuple[NDArray[np.uint8] | None, NDArray[np.float64] | None]:
    """Frames [num_frames, height, width, 3] and their times in seconds, as in `DecodedClip`;
    None, and the reason in the ledger, where there are none to be had."""
    if packets.video is None:
        return None, None
    try:
        return _decode_video(packets.video, config, ledger)
    except ClipError as error:
        ledger.add("video", error, lost=True)
    except MEDIA_ERRORS as error:
        ledger.add("video", ClipError("video_decode", reason(error)), lost=True)
    return None, None


def _decode_video(
    packets: list[av.Packet], config: DecodeConfig, ledger: Ledger
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    time_base = float(packets[0].time_base or 0) if packets else 0.0
    shown = _presentation_ticks(packets)
    if len(shown) == 0:
        raise ClipError("no_frames", "the video stream holds no frame")
    shown = shown[(shown - shown[0]) * time_base < config.max_duration_s]
    if len(shown) < config.num_frames:
        message = f"{len(shown)} frames; some are repeated to make {config.num_frames}"
        ledger.add("video", ClipError("few_frames", message), lost=False)
    wanted = choose_frames(shown, _last_duration(packets, shown), config.num_frames)
    decoded, num_bad = _decode_wanted(packets, {int(tick) for tick in wanted}, config)
    if not decoded:
        raise ClipError("video_decode", f"none of {len(packets)} packets could be decoded")
    if num_bad:
        message = f"{num_bad} of {len(packets)} video packets could not be decoded"
        ledger.add("video", ClipError("bad_packets", message), lost=False)
    # A frame that was lost is stood in for by the nearest one that was not.
    ticks = np.array(sorted(decoded), dtype=np.int64)
    nearest = ticks[np.abs(ticks[None, :] - wanted[:, None]).argmin(axis=1)]
    frames = np.stack([decoded[int(tick)] for tick in nearest])
    return frames, (nearest - shown[0]) * time_base


def _presentation_ticks(packets: list[av.Packet]) -> NDArray[np.int64]:
    """Sorted presentation times in ticks of every picture that will be shown.

    AVI has decoding times only: the same times, each given to another picture where pictures
    are reordered.
    """
    return np.array(
        sorted({_tick(packet) for packet in packets if not packet.is_discard}), dtype=np.int64
    )


def _tick(packet: av.Packet) -> int:
    tick = packet.pts if packet.pts is not None else packet.dts
    if tick is None:
        raise ClipError("no_times", "a video packet has no time stamp")
    return int(tick)


def _last_duration(packets: list[av.Packet], shown: NDArray[np.int64]) -> int:
    if packets[-1].duration:
        return int(packets[-1].duration)
    return int(np.median(np.diff(shown))) if len(shown) > 1 else 1


def choose_frames(
    shown: NDArray[np.int64], last_duration: int, num_frames: int
) -> NDArray[np.int64]:
    """Which frames to sample: the one on screen at the middle of each of `num_frames` equal
    parts of the clip.

    By time, not by index, so that a variable frame rate does not distort. With fewer pictures
    than `num_frames`, pictures repeat.

    Args:
        shown: int64 [pictures], sorted presentation times in ticks.
        last_duration: how long the last picture stays, in ticks.

    Returns:
        int64 [num_frames], elements of `shown`, ascending.
    """
    span = int(shown[-1] - shown[0]) + max(last_duration, 1)
    middles = shown[0] + (2 * np.arange(num_frames) + 1) * span / (2 * num_frames)
    return shown[np.searchsorted(shown, middles, side="right") - 1]


def _decode_wanted(
    packets: list[av.Packet], wanted: set[int], config: DecodeConfig
) -> tuple[dict[int, NDArray[np.uint8]], int]:
    """Wanted pictures by tick, and how many packets were broken."""
    context = packets[0].stream.codec_context
    context.thread_count = 1  # many processes decode side by side; threads would only contend
    context.thread_type = "NONE"
    # AVI tells no presentation times; what FFmpeg puts there are guesses.
    timed = packets[0].stream.container.format.name != "avi"
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
