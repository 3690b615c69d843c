"""Seconds that the parts of a job's prediction take, for monitoring.

decoding   waiting for what the decoder's process reads
encoding   the encoders
fusing     the fusion model, also with modalities hidden, which their shares are made of
"""

import copy
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fusion.inference.predictor import Predictor
from fusion.inference.runtime import FeatureRows, HeadLogits, Runtime, RuntimeName
from pipeline.decode.measure import MediaLength
from pipeline.decode.process import Decoder
from pipeline.decode.subtitles import SubtitleTrack
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipFeatures, DecodedClip, DecodedMedia, MediaSpan, Modality


class Stopwatch:
    """Of one job after another; it belongs to one thread."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        begun_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - begun_s

    def take(self) -> dict[str, float]:
        """Seconds by part since the last time; parts that were not used are left out."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds

    def timed(self, predictor: Predictor) -> Predictor:
        """The same predictor; what it computes is timed."""
        twin = copy.copy(predictor)
        twin.runtime = _TimedRuntime(predictor.runtime, self)
        return twin


class _TimedRuntime:
    def __init__(self, runtime: Runtime, watch: Stopwatch) -> None:
        self.name: RuntimeName = runtime.name
        self.device = runtime.device
        self._runtime, self._watch = runtime, watch

    @property
    def precision(self) -> Mapping[Modality, str]:
        return self._runtime.precision

    def describe(self) -> Mapping[str, str]:
        return self._runtime.describe()

    def encode(self, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        with self._watch.time("encoding"):
            return self._runtime.encode(clips)

    def fuse(self, rows: FeatureRows) -> HeadLogits:
        with self._watch.time("fusing"):
            return self._runtime.fuse(rows)


class TimedDecoder:
    """A decoder, of which it is timed how long it is waited for."""

    def __init__(self, decoder: Decoder, watch: Stopwatch) -> None:
        self._decoder, self._watch = decoder, watch

    def measure(self, path: Path) -> MediaLength:
        return self._decoder.measure(path)

    def decode(
        self,
        path: Path,
        spans: Sequence[MediaSpan],
        config: DecodeConfig,
        modalities: Sequence[Modality],
    ) -> Iterator[DecodedMedia]:
        decoded = self._decoder.decode(path, spans, config, modalities)
        while True:
            with self._watch.time("decoding"):
                found = next(decoded, None)
            if found is None:
                return
            yield found

    def subtitles(self, path: Path) -> tuple[SubtitleTrack, ...]:
        return self._decoder.subtitles(path)
