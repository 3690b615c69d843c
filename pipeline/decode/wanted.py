"""Decodes only the wanted pictures if possible, else all."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from pipeline.decode.bitstream import (
    group_starts,
    is_hidden,
    may_be_skipped,
    repeats_picture,
    skipping_of,
)
from pipeline.decode.container import MAX_SECONDS_PER_CLIP, is_timed, one_packet
from pipeline.decode.orientation import Orientation
from pipeline.decode.window import shown_tick
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig, FrameFit, FrameView

_LEANING = (PictureType.P, PictureType.B)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """The decoded pictures for the wanted ticks.

    pictures:  uint8 [height, width, 3], upright, by the tick at which each is shown
    shown_for: for each wanted tick, the tick of the picture used for it: its own, or else the one
        on screen then (the first of all if none was decoded before)
    continued: wanted ticks that have no picture of their own
    first:     the lowest decoded tick
    num_bad:   packets that could not be decoded
    """

    pictures: dict[int, NDArray[np.uint8]]
    shown_for: dict[int, int]
    continued: frozenset[int] = frozenset()
    first: int
    num_bad: int = 0


def decode_wanted(
    packets: Sequence[av.Packet],
    wanted: Sequence[int],
    config: DecodeConfig,
    *,
    is_whole: bool,
) -> Decoded:
    """The pictures at the wanted ticks, as a decoder that gets all packets would show them.

    Args:
        wanted: ticks, each the `tick_of` of a packet
        is_whole: the packets begin with a picture that can be shown, or all wanted ones are later

    Raises:
        ClipError: no picture was decoded, or decoding took too long.
    """
    context = packets[0].stream.codec_context
    if context.is_open:  # by the span before
        context.flush_buffers()
    else:
        context.thread_count = 1  # many processes decode in parallel; threads would only compete
        context.thread_type = "NONE"
    if is_whole and _is_timed(packets) and skipping_of(packets) != "none":
        decoded = _decode_needed(packets, frozenset(wanted), config)
        if decoded is not None:
            return decoded
        context.flush_buffers()
    return _decode_all(packets, wanted, config)


def tick_of(packet: av.Packet) -> int:
    """Presentation time of the picture of a packet. Raises ClipError if it is unknown."""
    tick = shown_tick(packet)
    if tick is None:
        raise ClipError("no_times", "a video packet has no time stamp")
    return int(tick)


def ticks_shown(packets: Sequence[av.Packet]) -> NDArray[np.int64]:
    """The presentation times of all pictures that are shown: int64 [pictures], sorted."""
    shown = {tick_of(each) for each in packets if not (each.is_discard or is_hidden(each))}
    return np.array(sorted(shown), dtype=np.int64)


def _is_timed(packets: Sequence[av.Packet]) -> bool:
    return is_timed(packets[0].stream.container) and all(each.pts is not None for each in packets)


def _decode_each(packets: Iterable[av.Packet], take: Callable[[av.Packet | None], None]) -> int:
    """Calls `take` for each packet, and with None at the end, which flushes the decoder. Returns
    the number of packets that could not be decoded."""
    deadline = time.monotonic() + MAX_SECONDS_PER_CLIP
    num_bad = 0
    for packet in [*packets, None]:
        try:
            take(packet)
        except FFmpegError:
            num_bad += 1
        if time.monotonic() > deadline:
            raise ClipError("timeout", f"not decoded within {MAX_SECONDS_PER_CLIP:.0f} s")
    return num_bad


# --------------------------------------------------------------------------- what is needed alone


class _Doubtful(Exception):
    """Skipping packets may have changed the decoded pictures."""


class _Interlaced(Exception):
    """The two fields of a picture may be in two packets with different times."""


def _decode_needed(
    packets: Sequence[av.Packet], wanted: frozenset[int], config: DecodeConfig
) -> Decoded | None:
    """Decodes only needed packets. None if this may change the pictures."""
    try:
        try:
            decoded = _decode_some(packets, wanted, config, with_neighbours=False)
        except _Interlaced:
            packets[0].stream.codec_context.flush_buffers()
            decoded = _decode_some(packets, wanted, config, with_neighbours=True)
    except _Doubtful:
        return None
    finally:
        packets[0].stream.codec_context.skip_frame = "DEFAULT"
    # How a decoder conceals a broken packet depends on the packets decoded before it.
    return None if decoded.num_bad or decoded.pictures.keys() != wanted else decoded


def _decode_some(
    packets: Sequence[av.Packet],
    wanted: frozenset[int],
    config: DecodeConfig,
    *,
    with_neighbours: bool,
) -> Decoded:
    """with_neighbours: do not skip packets next to one with a wanted picture or one field of it"""
    context = packets[0].stream.codec_context
    starts = group_starts(packets)
    key_ticks = {tick_of(packets[index]) for index in starts if packets[index].is_keyframe}
    skipped = _skipped(packets, wanted, with_neighbours)
    fields_matter = context.name == "h264" and not with_neighbours
    converter = _Converter(config)
    pictures: dict[int, NDArray[np.uint8]] = {}

    def take(packet: av.Packet | None) -> None:
        skips = packet is not None and tick_of(packet) in skipped
        context.skip_frame = "NONREF" if skips else "DEFAULT"
        with one_packet():
            frames = context.decode(packet)
        for frame in frames:
            if frame.pts in key_ticks and frame.pict_type in _LEANING:
                raise _Doubtful
            if fields_matter and frame.interlaced_frame:
                raise _Interlaced
            converter.note(frame)
            if frame.pts in wanted:
                pictures[frame.pts] = converter.to_rgb(frame)

    num_bad = _decode_each(_needed_packets(packets, starts, wanted), take)
    return Decoded(
        pictures=pictures,
        shown_for={tick: tick for tick in wanted},
        first=min(wanted),
        num_bad=num_bad,
    )


def _skipped(
    packets: Sequence[av.Packet], wanted: frozenset[int], with_neighbours: bool
) -> frozenset[int]:
    """Ticks of the packets that the decoder may skip if their pictures are unreferenced."""
    if skipping_of(packets) != "nonref":
        return frozenset()
    margin = 1 if with_neighbours else 0
    is_wanted = [tick_of(packet) in wanted for packet in packets]
    return frozenset(
        tick_of(packet)
        for index, (packet, may_be) in enumerate(zip(packets, may_be_skipped(packets), strict=True))
        if may_be and not any(is_wanted[max(index - margin, 0) : index + margin + 1])
    )


def _needed_packets(
    packets: Sequence[av.Packet], starts: Sequence[int], wanted: frozenset[int]
) -> Iterator[av.Packet]:
    """The packets to decode: of each group of pictures, those up to its last wanted picture, and
    none of a group without one. If a wanted picture is shown before the key frame of its group, the
    whole group before is needed too, because such a picture refers to both.
    """
    groups = [packets[first:end] for first, end in pairwise([*starts, len(packets)])]
    for group, following in pairwise([*groups, []]):
        if any(tick_of(packet) in wanted for packet in _leading(following)):
            yield from group
        else:
            last = max((i for i, each in enumerate(group) if tick_of(each) in wanted), default=-1)
            yield from group[: last + 1]


def _leading(group: Sequence[av.Packet]) -> list[av.Packet]:
    """Pictures decoded after the group's key frame and shown before it."""
    return [packet for packet in group if tick_of(packet) < tick_of(group[0])]


# ------------------------------------------------------------------------------------- everything


def _decode_all(
    packets: Sequence[av.Packet], wanted: Sequence[int], config: DecodeConfig
) -> Decoded:
    if is_timed(packets[0].stream.container):
        screen = _show_all(packets, wanted, config, None)
    else:
        # The times of packets are those of pictures, but each given to another where pictures are
        # reordered: the n-th to come out has the n-th time.
        times = ticks_shown(packets).tolist()
        screen = _show_all(packets, wanted, config, times)
        own = sorted(time for time in screen.own_times if time is not None)
        if len(own) == len(screen.own_times) and own != times:  # some pictures are missing
            packets[0].stream.codec_context.flush_buffers()
            screen = _show_all(packets, wanted, config, own)
    if screen.first is None:
        raise ClipError("video_decode", f"none of {len(packets)} packets could be decoded")
    return Decoded(
        pictures=screen.pictures,
        shown_for=screen.shown_for,
        continued=_continued(packets, screen),
        first=screen.first,
        num_bad=screen.num_bad,
    )


def _show_all(
    packets: Sequence[av.Packet],
    wanted: Sequence[int],
    config: DecodeConfig,
    times: Sequence[int] | None,
) -> "_Screen":
    """times: of the pictures in decoder order; None if each picture has its own"""
    context = packets[0].stream.codec_context
    context.skip_frame = "DEFAULT"
    screen = _Screen(wanted, config, ticks_shown(packets))
    in_order = None if times is None else iter(times)

    def take(packet: av.Packet | None) -> None:
        with one_packet():
            frames = context.decode(packet)
        for frame in frames:
            screen.show(frame, frame.pts if in_order is None else next(in_order, None))

    screen.num_bad = _decode_each(packets, take)
    screen.finish()
    return screen


class _Screen:
    """Receives pictures in the order of display and keeps those on screen at the wanted ticks: the
    picture of the tick, or else the one before."""

    def __init__(
        self, wanted: Sequence[int], config: DecodeConfig, expected: NDArray[np.int64]
    ) -> None:
        self.pictures: dict[int, NDArray[np.uint8]] = {}
        self.shown_for: dict[int, int] = {}
        self.own_times: list[int | None] = []
        self.interlaced: set[int] = set()
        self.first: int | None = None
        self.num_bad = 0
        self._wanted = frozenset(wanted)
        self._due = deque(sorted(self._wanted))
        self._expected = expected
        self._converter = _Converter(config)
        self._now: tuple[int, av.VideoFrame] | None = None

    def show(self, frame: av.VideoFrame, tick: int | None) -> None:
        """tick: None if unknown; then the next tick at which a picture is expected"""
        self.own_times.append(frame.pts)
        self._converter.note(frame)
        if tick is None:
            tick = self._next_tick()
        self.first = tick if self.first is None else min(self.first, tick)
        if tick in self._wanted:
            self._keep(tick, tick, frame)
        while self._due and self._due[0] <= tick:
            due = self._due.popleft()
            if due not in self.shown_for:
                self._keep(due, *(self._now or (tick, frame)))
        self._now = tick, frame

    def finish(self) -> None:
        while self._due and self._now is not None:
            due = self._due.popleft()
            if due not in self.shown_for:
                self._keep(due, *self._now)

    def _next_tick(self) -> int:
        if self._now is None:
            return int(self._expected[0])
        at = int(np.searchsorted(self._expected, self._now[0], "right"))
        return int(self._expected[min(at, len(self._expected) - 1)])

    def _keep(self, due: int, tick: int, frame: av.VideoFrame) -> None:
        self.shown_for[due] = tick
        if tick not in self.pictures or due == tick:
            self.pictures[tick] = self._converter.to_rgb(frame)
        if frame.interlaced_frame:
            self.interlaced.add(tick)


def _continued(packets: Sequence[av.Packet], screen: _Screen) -> frozenset[int]:
    """Wanted ticks of packets that repeat the previous picture, or that hold the second field of a
    picture whose first field has its own packet (H.264 in transport streams)."""
    at = {tick_of(packet): index for index, packet in enumerate(packets)}
    has_fields = packets[0].stream.codec_context.name == "h264"
    return frozenset(
        due
        for due, tick in screen.shown_for.items()
        if due != tick
        and due in at
        and (
            repeats_picture(packets[at[due]])
            or (has_fields and tick in screen.interlaced and at[due] - at.get(tick, -9) == 1)
        )
    )


# --------------------------------------------------------------------------------------- to RGB

_MOST_STRIP = 4


class _Converter:
    """Converts frames to upright pictures of the config's size, or of its sizes.

    It must see every frame, because the orientation in an SEI message also holds for later frames.
    """

    def __init__(self, config: DecodeConfig) -> None:
        # Each keeps what it has prepared for its size.
        self._views = [(view, VideoReformatter()) for view in config.views]
        self._orientation = Orientation()

    def note(self, frame: av.VideoFrame) -> None:
        self._orientation = Orientation.of(frame) or self._orientation

    def to_rgb(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """uint8 [height, width, 3], the `frame_shape` of the config"""
        pictures = [self._to_view(frame, *each) for each in self._views]
        if len(pictures) == 1:
            return pictures[0]
        pixels = [picture.reshape(-1, 1, 3) for picture in pictures]
        return np.concatenate(pixels)

    def _to_view(
        self, frame: av.VideoFrame, view: FrameView, reformatter: VideoReformatter
    ) -> NDArray[np.uint8]:
        """uint8 [height, width, 3] of the view"""
        height, width = view.height, view.width
        orientation = Orientation.of(frame) or self._orientation
        if orientation.swaps_sides:
            height, width = width, height
        rows, columns = _scaled_size(frame.height, frame.width, height, width, view.fit)
        scaled = reformatter.reformat(
            frame, width=columns, height=rows, format="rgb24", interpolation="BILINEAR"
        )
        picture = _fit(scaled.to_ndarray().astype(np.uint8, copy=False), height, width)
        return orientation.apply(picture)


def _scaled_size(
    rows: int, columns: int, height: int, width: int, fit: FrameFit
) -> tuple[int, int]:
    """The size that a picture is scaled to, before it is cropped or padded to `height` x `width`.

    A strip is limited to `_MOST_STRIP` times the side that it has to cover: otherwise a hostile
    picture of 16 x 65,536 pixels would be scaled to hundreds of megabytes.
    """
    if fit == "stretch":
        return height, width
    scales = height / rows, width / columns
    if fit == "pad":
        scale = min(scales)
        return min(max(round(rows * scale), 2), height), min(max(round(columns * scale), 2), width)
    scale = max(scales)
    return (
        min(max(round(rows * scale), height), _MOST_STRIP * height),
        min(max(round(columns * scale), width), _MOST_STRIP * width),
    )


def _fit(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The centre [height, width, 3] of a picture, uint8 [rows, columns, 3], padded with black. It
    rounds like the centre crop of torchvision: 29.5 becomes 30."""
    rows, columns = picture.shape[:2]
    if (rows, columns) == (height, width):
        return picture
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    middle = picture[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    fitted = np.zeros((height, width, 3), np.uint8)
    above, before = max(-top, 0), max(-left, 0)
    fitted[above : above + middle.shape[0], before : before + middle.shape[1]] = middle
    return fitted
