"""Packets to mono waveforms: the channel that carries the dialogue, at the recipe's rate."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import takewhile

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from pipeline.decode.container import MEDIA_ERRORS, reason
from pipeline.decode.ledger import Ledger
from pipeline.decode.window import Extent, Stop, Window
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan

# What the resampler's filter reaches over on either side, in samples of the lower rate: twice the
# 16 of libswresample's `filter_size` of 32.
_FILTER_REACH = 32
# PyAV counts a frame's planes up to the first that is none: where all 8 places are taken it reads
# behind them, and crashes.
_MAX_PLANES = 7


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound of one window.

    index:    of the window
    waveform: float32 [samples]; None, and `error` says why, where there is none
    num_bad:  of `num_packets`, those that could not be decoded
    """

    index: int
    waveform: NDArray[np.float32] | None
    error: ClipError | None
    extent: Extent | None
    num_packets: int
    num_bad: int


def try_audio(sound: Sound, ledger: Ledger) -> NDArray[np.float32] | None:
    """The waveform, float32 [samples]; None, and the reason in the ledger, where there is none."""
    if sound.error is not None:
        ledger.add("audio", sound.error, lost=True)
    elif sound.num_bad:
        message = f"{sound.num_bad} of {sound.num_packets} audio packets could not be decoded"
        ledger.add("audio", ClipError("bad_packets", message), lost=False)
    return sound.waveform


@dataclass(eq=False)
class _Open:
    """A window of which not all samples are there.

    start, end: its samples, counted from the stream's first; None where they are not known yet
    """

    index: int
    window: Window
    start: int | None = None
    end: int | None = None
    num_packets: int = 0
    num_bad: int = 0


class SoundReader:
    """Decodes a stream's packets in order and gives each window its waveform.

    A sample belongs to a window by its presentation time: that of its frame, and its place in
    it. So windows that touch share no sample and lose none. Gaps in time are closed, not filled.
    All windows lie on one grid of output samples, which begins with the stream's first sample,
    and the resampler is given what is before and after a window as well: joined, the waveforms
    of windows that touch are the waveform of the whole.
    """

    def __init__(self, windows: Sequence[Window], config: DecodeConfig) -> None:
        """windows: in order of their start"""
        self._config = config
        self._open = deque(_Open(index, window) for index, window in enumerate(windows))
        self._rate_hz = 0  # of the first frame, and so of the stream; 0 before it
        self._converter: av.AudioResampler | None = None
        self._converted: tuple[str, str] | None = None  # the format and layout it is made for
        self._mono: deque[NDArray[np.float32]] = deque()  # at the stream's rate
        self._num_dropped = 0  # samples that came before those
        self._num_samples = 0  # in all
        self._next_s = Fraction(0)  # when the next sample is heard
        self._context: av.AudioCodecContext | None = None
        self._first: av.Packet | None = None
        self._last: av.Packet | None = None
        self._error: ClipError | None = None

    @property
    def is_done(self) -> bool:
        return not self._open

    def take(self, packet: av.Packet) -> list[Sound]:
        """The windows that this packet completes."""
        self._first = self._first or packet
        if self._context is None:
            self._context = packet.stream.codec_context
            self._context.thread_count = 1
        given = [self._give(each, "limit") for each in self._limited(packet, self._first)]
        self._last = packet
        if self._open:
            self._decode(packet, self._concerned(packet))
        given += [self._give(each, "end") for each in self._full()]
        self._drop()
        return given

    def finish(self) -> Iterator[Sound]:
        """The windows that are still open where the stream ends."""
        if self._open:
            self._decode(None, list(self._open))
        while self._open:
            yield self._give(self._open[0], None)
            self._drop()

    # ------------------------------------------------------------------------ which windows

    def _limited(self, packet: av.Packet, first: av.Packet) -> list[_Open]:
        """Those that end with `max_duration_s`, and have that before this packet."""
        begun = takewhile(lambda each: each.window.has_begun(packet), self._open)
        return [
            each
            for each in begun
            if each.window.end_s is None and each.window.stop_at(packet, first) is not None
        ]

    def _concerned(self, packet: av.Packet) -> list[_Open]:
        """Those that have sound of this packet, by its times, and room for it."""
        tick, time_base = packet.pts if packet.pts is not None else packet.dts, packet.time_base
        found = []
        for each in self._open:
            start_s, end_s = each.window.start_s, each.window.end_s
            if tick is not None and time_base is not None:
                if start_s is not None and (tick + (packet.duration or 0)) * time_base < start_s:
                    break
                if end_s is not None and tick * time_base >= end_s:
                    continue
            if not self._is_full(each):
                found.append(each)
        return found

    def _is_full(self, each: _Open) -> bool:
        """However few seconds the packets' times claim."""
        if each.start is None:
            return False
        most = self._config.max_duration_s * self._rate_hz
        return self._num_samples - each.start > most

    def _full(self) -> list[_Open]:
        """Those that have an end, and all samples up to it and what the filter reaches over."""
        reached = takewhile(lambda each: each.start is not None, self._open)
        return [
            each
            for each in reached
            if each.end is not None and self._num_samples >= each.end + self._reach
        ]

    # -------------------------------------------------------------------------------- samples

    def _decode(self, packet: av.Packet | None, concerned: Sequence[_Open]) -> None:
        """None flushes the decoder."""
        for each in concerned if packet is not None else ():
            each.num_packets += 1
        if self._error is not None or self._context is None or all(map(self._is_full, self._open)):
            return
        try:
            for frame in self._context.decode(packet):
                self._add(frame)
        except (FFmpegError, ValueError):  # ValueError: not the layout or rate it began with
            for each in concerned:
                each.num_bad += 1
        except MEDIA_ERRORS as error:
            self._error = ClipError("audio_decode", reason(error))

    def _add(self, frame: av.AudioFrame) -> None:
        """Raises ValueError where the frame has not the rate that the stream began with."""
        self._rate_hz = self._rate_hz or frame.rate
        if not frame.rate or frame.rate != self._rate_hz:
            raise ValueError(f"{frame.rate} Hz after {self._rate_hz} Hz")
        if frame.pts is not None and frame.time_base is not None:
            self._next_s = frame.pts * frame.time_base
        for part in self._as_floats(frame):
            mono = mix_to_mono(_channels(part), _channel_names(part), self._config)
            duration_s = Fraction(len(mono), self._rate_hz)
            self._place(len(mono), self._next_s, duration_s)
            self._mono.append(mono)
            self._num_samples += len(mono)
            self._next_s += duration_s

    def _as_floats(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """Only the sample format changes here: channels and rate are ours to choose."""
        wanted = frame.format.name, frame.layout.name
        # A resampler is made for one format and one layout, and hands on others as they are.
        if self._converter is None or self._converted != wanted:
            sample_format = "flt" if frame.layout.nb_channels > _MAX_PLANES else "fltp"
            self._converter = av.AudioResampler(sample_format, frame.layout, self._rate_hz)
            self._converted = wanted
        return self._converter.resample(frame)

    def _place(self, num: int, at_s: Fraction, duration_s: Fraction) -> None:
        """Notes where windows start and end among the next `num` samples."""
        for each in self._open:
            start_s, end_s = each.window.start_s, each.window.end_s
            if each.start is None:
                if start_s is not None and at_s + duration_s < start_s:
                    return  # nor have the later ones begun
                each.start = self._index(start_s, num, at_s, duration_s)
            if each.end is None and end_s is not None and at_s + duration_s >= end_s:
                each.end = self._index(end_s, num, at_s, duration_s)

    def _index(
        self, wanted_s: Fraction | None, num: int, at_s: Fraction, duration_s: Fraction
    ) -> int:
        """The number of the sample at a time, of those that are about to come."""
        if wanted_s is None or not duration_s:
            return self._num_samples
        within = round((wanted_s - at_s) / duration_s * num)
        return self._num_samples + min(max(within, 0), num)

    def _give(self, each: _Open, stop: Stop | None) -> Sound:
        self._open.remove(each)
        waveform = self._waveform(each) if self._error is None else None
        extent = None
        if self._first is not None and self._last is not None:
            extent = Extent(first=self._first, last=self._last, stop=stop)
        return Sound(
            index=each.index,
            waveform=waveform,
            error=self._error or (self._absence(each) if waveform is None else None),
            extent=extent,
            num_packets=each.num_packets,
            num_bad=each.num_bad,
        )

    def _absence(self, each: _Open) -> ClipError:
        message = "the audio stream holds no sound"
        if self._num_samples and each.window.span != MediaSpan():
            is_over = each.start is None or each.start >= self._num_samples
            message = "the sound ends before the span" if is_over else "no sound in the span"
        return ClipError("no_samples", message)

    # ------------------------------------------------------------------------------- waveforms

    @property
    def _reach(self) -> int:
        """How far the resampler's filter reaches over, in samples."""
        return _FILTER_REACH * math.ceil(max(self._rate_hz / self._config.sample_rate_hz, 1))

    @property
    def _period(self) -> tuple[int, int]:
        """After how many samples an output sample falls on one of them again, and which one."""
        common = math.gcd(self._rate_hz, self._config.sample_rate_hz)
        return self._rate_hz // common, self._config.sample_rate_hz // common

    def _first_heard(self, start: int) -> int:
        """The first sample that the resampler is given for a window that starts at `start`."""
        period, _ = self._period
        return max(start - self._reach, 0) // period * period

    def _waveform(self, each: _Open) -> NDArray[np.float32] | None:
        if each.start is None or not self._mono:
            return None
        rate_hz, out_hz = self._rate_hz, self._config.sample_rate_hz
        end = self._num_samples if each.end is None else each.end
        last = min(end + self._reach, self._num_samples)
        if each.window.end_s is None:  # as if the sound ended there
            end = min(end, each.start + round(self._config.max_duration_s * rate_hz))
            last = end
        if end <= each.start:
            return None
        first = self._first_heard(each.start)
        samples = np.concatenate(self._mono)[first - self._num_dropped : last - self._num_dropped]
        waveform = _resample(samples, rate_hz, out_hz)
        _, period_out = self._period
        before = first // self._period[0] * period_out
        start_out = -(-each.start * out_hz // rate_hz) - before
        # At the end of the stream there is nothing that another window could have.
        end_out = -(-end * out_hz // rate_hz) - before if last > end else None
        waveform = waveform[start_out:end_out]
        return waveform if len(waveform) else None

    def _drop(self) -> None:
        """Forgets the samples that no window needs any more."""
        if not self._mono:
            return
        needed = self._num_samples
        if self._open:
            start = self._open[0].start
            needed = self._first_heard(self._num_samples if start is None else start)
        while self._mono and self._num_dropped + len(self._mono[0]) <= needed:
            self._num_dropped += len(self._mono.popleft())


def _channels(part: av.AudioFrame) -> NDArray[np.float32]:
    """float32 [channels, samples]"""
    samples: NDArray[np.float32] = part.to_ndarray()
    if part.format.is_planar:
        return samples
    return samples.reshape(-1, part.layout.nb_channels).T


def _channel_names(frame: av.AudioFrame) -> list[str]:
    return [channel.name for channel in frame.layout.channels]


def mix_to_mono(
    samples: NDArray[np.float32], channel_names: Sequence[str], config: DecodeConfig
) -> NDArray[np.float32]:
    """[channels, samples] to [samples]: the front centre of surround sound (the dialogue), or
    the mean of all channels where there is no centre or `downmix` is asked for."""
    if config.channel == "front_centre" and len(channel_names) > 2 and "FC" in channel_names:
        return samples[channel_names.index("FC")]
    return samples.mean(axis=0, dtype=np.float32)


def _resample(waveform: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    if from_hz == to_hz:
        return np.clip(waveform, -1.0, 1.0)
    frame = av.AudioFrame.from_ndarray(waveform[None, :], format="fltp", layout="mono")
    frame.sample_rate = from_hz
    resampler = av.AudioResampler("fltp", "mono", to_hz)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.clip(np.concatenate([part.to_ndarray()[0] for part in parts]), -1.0, 1.0)
