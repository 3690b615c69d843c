"""A file that crashes or hangs its decoder ends the decoder's process and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.decode import process
from pipeline.decode.measure import measure_media
from pipeline.decode.process import DecoderProcess
from pipeline.decode.spans import decode_spans
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan
from tests import crashing
from tests.media import tone, write_clip

pytestmark = pytest.mark.heavy
SPANS = [MediaSpan(start_ms=start, end_ms=start + 500) for start in range(0, 2000, 500)]


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess() as started:
        yield started


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    return write_clip(path, num_frames=48, sound=tone([440, 660]))


def pid(decoder: DecoderProcess) -> int:
    [child] = decoder._idle
    return child._process.pid


def decode(decoder: DecoderProcess, path: Path) -> Iterator[DecodedMedia]:
    return decoder.decode(path, SPANS, DecodeConfig(), ["video", "audio"])


def test_the_decoder_process_gives_equal_results_for_one_file_after_another(
    decoder: DecoderProcess, clip: Path
) -> None:
    first = pid(decoder)
    assert decoder.measure(clip) == measure_media(clip)
    for _ in range(2):
        there = list(decode(decoder, clip))
        here = decode_spans(clip, SPANS, DecodeConfig(), ["video", "audio"])
        for one, other in zip(there, here, strict=True):
            assert (one.span, one.failures) == (other.span, other.failures)
            for name in ("frames", "times_s", "waveform"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            assert one.frames is not None
            assert one.frames.flags.writeable  # PyTorch warns of what is not
    assert pid(decoder) == first


def test_several_files_are_read_at_one_time_each_by_its_own_process(
    decoder: DecoderProcess, clip: Path
) -> None:
    one, other = decode(decoder, clip), decode(decoder, clip)
    for first, second in zip(one, other, strict=True):
        assert first.span == second.span
    assert len(decoder._idle) == 2
    decoder._idle.pop().end()


def test_a_process_that_is_not_needed_any_more_ends_but_not_the_last(
    decoder: DecoderProcess, clip: Path
) -> None:
    for _ in zip(decode(decoder, clip), decode(decoder, clip), strict=True):
        pass
    unused, last = decoder._idle
    decoder.measure(clip)
    assert decoder._idle == [unused, last]  # it may be needed again soon
    unused.idle_since_s -= 100
    decoder.measure(clip)
    assert decoder._idle == [last]
    assert unused.has_ended()
    last.idle_since_s -= 100
    decoder.measure(clip)
    assert decoder._idle == [last]


def test_an_interrupted_writer_leaves_nothing_for_the_next(
    decoder: DecoderProcess, clip: Path
) -> None:
    reading = decode(decoder, clip)
    next(reading)
    reading.close()
    assert decoder._idle == []
    assert [each.span for each in decode(decoder, clip)] == SPANS


def test_a_bad_file_is_reported_and_costs_no_process(
    decoder: DecoderProcess, tmp_path: Path
) -> None:
    first = pid(decoder)
    with pytest.raises(ClipError, match="No such file") as caught:
        decoder.measure(tmp_path / "none.mp4")
    assert caught.value.code == "missing_file"
    assert pid(decoder) == first


def test_a_crash_is_reported_and_the_next_file_is_read(
    decoder: DecoderProcess, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(process, "decode_spans", crashing.decode_all_but_bad)
        bad = clip.with_name("bad.mp4")
        bad.write_bytes(clip.read_bytes())
        reading = decode(decoder, bad)
        assert [next(reading).span for _ in range(2)] == SPANS[:2]
        with pytest.raises(ClipError, match=r"ended while it read this file \(SIGABRT\)") as caught:
            next(reading)
        assert caught.value.code == "killed_decoder"
        patch.setattr(process, "_measure", crashing.measure_and_exit)
        with pytest.raises(ClipError, match="exit status 7"):
            decoder.measure(clip)
    assert [each.span for each in decode(decoder, clip)] == SPANS


def test_a_file_that_hangs_is_stopped(
    decoder: DecoderProcess, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(process, "_measure", crashing.measure_and_hang)
        patch.setattr(process, "_MOST_S", 0.5)
        with pytest.raises(ClipError, match="stopped after"):
            decoder.measure(clip)
    assert decoder.measure(clip).duration_ms > 1900


def test_a_bug_in_the_process_is_raised_here_as_itself(
    decoder: DecoderProcess, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(process, "_measure", crashing.measure_wrongly)
        with pytest.raises(LookupError, match=r"clip\.mp4"):
            decoder.measure(clip)
    assert decoder.measure(clip).duration_ms > 1900


def test_a_process_that_ended_while_it_had_nothing_to_do_is_replaced(
    decoder: DecoderProcess, clip: Path
) -> None:
    [child] = decoder._idle
    child._process.kill()
    child._process.wait()
    assert decoder.measure(clip).duration_ms > 1900
