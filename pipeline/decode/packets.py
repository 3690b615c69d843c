"""Holds compressed video packets until a span has all packets that its pictures need."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av

from pipeline.decode.bitstream import may_begin_group
from pipeline.decode.container import MAX_PACKET_BYTES
from pipeline.decode.window import Extent, Stop, Window, end_tick
from pipeline.errors import ClipError

# A picture that is shown earlier is at most so many packets later (H.264, A.3.1).
_MAX_REORDERED = 16


@dataclass(frozen=True, kw_only=True)
class VideoPackets:
    """The packets of one window in file order, starting at a key frame before its start.

    index:   the number of the window
    error:   why the packets are missing; else None
    """

    index: int
    window: Window
    packets: list[av.Packet]
    stop: Stop | None
    error: ClipError | None = None

    @property
    def extent(self) -> Extent | None:
        if not self.packets:
            return None
        ends = (end_tick(packet) for packet in self.packets)
        return Extent(
            end=max((end for end in ends if end is not None), default=None), stop=self.stop
        )


class VideoPacketReader:
    """Takes the packets of a stream in order and returns those of each window once it is complete.

    It holds only packets that windows still need. For a window that has not started, these are the
    last two groups of pictures (key frame to key frame) before its start. The picture on screen at
    the start needs only the last group, unless pictures after its key frame refer to the group
    before (see `bitstream.group_starts`).
    """

    def __init__(self, windows: Sequence[Window], *, timed: bool) -> None:
        """
        windows: in order of their start
        timed:   the container tells when pictures are shown; where it does not, they have the
            times at which they are decoded, each given to another where pictures are reordered
        """
        self._timed = timed
        self._open = deque(enumerate(windows))
        self._held: list[av.Packet] = []
        self._begins: list[bool] = []  # whether decoding may begin at each of them
        self._last: av.Packet | None = None
        # What tells whether a window has all of its pictures: the packet itself, or where times are
        # not those of its picture the one so many before.
        self._recent: deque[av.Packet] = deque(maxlen=1 if timed else _MAX_REORDERED + 1)
        self._num_bytes = 0

    @property
    def is_done(self) -> bool:
        return not self._open

    def take(self, packet: av.Packet) -> list[VideoPackets]:
        """Returns the windows that this packet completes."""
        if not self._timed and packet.dts is not None:
            packet.pts = packet.dts  # it is FFmpeg's guess else
        self._recent.append(packet)
        completed: list[VideoPackets] = []
        for index, window in self._open if len(self._recent) == self._recent.maxlen else ():
            if not window.has_begun(packet):
                break  # nor have the later ones
            stop = window.stop_at(self._recent[0])
            if stop is not None:
                completed.append(self._give(index, window, stop))
        for done in completed:
            self._open.remove((done.index, done.window))
        begins = may_begin_group(packet, self._last)
        self._last = packet
        self._held.append(packet)
        self._begins.append(begins)
        self._num_bytes += packet.size
        if completed or (begins and not self._open[0][1].has_begun(packet)):
            self._trim()
        return completed + self._give_up()

    def finish(self) -> Iterator[VideoPackets]:
        """Returns the windows that are open at the end of the stream."""
        while self._open:
            yield self._give(*self._open.popleft(), None)

    def _give(self, index: int, window: Window, stop: Stop | None) -> VideoPackets:
        packets = self._held[self._first_needed(window) :]
        return VideoPackets(index=index, window=window, packets=packets, stop=stop)

    def _give_up(self) -> list[VideoPackets]:
        """Gives up windows that need more packets than may be held."""
        given_up = []
        while self._open and self._num_bytes > MAX_PACKET_BYTES:
            index, window = self._open.popleft()
            error = ClipError("too_large", f"more than {MAX_PACKET_BYTES >> 20} MiB of packets")
            given_up.append(
                VideoPackets(index=index, window=window, packets=[], stop=None, error=error)
            )
            self._trim()
        return given_up

    def _trim(self) -> None:
        num_done = self._first_needed(self._open[0][1]) if self._open else len(self._held)
        self._num_bytes -= sum(packet.size for packet in self._held[:num_done])
        del self._held[:num_done], self._begins[:num_done]

    def _first_needed(self, window: Window) -> int:
        if window.start is None:
            return 0
        groups, key = [], None
        for index, (packet, begins) in enumerate(zip(self._held, self._begins, strict=True)):
            if begins:
                key = index
            # A group that begins before a cut counts from its first picture that is shown.
            if key is not None and not packet.is_discard:
                if window.is_before(packet):
                    groups.append(key)
                key = None
        return groups[-2] if len(groups) > 1 else 0
