"""Where somebody speaks: planted probabilities, planted speech, and sound without a voice."""

import importlib.util
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fusion.inference import voice
from fusion.inference.voice import (
    FRAME_MS,
    RegionFinder,
    SpeechRegion,
    VoiceConfig,
    VoiceDetector,
    find_speech,
    hash_detector,
    read_sound,
)
from pipeline.errors import ClipError, WeightsMissing
from pipeline.recipe import DecodeConfig
from tests.fusion.inference.planted import (
    plant_speech,
    sounds_without_voice,
    write_sound,
)
from tests.media import FPS, tone, write_clip

needs_detector = pytest.mark.skipif(
    importlib.util.find_spec("faster_whisper") is None
    or importlib.util.find_spec("onnxruntime") is None,
    reason="the voice detector (extra asr) is not installed",
)
NO_PADDING = VoiceConfig(padding_ms=0)


def find(
    runs: Sequence[tuple[float, int]], config: VoiceConfig = NO_PADDING, *, piece: int = 10_000
) -> list[SpeechRegion]:
    """runs: a probability, and for how many frames; they are taken `piece` at a time"""
    values = np.concatenate([np.full(num, value, np.float32) for value, num in runs])
    finder = RegionFinder(config)
    found: list[SpeechRegion] = []
    for start in range(0, len(values), piece):
        found += finder.take(values[start : start + piece])
    return [*found, *finder.finish(len(values) * FRAME_MS)]


def frames_of(region: SpeechRegion) -> tuple[float, float]:
    return region.start_ms / FRAME_MS, region.end_ms / FRAME_MS


# ----------------------------------------------------------------------------------- the regions


def test_a_voice_begins_at_the_threshold_and_ends_below_the_lower_one() -> None:
    regions = find([(0.0, 10), (0.4, 5), (0.6, 10), (0.4, 20), (0.1, 30)])
    assert [frames_of(region) for region in regions] == [(15, 45)]


def test_a_short_pause_is_reported_and_ends_nothing() -> None:
    regions = find([(0.9, 20), (0.1, 5), (0.9, 20), (0.1, 30), (0.9, 20)])
    assert [frames_of(region) for region in regions] == [(0, 45), (75, 95)]
    assert regions[0].pauses == ((20 * FRAME_MS, 25 * FRAME_MS),)


def test_a_click_is_no_voice() -> None:
    assert find([(0.0, 10), (0.9, 3), (0.0, 40)]) == []


def test_a_region_keeps_something_before_and_after_its_voice_but_not_beyond_the_file() -> None:
    config = VoiceConfig(padding_ms=100)
    inner, last = find([(0.0, 10), (0.9, 20), (0.0, 10), (0.9, 20)], config)
    assert (inner.start_ms, inner.end_ms) == (320 - 100, 960 + 100)
    assert last.end_ms == 60 * FRAME_MS
    [first] = find([(0.9, 20), (0.0, 20)], config)
    assert first.start_ms == 0


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_the_sizes_of_the_pieces_change_nothing(piece: int) -> None:
    runs = [(0.0, 9), (0.9, 30), (0.1, 4), (0.7, 900), (0.2, 6), (0.8, 300), (0.0, 50), (0.9, 9)]
    assert find(runs, piece=piece) == find(runs)


def test_a_voice_without_end_is_cut_in_its_longest_pause() -> None:
    runs = [(0.9, 500), (0.2, 4), (0.9, 100), (0.2, 8), (0.9, 100), (0.2, 3), (0.9, 600)]
    first, second = find(runs)
    assert frames_of(first)[0] == 0
    assert 604 <= frames_of(first)[1] <= frames_of(second)[0] <= 612
    assert frames_of(second)[1] == 1315
    assert max(region.end_ms - region.start_ms for region in (first, second)) <= 28_000


def test_a_voice_without_any_pause_is_cut_where_it_is_weakest() -> None:
    first, second = find([(0.9, 700), (0.6, 1), (0.9, 500)])
    assert frames_of(first) == (0, 700)
    assert frames_of(second) == (700, 1201)


def test_no_region_begins_before_what_is_settled() -> None:
    rng = np.random.default_rng(0)
    finder, settled_ms = RegionFinder(VoiceConfig()), 0
    for _ in range(300):
        values = rng.random(10, np.float32) ** (4 if rng.random() < 0.5 else 0.3)
        for region in finder.take(values.astype(np.float32)):
            assert region.start_ms >= settled_ms
        assert finder.settled_ms >= settled_ms
        settled_ms = finder.settled_ms


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.3},
        {"end_threshold": 0.0},
        {"min_speech_ms": -1},
        {"padding_ms": 200},
        {"max_region_ms": 30_000},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VoiceConfig(**wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ the detector


@needs_detector
def test_the_detector_hears_a_stream_in_pieces_as_it_hears_the_whole(tmp_path: Path) -> None:
    planted = plant_speech(tmp_path / "a.wav", [500, "It is over.", 800, "What did you do?", 300])
    [sound] = read_sound(planted.path, DecodeConfig(), duration_ms=planted.duration_ms)
    whole, bitwise = VoiceDetector.load(), VoiceDetector.load()
    expected = np.concatenate([whole.take(sound), whole.finish()])
    pieces = [bitwise.take(sound[start : start + 1_000]) for start in range(0, len(sound), 1_000)]
    assert np.concatenate([*pieces, bitwise.finish()]) == pytest.approx(expected, abs=1e-5)
    assert len(expected) == -(-len(sound) // 512)


@needs_detector
@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_planted_speech_is_found_where_it_is(tmp_path: Path, noise: float) -> None:
    parts = [1_000, "I told you that yesterday.", 700, "Where is he?", 1_500, "Yes.", 600]
    planted = plant_speech(tmp_path / "a.wav", parts, noise=noise)
    done_ms: list[int] = []
    regions = list(
        find_speech(
            planted.path,
            DecodeConfig(),
            VoiceConfig(),
            duration_ms=planted.duration_ms,
            on_progress=done_ms.append,
        )
    )
    assert len(regions) == len(planted.spoken)
    for region, (_, start_ms, end_ms) in zip(regions, planted.spoken, strict=True):
        assert -150 <= region.start_ms - start_ms <= 50
        assert -50 <= region.end_ms - end_ms <= 200
    assert done_ms[-1] == planted.duration_ms


@needs_detector
def test_no_voice_is_found_without_speech(tmp_path: Path) -> None:
    for name, sound in sounds_without_voice(10).items():
        path = write_sound(tmp_path / f"{name}.wav", sound)
        regions = list(find_speech(path, DecodeConfig(), VoiceConfig(), duration_ms=10_000))
        assert regions == [], name


@needs_detector
def test_the_detector_is_distinguished_from_another_by_its_hash() -> None:
    assert hash_detector().startswith("sha256:")


def test_without_the_detector_there_is_a_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsMissing, match=r"pip install 'meld\[asr\]'.*--subtitles"):
        VoiceDetector.load()


# --------------------------------------------------------------------------------------- the sound


def heard(path: Path, duration_ms: int) -> np.ndarray:
    return np.concatenate(list(read_sound(path, DecodeConfig(), duration_ms=duration_ms)))


@pytest.mark.parametrize("starts_s", [0.0, 0.3, 40.0])
def test_sound_that_begins_late_is_heard_when_it_is(tmp_path: Path, starts_s: float) -> None:
    path = write_clip(
        tmp_path / "late.mkv",
        num_frames=FPS,
        sound=tone([440]),
        sound_codec="flac",
        sound_starts_s=starts_s,
    )
    samples = heard(path, 42_000)
    loud = np.flatnonzero(np.abs(samples) > 0.1)
    assert loud[0] / 16_000 == pytest.approx(starts_s, abs=0.02)
    assert len(samples) / 16_000 == pytest.approx(starts_s + 1, abs=0.06)


def test_a_header_that_promises_ten_hours_costs_nothing(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", tone([440], 16_000))
    assert len(heard(path, 36_000_000)) == 16_000


def test_blocks_join_to_the_whole_of_a_long_file(tmp_path: Path) -> None:
    sound = np.random.default_rng(0).standard_normal(65 * 16_000) * 0.1
    path = write_sound(tmp_path / "a.wav", sound)
    blocks = list(read_sound(path, DecodeConfig(), duration_ms=65_000))
    assert [len(block) for block in blocks] == [480_000, 480_000, 80_000]
    with wave.open(str(path)) as file:
        written = np.frombuffer(file.readframes(-1), "<i2") / 32_768
    np.testing.assert_allclose(np.concatenate(blocks), written, atol=1e-6)


def test_a_file_without_sound_says_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "mute.mp4", num_frames=5)
    with pytest.raises(ClipError, match="no sound"):
        heard(path, 1_000)
    with pytest.raises(ClipError) as caught:
        heard(tmp_path / "nowhere.mp4", 1_000)
    assert caught.value.code == "missing_file"
