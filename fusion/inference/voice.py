"""Voice detection in a media file: the Silero detector, run over the whole sound with its state.

    file -> read_sound -> VoiceDetector -> RegionFinder -> SpeechRegion

The detector is the model that faster-whisper ships. The `silero-vad` package has the same one, but
sets PyTorch to one thread for the whole process as soon as it is imported.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.decode.process import HERE, Decoder
from pipeline.errors import ClipError, WeightsMissing
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan
from pipeline.system.extras import needs_extra

RATE_HZ = 16_000  # what the detector and every recogniser hear
FRAME_MS = 32
DETECTOR = "silero-vad v6"

_PACKAGE = "faster_whisper"
_FILE = "assets/silero_vad_v6.onnx"
_SAMPLES_PER_MS = RATE_HZ // 1000
_FRAME_SAMPLES = FRAME_MS * _SAMPLES_PER_MS
_CONTEXT_SAMPLES = 64  # of the frame before, which the detector is given again
_STATE = (1, 1, 128)
_BLOCK_MS = 30_000
# Decoding fills gaps up to `SYNC_SLACK_S`; a gap of less than twice that is not a span without
# sound.
_SLACK_SAMPLES = 100 * _SAMPLES_PER_MS

_FULL_SCALE = 32_768  # of 16 bits

OnProgress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class VoiceConfig:
    """When a voice begins and ends, from the detector's probability of each 32 ms.

    threshold:      probability at or above which a voice begins
    end_threshold:  probability below which a voice pauses
    min_speech_ms:  least length of a voice; shorter ones are ignored
    min_silence_ms: length of a pause that ends a region
    padding_ms:     time that is kept before and after a region, as voices begin and end softly
    max_region_ms:  largest length of a region; longer ones are cut where the voice is weakest
    """

    threshold: float = 0.5
    end_threshold: float = 0.35
    min_speech_ms: int = 200
    min_silence_ms: int = 300
    padding_ms: int = 64
    max_region_ms: int = 28_000

    def __post_init__(self) -> None:
        if not 0 < self.end_threshold <= self.threshold < 1:
            raise ValueError(
                "thresholds must be in (0, 1) and end_threshold not above threshold: "
                f"{self.end_threshold}, {self.threshold}"
            )
        for name in ("min_speech_ms", "min_silence_ms", "padding_ms"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.min_silence_ms < 2 * self.padding_ms:
            raise ValueError(
                f"min_silence_ms must be at least twice padding_ms, or regions would overlap: "
                f"{self.min_silence_ms}, {self.padding_ms}"
            )
        if not 1_000 <= self.max_region_ms <= _MOST_REGION_MS:
            raise ValueError(
                f"max_region_ms must be from 1000 to {_MOST_REGION_MS}, not {self.max_region_ms}"
            )


_MOST_REGION_MS = 28_000  # recognisers of the Whisper family hear 30 s at a time


@dataclass(frozen=True, kw_only=True)
class SpeechRegion:
    """A stretch of a file in which somebody speaks, with no pause of `min_silence_ms` in it.

    start_ms, end_ms: on the file's clock, as in `MediaSpan`
    pauses: parts of it with a low probability of voice, in order; milliseconds of the file
    weakest_ms: where the voice is weakest, to cut there if there is no pause; not in the first or
                last quarter of the region
    confidence: mean probability of a voice
    """

    start_ms: int
    end_ms: int
    pauses: tuple[tuple[int, int], ...] = ()
    weakest_ms: int | None = None
    confidence: float = 1.0


def find_speech(
    path: Path,
    decode: DecodeConfig,
    config: VoiceConfig,
    *,
    duration_ms: int,
    on_progress: OnProgress = lambda heard_ms: None,
    decoder: Decoder = HERE,
) -> Iterator[SpeechRegion]:
    """Yields the voice regions of a file in order, each as soon as it has ended.

    Args:
        decode: which channel is used; rate and length are those of the detector
        duration_ms: of the file; later sound is not read
        on_progress: called with the number of finished milliseconds, about every 30 s
        decoder: who reads the file

    Raises:
        WeightsMissing: the detector is not installed.
        ClipError: the file has no sound that can be decoded.
    """
    detector, finder = VoiceDetector.load(), RegionFinder(config)
    position = 0
    for samples in read_sound(path, decode, duration_ms=duration_ms, decoder=decoder):
        yield from finder.take(detector.take(samples))
        position += len(samples)
        on_progress(min(position // _SAMPLES_PER_MS, duration_ms))
    yield from finder.take(detector.finish())
    yield from finder.finish(position // _SAMPLES_PER_MS)
    on_progress(duration_ms)


# ------------------------------------------------------------------------------------- the sound


def read_sound(
    path: Path, decode: DecodeConfig, *, duration_ms: int, decoder: Decoder = HERE
) -> Iterator[NDArray[np.float32]]:
    """Yields the sound of a file in blocks, mono at `RATE_HZ`: sample n is at n / 16 ms from the
    file's start, within `SYNC_SLACK_S`.

    Samples without sound, before it begins or in a gap, are 0. One or two blocks are in memory.

    Raises ClipError where the file has no sound that can be decoded.
    """
    config = replace(decode, sample_rate_hz=RATE_HZ, max_duration_s=_BLOCK_MS / 1000)
    starts = range(0, duration_ms, _BLOCK_MS)
    spans = [
        MediaSpan(start_ms=start, end_ms=min(start + _BLOCK_MS, duration_ms)) for start in starts
    ]
    position = 0
    for media in decoder.decode(path, spans, config, ["audio"]):
        if media.waveform is None:
            _check_absence(media, nothing_yet=not position)
            continue
        late = media.span.start_ms * _SAMPLES_PER_MS - position
        while late > _SLACK_SAMPLES:  # spans without any sound
            silence = min(late, _BLOCK_MS * _SAMPLES_PER_MS)
            yield np.zeros(silence, np.float32)
            position, late = position + silence, late - silence
        yield media.waveform
        position += len(media.waveform)


def _check_absence(media: DecodedMedia, *, nothing_yet: bool) -> None:
    """Silence in a span is not a failure; sound that cannot be decoded is one."""
    [reason, *_] = [each for each in media.failures if each.lost]
    if nothing_yet and reason.code != "no_samples":
        raise ClipError(reason.code, reason.message)


def as_waveform(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """float32 [samples] in [-1, 1), as a decoder gives it."""
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)


def as_samples(waveform: NDArray[np.float32]) -> NDArray[np.int16]:
    """The other way, exactly."""
    return np.round(waveform * _FULL_SCALE).astype(np.int16)


# ---------------------------------------------------------------------------------- the detector


class VoiceDetector:
    """The probability of a voice in each 32 ms of sound that is given piece by piece.

    The model keeps its state between calls, so the sizes of the pieces do not change the result.
    """

    def __init__(self, model: Path) -> None:
        self._session = _load_detector(model)
        self._h, self._c = np.zeros(_STATE, np.float32), np.zeros(_STATE, np.float32)
        self._context = np.zeros(_CONTEXT_SAMPLES, np.float32)
        self._rest = np.zeros(0, np.float32)

    @classmethod
    def load(cls) -> "VoiceDetector":
        """Raises WeightsMissing."""
        return cls(find_detector())

    def take(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [frames]: of each frame that these samples complete.

        samples: float32 [samples] at `RATE_HZ`
        """
        heard = np.concatenate([self._rest, samples])
        num_frames = len(heard) // _FRAME_SAMPLES
        self._rest = heard[num_frames * _FRAME_SAMPLES :]
        if not num_frames:
            return np.zeros(0, np.float32)
        frames = heard[: num_frames * _FRAME_SAMPLES].reshape(num_frames, _FRAME_SAMPLES)
        tails = frames[:, -_CONTEXT_SAMPLES:]
        before = np.concatenate([self._context[None], tails[:-1]])  # [frames, 64]
        self._context = tails[-1].copy()
        probabilities, self._h, self._c = self._session.run(
            None, {"input": np.hstack([before, frames]), "h": self._h, "c": self._c}
        )
        return np.asarray(probabilities, np.float32).reshape(num_frames)

    def finish(self) -> NDArray[np.float32]:
        """Probabilities of the remaining samples, as if silence followed."""
        if not len(self._rest):
            return np.zeros(0, np.float32)
        return self.take(np.zeros(_FRAME_SAMPLES - len(self._rest), np.float32))


@cache
def _load_detector(model: Path) -> Any:
    """One for all that listen at a time: the state is the caller's, and a session may be run by
    several threads."""
    with needs_extra("asr"):
        from pipeline.onnx.silent import onnxruntime  # not light

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(model), providers=["CPUExecutionProvider"], sess_options=options
    )


def find_detector() -> Path:
    """The model's file. The package is not imported: that would load all of the recogniser.

    Raises WeightsMissing.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / _FILE
        if path.is_file() and importlib.util.find_spec("onnxruntime") is not None:
            return path
    raise WeightsMissing(
        "the voice detector is not installed. Get it with: pip install 'meld[asr]'; or say where "
        "the utterances are: --subtitles FILE, --transcript FILE, or --text WORDS for the whole "
        "file"
    )


def hash_detector() -> str:
    """SHA-256 of the model's file. Raises WeightsMissing."""
    with find_detector().open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"


# ------------------------------------------------------------------------------------ the regions


@dataclass(eq=False)
class _Open:
    """A region that has not ended. Frames are counted from the file's start."""

    first: int
    probabilities: list[float] = field(default_factory=list)
    is_cut: bool = False  # it begins where another was cut: nothing is kept before it

    @property
    def past(self) -> int:
        return self.first + len(self.probabilities)


class RegionFinder:
    """Turns probabilities into voice regions as they arrive: a region begins at `threshold` and
    ends when they stay below `end_threshold` for `min_silence_ms`."""

    def __init__(self, config: VoiceConfig) -> None:
        self._config = config
        self._num_frames = 0
        self._open: _Open | None = None
        self._num_quiet = 0  # frames since the voice of the open region was last heard

    @property
    def settled_ms(self) -> int:
        """No later region begins before this time."""
        if self._open is not None and self._open.is_cut:
            return self._open.first * FRAME_MS
        first = self._num_frames if self._open is None else self._open.first
        return max(first * FRAME_MS - self._config.padding_ms, 0)

    @property
    def open_ms(self) -> int | None:
        """Where the region begins that has not ended; None where there is none, or where it is too
        short yet to be one."""
        region = self._open
        if region is None:
            return None
        spoken = len(region.probabilities) - self._num_quiet
        if spoken * FRAME_MS < self._config.min_speech_ms and not region.is_cut:
            return None
        return self.settled_ms

    def take(self, probabilities: NDArray[np.float32]) -> Iterator[SpeechRegion]:
        """probabilities: float32 [frames], of the frames that follow those taken before"""
        for probability in probabilities.tolist():
            yield from self._take_frame(probability)

    def finish(self, end_ms: int) -> Iterator[SpeechRegion]:
        """The region that is still open at the end of the sound."""
        if self._open is not None:
            for region in self._close(self._num_quiet):
                yield replace(region, end_ms=min(region.end_ms, end_ms))

    def _take_frame(self, probability: float) -> Iterator[SpeechRegion]:
        config = self._config
        if self._open is None:
            if probability >= config.threshold:
                self._open, self._num_quiet = _Open(self._num_frames), 0
            else:
                self._num_frames += 1
                return
        self._open.probabilities.append(probability)
        self._num_frames += 1
        self._num_quiet = self._num_quiet + 1 if probability < config.end_threshold else 0
        if self._num_quiet and self._num_quiet * FRAME_MS >= config.min_silence_ms:
            yield from self._close(self._num_quiet)
        elif (
            len(self._open.probabilities) * FRAME_MS > config.max_region_ms - 2 * config.padding_ms
        ):
            yield from self._cut()

    def _close(self, num_quiet: int, *, is_cut: bool = False) -> Iterator[SpeechRegion]:
        """The open region without its last `num_quiet` frames, unless it is too short."""
        region, self._open, self._num_quiet = self._open, None, 0
        assert region is not None
        spoken = region.probabilities[: len(region.probabilities) - num_quiet]
        if len(spoken) * FRAME_MS < self._config.min_speech_ms and not region.is_cut:
            return
        if spoken:
            yield self._describe(region, np.array(spoken, np.float32), ends_in_cut=is_cut)

    def _cut(self) -> Iterator[SpeechRegion]:
        """Ends the open region at its longest pause, and begins another right there."""
        region = self._open
        assert region is not None
        values = np.array(region.probabilities, np.float32)
        at = _place_to_cut(values, self._config.threshold)
        rest, num_quiet = _Open(region.first + at, region.probabilities[at:], True), self._num_quiet
        yield from self._close(len(values) - at, is_cut=True)
        self._open, self._num_quiet = rest, min(num_quiet, len(rest.probabilities))

    def _describe(
        self, region: _Open, values: NDArray[np.float32], *, ends_in_cut: bool
    ) -> SpeechRegion:
        padding_ms = self._config.padding_ms
        start_ms, past_ms = region.first * FRAME_MS, (region.first + len(values)) * FRAME_MS
        quiet = [
            (start_ms + first * FRAME_MS, start_ms + past * FRAME_MS)
            for first, past in _runs(values < self._config.threshold)
        ]
        # Regions that were cut in a pause are padded at the cut like any others.
        voice_start = quiet[0][1] if quiet and quiet[0][0] == start_ms else start_ms
        voice_end = quiet[-1][0] if quiet and quiet[-1][1] == past_ms else past_ms
        first_ms = max(start_ms, padding_ms) - padding_ms if not region.is_cut else start_ms
        last_ms = past_ms if ends_in_cut else past_ms + padding_ms
        quarter = len(values) // 4
        middle = values[quarter : len(values) - quarter]
        return SpeechRegion(
            start_ms=max(first_ms, voice_start - padding_ms),
            end_ms=min(last_ms, voice_end + padding_ms) if ends_in_cut else last_ms,
            pauses=tuple(pause for pause in quiet if start_ms < pause[0] and pause[1] < past_ms),
            weakest_ms=start_ms + (quarter + int(np.argmin(middle))) * FRAME_MS + FRAME_MS // 2,
            confidence=float(values.mean()),
        )


def _place_to_cut(values: NDArray[np.float32], threshold: float) -> int:
    """The frame in the middle of the longest pause of the second half; without a pause, the one
    where the voice is weakest."""
    half = len(values) // 2
    later = values[half:]
    runs = _runs(later < threshold)
    if not runs:
        return half + int(np.argmin(later))
    first, past = max(runs, key=lambda run: run[1] - run[0])
    return half + (first + past) // 2


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and past of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(first), int(past)) for first, past in edges.reshape(-1, 2)]
