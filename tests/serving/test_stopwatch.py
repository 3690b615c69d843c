"""The parts of a prediction are timed, and what they give stays."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from fusion.inference.predictor import Predictor
from pipeline.decode.process import DecoderHere
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipKey, DecodedClip, DecodedMedia, MediaSpan, Modality, Utterance
from serving.stopwatch import Stopwatch, TimedDecoder


class Clock:
    """time.perf_counter, which goes on where somebody says that time passes."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def perf_counter(self) -> float:
        return self.now_s


class SlowDecoder(DecoderHere):
    """Needs two seconds a span."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def decode(
        self,
        path: Path,
        spans: Sequence[MediaSpan],
        config: DecodeConfig,
        modalities: Sequence[Modality],
    ) -> Iterator[DecodedMedia]:
        for span in spans:
            self._clock.now_s += 2
            yield DecodedMedia(span=span, waveform=np.full(3, span.start_ms, np.float32))


def test_waiting_for_the_decoder_counts_and_working_on_what_it_gave_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch, clock = Stopwatch(), Clock()
    monkeypatch.setattr("serving.stopwatch.time", clock)
    spans = [MediaSpan(start_ms=start_ms) for start_ms in (0, 7, 9)]
    found = []
    decoder = TimedDecoder(SlowDecoder(clock), watch)
    for each in decoder.decode(Path("x"), spans, DecodeConfig(), ()):
        clock.now_s += 5
        found.append(each)
    assert [each.waveform.tolist() for each in found if each.waveform is not None] == [
        [0] * 3,
        [7] * 3,
        [9] * 3,
    ]
    assert watch.take() == {"decoding": 6}
    assert watch.take() == {}


@pytest.mark.heavy
def test_a_timed_predictor_predicts_the_same_and_the_other_is_not_timed(
    minilm_folder: Path,
) -> None:
    from fusion.inference.bundled import bundled_run

    predictor = Predictor.load(bundled_run())
    watch = Stopwatch()
    timed = watch.timed(predictor)
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("test", 0, row), text=text))
        for row, text in enumerate(("I love it!", "Get out!"))
    ]
    wanted = predictor.predict(predictor.encode(clips))
    assert watch.take() == {}
    assert timed.predict(timed.encode(clips)) == wanted
    assert timed.identity == predictor.identity
    seconds = watch.take()
    assert seconds.keys() == {"encoding", "fusing"}
    assert all(value > 0 for value in seconds.values())
