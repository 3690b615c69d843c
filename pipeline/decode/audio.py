"""Decodes packets into mono waveforms: the channel that carries the dialogue, at the recipe's
rate."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from pipeline.decode.channels import UNKNOWN, Part, channel_names, read_part
from pipeline.decode.container import MEDIA_ERRORS, one_packet, reason
from pipeline.decode.ledger import Ledger
from pipeline.decode.mix import Mix, choose_mix, has_centre
from pipeline.decode.window import SYNC_SLACK_S, Extent, Stop, Window, end_tick, shown_tick
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan

# Samples of the lower rate that the filter of the resampler needs on each side: twice the 16 of
# libswresample's `filter_size` of 32.
_FILTER_REACH = 32
# Longer than any span; the size of an array is limited to 2 ** 63 bytes.
_MAX_SILENCE = 2**40


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound of one window.

    index:    the number of the window
    waveform: float32 [samples]; None if there is none, with the reason in `error`
    num_bad:  how many of `num_packets` could not be decoded
    warnings: what was guessed or repaired in the waveform
    """

    index: int
    waveform: NDArray[np.float32] | None
    error: ClipError | None
    extent: Extent | None
    num_packets: int
    num_bad: int
    warnings: tuple[ClipError, ...] = ()


def try_audio(sound: Sound, ledger: Ledger) -> NDArray[np.float32] | None:
    """The waveform, float32 [samples]; None if there is none, with the reason in the ledger."""
    if sound.error is not None:
        ledger.add("audio", sound.error, lost=True)
    elif sound.num_bad:
        message = f"{sound.num_bad} of {sound.num_packets} audio packets could not be decoded"
        ledger.add("audio", ClipError("bad_packets", message), lost=False)
    for warning in sound.warnings:
        ledger.add("audio", warning, lost=False)
    return sound.waveform


@dataclass(eq=False)
class _Open:
    """A window that lacks samples.

    start_tick, end_tick: its start and end
    start, end: its samples, counted from the first of the stream; None if not known yet
    """

    index: int
    window: Window
    start: int | None = None
    end: int | None = None
    num_packets: int = 0
    num_bad: int = 0

    def __post_init__(self) -> None:
        start, end = self.window.start, self.window.end
        # Floats compare ten times faster; two spans that touch at a tick round it in the same way.
        self.start_tick = None if start is None else float(start)
        self.end_tick = None if end is None else float(end)


class SoundReader:
    """Decodes a stream's packets in order and gives each window its waveform.

    A sample belongs to a window by its presentation time: the time of its frame plus its position
    in it. Therefore adjacent windows share no sample and lose none. Gaps longer than `SYNC_SLACK_S`
    become silence, before the first sample and between others, so that sound and picture stay
    synchronous; shorter gaps are closed. A window with nothing but gaps has no sound. All windows
    use one grid of output samples, which starts with the first sample, and the resampler also gets
    the samples before and after a window. So the waveforms of adjacent windows, joined, are the
    waveform of the whole if they use the same channels, which each window chooses by its own sound
    (see `mix.choose_mix`).
    """

    def __init__(
        self, windows: Sequence[Window], config: DecodeConfig, channels: tuple[str, ...] = ()
    ) -> None:
        """
        windows:  in order of their start
        channels: their names, if the decoder does not know them (see `settle_channels`)
        """
        self._config = config
        self._open = deque(_Open(index, window) for index, window in enumerate(windows))
        self._rate_hz = 0  # of the first frame, and so of the stream; 0 before it
        self._reach = 0  # samples that the filter of the resampler needs on each side
        # Period of the grid: after so many samples, an output sample coincides with one again.
        self._period = self._period_out = 1
        self._channels = channels
        self._parts: deque[Part] = deque()  # at the stream's rate
        self._num_dropped = 0  # samples that came before those
        # Energy of those per channel, if the choice of channels needs it.
        self._energies_dropped: dict[tuple[str, ...], NDArray[np.float64]] = {}
        self._num_samples = 0  # in all
        self._next_tick = 0.0  # the tick of the next sample
        self._late = 0.0  # ticks without sound that did not become silence
        self._ticks_per_sample = 0.0
        # Start and slack of the clock of the file: floats, because every frame is compared.
        self._origin = float(windows[0].origin) if windows else 0.0
        self._slack = 0.0
        self._next_edge = -math.inf  # the next tick at which a window starts or ends
        self._context: av.AudioCodecContext | None = None
        self._end: int | None = None  # the end of the last packet
        self._error: ClipError | None = None

    @property
    def is_done(self) -> bool:
        return not self._open

    def take(self, packet: av.Packet) -> list[Sound]:
        """Takes a packet; returns the windows that it completes."""
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
        """Returns the windows that are open at the end of the stream."""
        if self._open:
            self._decode(None, list(self._open))
        while self._open:
            yield self._give(self._open[0], None)
            self._drop()

    # ------------------------------------------------------------------------ which windows

    def _limited(self, packet: av.Packet) -> list[_Open]:
        """Windows that end by `max_duration_s` and are complete before this packet."""
        found = []
        for each in self._open:
            if not each.window.has_begun(packet):
                break  # nor have the later ones
            if each.end_tick is None and each.window.stop_at(packet) is not None:
                found.append(each)
        return found

    def _concerned(self, packet: av.Packet) -> list[_Open]:
        """Windows that contain sound of this packet, by its times, and are not full."""
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
        """Whether it has enough samples, even if the times of the packets claim less."""
        if each.start is None:
            return False
        most = self._config.max_duration_s * self._rate_hz
        return self._num_samples - each.start > most

    def _full(self) -> list[_Open]:
        """Windows with a known end, all samples up to it, and those that the filter needs."""
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
            with one_packet():
                frames = self._context.decode(packet)
            for frame in frames:
                self._add(frame)
        except (FFmpegError, ValueError):  # ValueError: not the layout or rate it began with
            for each in concerned:
                each.num_bad += 1
        except MEDIA_ERRORS as error:
            self._error = ClipError("audio_decode", reason(error))

    def _add(self, frame: av.AudioFrame) -> None:
        """Raises ValueError if the sampling rate changes within the stream."""
        rate_hz = frame.rate
        if not self._rate_hz and rate_hz:
            self._set_rate(rate_hz)
        if not rate_hz or rate_hz != self._rate_hz:
            raise ValueError(f"{rate_hz} Hz after {self._rate_hz} Hz")
        part = read_part(frame, self._names_of(frame))
        if frame.pts is not None:
            self._catch_up(float(frame.pts), part.num_samples)
        self._append(part)

    def _catch_up(self, tick: float, num: int) -> None:
        """Fills the time without sound up to `tick`, where the next `num` samples start, with
        silence."""
        origin, slack = self._origin, self._slack
        if not self._num_samples:
            self._late = tick - origin
            if self._late < -slack:  # hidden: it is before the start of the clock
                for each in self._open:
                    each.start_tick = origin if each.start_tick is None else each.start_tick
        elif abs(tick - self._next_tick) > num / 2 * self._ticks_per_sample:
            # Packets are missing or duplicated; shorter gaps are rounding by the container.
            self._late += tick - self._next_tick
        if self._late > slack:
            self._next_tick = tick - self._late
            self._append(_silence(round(self._late / self._ticks_per_sample)))
            self._late = 0.0
        self._next_tick = tick

    def _append(self, part: Part) -> None:
        num = part.num_samples
        past = self._next_tick + num * self._ticks_per_sample
        if past >= self._next_edge:
            self._place(num, self._next_tick, past)
        self._next_tick = past
        self._parts.append(part)
        self._num_samples += num

    def _names_of(self, frame: av.AudioFrame) -> tuple[str, ...]:
        names = channel_names(frame)
        is_told = len(names) != len(self._channels) or any(name != UNKNOWN for name in names)
        return names if is_told else self._channels

    def _place(self, num: int, tick: float, past: float) -> None:
        """Notes which windows start or end within the next `num` samples, from `tick` to `past`."""

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
        warnings: list[ClipError] = []
        waveform = self._waveform(each, warnings) if self._error is None else None
        return Sound(
            index=each.index,
            waveform=waveform,
            error=self._error or (self._absence(each, stop) if waveform is None else None),
            extent=None if self._context is None else Extent(end=self._end, stop=stop),
            num_packets=each.num_packets,
            num_bad=each.num_bad,
            warnings=tuple(warnings),
        )

    def _absence(self, each: _Open, stop: Stop | None) -> ClipError:
        is_whole = each.window.span == MediaSpan()
        if stop == "limit" and is_whole:
            message = f"the sound begins after the first {self._config.max_duration_s:.0f} s"
        elif is_whole or not self._num_samples:
            message = "the audio stream holds no sound"
        elif each.start is None or each.start >= self._num_samples:
            message = "the sound ends before the span"
        else:
            message = "no sound in the span"
        return ClipError("no_samples", message)

    # ------------------------------------------------------------------------------- waveforms

    def _set_rate(self, rate_hz: int) -> None:
        out_hz = self._config.sample_rate_hz
        common = math.gcd(rate_hz, out_hz)
        self._rate_hz = rate_hz
        self._ticks_per_sample = 1 / (rate_hz * float(self._open[0].window.time_base))
        self._slack = SYNC_SLACK_S * rate_hz * self._ticks_per_sample
        self._reach = _FILTER_REACH * math.ceil(max(rate_hz / out_hz, 1))
        self._period, self._period_out = rate_hz // common, out_hz // common

    def _first_heard(self, start: int) -> int:
        """The first sample that the resampler gets for a window that starts at `start`."""
        return max(start - self._reach, 0) // self._period * self._period

    def _waveform(self, each: _Open, warnings: list[ClipError]) -> NDArray[np.float32] | None:
        if each.start is None or not self._parts:
            return None
        rate_hz, out_hz = self._rate_hz, self._config.sample_rate_hz
        end = self._num_samples if each.end is None else each.end
        last = min(end + self._reach, self._num_samples)
        if each.window.end is None:  # as if the sound ended there
            end = min(end, each.start + round(self._config.max_duration_s * rate_hz))
            last = end
        if not any(part.names for part in self._between(each.start, end)):
            return None
        first = self._first_heard(each.start)
        mixes = self._choose_mixes(each.start, end)
        warnings += [warning for mix in mixes.values() for warning in mix.warnings]
        if any(part.is_repaired for part in self._between(each.start, end)):
            message = "some samples were not finite (NaN or infinity) and were replaced by silence"
            warnings.append(ClipError("not_a_number", message))
        parts = self._between(first, last)
        waveform = _resample(_mix_to_mono(parts, mixes, self._config), rate_hz, out_hz)
        before = first // self._period * self._period_out
        start_out = -(-each.start * out_hz // rate_hz) - before
        # At the end of the stream, no other window needs these samples.
        end_out = -(-end * out_hz // rate_hz) - before if last > end else None
        waveform = waveform[start_out:end_out]
        return waveform if len(waveform) else None

    def _between(self, first: int, last: int) -> list[Part]:
        """The samples `first` to `last`, counted from the first of the stream."""
        found, start = [], self._num_dropped
        for part in self._parts:
            if start < last and start + part.num_samples > first:
                found.append(part.cut(first - start, last - start))
            start += part.num_samples
        return found

    def _choose_mixes(self, start: int, end: int) -> dict[tuple[str, ...], Mix]:
        """How each set of channels in a window becomes one: a stream may change it."""
        window = self._between(start, end)
        mixes = {}
        for names in dict.fromkeys(part.names for part in window if part.names):
            so_far = self._energies_dropped.get(names, np.zeros(len(names)))
            if has_centre(names, self._config):
                for part in self._between(self._num_dropped, end):
                    if part.names == names:
                        so_far = so_far + part.energies
            parts = [part for part in window if part.names == names]
            mixes[names] = choose_mix(parts, so_far, self._config)
        return mixes

    def _drop(self) -> None:
        """Frees the samples that no window needs any more."""
        if not self._parts:
            return
        needed = self._num_samples
        if self._open:
            start = self._open[0].start
            needed = self._first_heard(self._num_samples if start is None else start)
        while self._parts and self._num_dropped + self._parts[0].num_samples <= needed:
            part = self._parts.popleft()
            self._num_dropped += part.num_samples
            if self._open and has_centre(part.names, self._config):
                before = self._energies_dropped.get(part.names, 0.0)
                self._energies_dropped[part.names] = before + part.energies


def _silence(num: int) -> Part:
    """`num` samples without channels, which use no memory even if hostile times ask for many."""
    return Part(names=(), samples=np.empty((0, min(num, _MAX_SILENCE)), np.float32))


def _mix_to_mono(
    parts: Sequence[Part], mixes: dict[tuple[str, ...], Mix], config: DecodeConfig
) -> NDArray[np.float32]:
    """Mixes to float32 [samples]. Sets of channels without a chosen mix are outside the window,
    in the samples that the filter needs."""
    mixed = []
    for part in parts:
        if not part.names:
            mixed.append(np.zeros(part.num_samples, np.float32))
            continue
        mix = mixes.get(part.names) or choose_mix([part], part.energies, config)
        mixed.append(mix.of(part))
    return np.concatenate(mixed)


def _resample(waveform: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    if from_hz == to_hz:
        return np.clip(waveform, -1.0, 1.0)
    frame = av.AudioFrame.from_ndarray(waveform[None, :], format="fltp", layout="mono")
    frame.sample_rate = from_hz
    resampler = av.AudioResampler("fltp", "mono", to_hz)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.clip(np.concatenate([part.to_ndarray()[0] for part in parts]), -1.0, 1.0)
