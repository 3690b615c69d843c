"""Packets to mono waveforms: the channel that carries the dialogue, at the recipe's rate."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from pipeline.decode.container import MEDIA_ERRORS, reason
from pipeline.decode.ledger import Ledger
from pipeline.decode.window import Extent, Stop, Window, end_tick, shown_tick
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

    start_tick, end_tick: of the window
    start, end: its samples, counted from the stream's first; None where they are not known yet
    """

    index: int
    window: Window
    start: int | None = None
    end: int | None = None
    num_packets: int = 0
    num_bad: int = 0

    def __post_init__(self) -> None:
        start, end = self.window.start, self.window.end
        # Floats compare ten times faster; both spans that touch at a tick round it alike.
        self.start_tick = None if start is None else float(start)
        self.end_tick = None if end is None else float(end)


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
        self._reach = 0  # how far the resampler's filter reaches over, in samples
        # After so many samples an output sample falls on one of them again: the so-many-th.
        self._period = self._period_out = 1
        self._converter: av.AudioResampler | None = None
        self._converted: tuple[str, str] | None = None  # the format and layout it is made for
        self._mono: deque[NDArray[np.float32]] = deque()  # at the stream's rate
        self._num_dropped = 0  # samples that came before those
        self._num_samples = 0  # in all
        self._next_tick = 0.0  # when the next sample is heard
        self._ticks_per_sample = 0.0
        self._next_edge = -math.inf  # the tick at which a window is the next to start or to end
        self._context: av.AudioCodecContext | None = None
        self._end: int | None = None  # when the last packet has been heard
        self._error: ClipError | None = None

    @property
    def is_done(self) -> bool:
        return not self._open

    def take(self, packet: av.Packet) -> list[Sound]:
        """The windows that this packet completes."""
        if self._context is None:
            self._context = packet.stream.codec_context
            self._context.thread_count = 1
        given = [self._give(each, "limit") for each in self._limited(packet)]
        end = end_tick(packet)
        if end is not None:
            self._end = end if self._end is None else max(self._end, end)
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

    def _limited(self, packet: av.Packet) -> list[_Open]:
        """Those that end with `max_duration_s`, and have that before this packet."""
        found = []
        for each in self._open:
            if not each.window.has_begun(packet):
                break  # nor have the later ones
            if each.end_tick is None and each.window.stop_at(packet) is not None:
                found.append(each)
        return found

    def _concerned(self, packet: av.Packet) -> list[_Open]:
        """Those that have sound of this packet, by its times, and room for it."""
        tick, found = shown_tick(packet), []
        for each in self._open:
            window = each.window
            if tick is not None:
                if window.start is not None and tick + (packet.duration or 0) < window.first:
                    break
                if window.end is not None and tick >= window.past:
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
        found = []
        for each in self._open:
            if each.start is None:
                break  # nor have the later ones begun
            if each.end is not None and self._num_samples >= each.end + self._reach:
                found.append(each)
        return found

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
        rate_hz = frame.rate
        if not self._rate_hz and rate_hz:
            self._set_rate(rate_hz)
        if not rate_hz or rate_hz != self._rate_hz:
            raise ValueError(f"{rate_hz} Hz after {self._rate_hz} Hz")
        if frame.pts is not None:
            self._next_tick = float(frame.pts)
        for part in self._as_floats(frame):
            mono = mix_to_mono(_channels(part), _channel_names(part), self._config)
            past = self._next_tick + len(mono) * self._ticks_per_sample
            if past >= self._next_edge:
                self._place(len(mono), self._next_tick, past)
            self._next_tick = past
            self._mono.append(mono)
            self._num_samples += len(mono)

    def _as_floats(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """Only the sample format changes here: channels and rate are ours to choose."""
        wanted = frame.format.name, frame.layout.name
        # A resampler is made for one format and one layout, and hands on others as they are.
        if self._converter is None or self._converted != wanted:
            sample_format = "flt" if frame.layout.nb_channels > _MAX_PLANES else "fltp"
            self._converter = av.AudioResampler(sample_format, frame.layout, self._rate_hz)
            self._converted = wanted
        return self._converter.resample(frame)

    def _place(self, num: int, tick: float, past: float) -> None:
        """Notes where windows start and end among the next `num` samples, which are heard from
        `tick` on and before `past`."""

        def index(wanted: float) -> int:
            within = round((wanted - tick) / self._ticks_per_sample)
            return self._num_samples + min(max(within, 0), num)

        self._next_edge = math.inf
        for each in self._open:
            if each.start is None and each.start_tick is None:
                each.start = self._num_samples
            elif each.start is None and each.start_tick is not None:
                if past < each.start_tick:
                    self._next_edge = min(self._next_edge, each.start_tick)
                    break  # nor have the later ones begun
                each.start = index(each.start_tick)
            if each.end is None and each.end_tick is not None:
                if past < each.end_tick:
                    self._next_edge = min(self._next_edge, each.end_tick)
                else:
                    each.end = index(each.end_tick)

    def _give(self, each: _Open, stop: Stop | None) -> Sound:
        self._open.remove(each)
        waveform = self._waveform(each) if self._error is None else None
        return Sound(
            index=each.index,
            waveform=waveform,
            error=self._error or (self._absence(each) if waveform is None else None),
            extent=None if self._context is None else Extent(end=self._end, stop=stop),
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

    def _set_rate(self, rate_hz: int) -> None:
        out_hz = self._config.sample_rate_hz
        common = math.gcd(rate_hz, out_hz)
        self._rate_hz = rate_hz
        self._ticks_per_sample = 1 / (rate_hz * float(self._open[0].window.time_base))
        self._reach = _FILTER_REACH * math.ceil(max(rate_hz / out_hz, 1))
        self._period, self._period_out = rate_hz // common, out_hz // common

    def _first_heard(self, start: int) -> int:
        """The first sample that the resampler is given for a window that starts at `start`."""
        return max(start - self._reach, 0) // self._period * self._period

    def _waveform(self, each: _Open) -> NDArray[np.float32] | None:
        if each.start is None or not self._mono:
            return None
        rate_hz, out_hz = self._rate_hz, self._config.sample_rate_hz
        end = self._num_samples if each.end is None else each.end
        last = min(end + self._reach, self._num_samples)
        if each.window.end is None:  # as if the sound ended there
            end = min(end, each.start + round(self._config.max_duration_s * rate_hz))
            last = end
        if end <= each.start:
            return None
        first = self._first_heard(each.start)
        samples = np.concatenate(self._mono)[first - self._num_dropped : last - self._num_dropped]
        waveform = _resample(samples, rate_hz, out_hz)
        before = first // self._period * self._period_out
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
