"""The model in the package: what its card says is what was measured, and it works at once."""

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder

from fusion.bundled.card import render_card
from fusion.bundled.make import FILES, UNNAMED
from fusion.evaluation.scores import weighted_f1
from fusion.inference.bundled import bundled_run
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.prediction import Prediction
from fusion.inference.predictor import Predictor
from pipeline.corpus.annotations import read_corpus
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipKey, DecodedClip, Utterance

ROOT = Path(__file__).resolve().parents[3]
REAL = ROOT.parent / "shared" / "meld"
MOST_BYTES = 2_000_000


def read(name: str) -> Any:
    return json.loads((bundled_run() / name).read_text(encoding="utf-8"))


def test_the_folder_holds_the_model_its_scores_and_its_card_and_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in bundled_run().iterdir()}
    assert set(sizes) == set(FILES)
    assert sum(sizes.values()) < MOST_BYTES


def test_the_wheel_has_it() -> None:
    files = {each.distribution_path for each in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert {f"fusion/bundled/meld-text/{name}" for name in FILES} <= files


def test_the_card_is_written_from_the_scores_beside_it() -> None:
    card = (bundled_run() / "README.md").read_text(encoding="utf-8")
    test = read("evaluation-test.json")
    again = render_card(read("config.json"), test, read(UNNAMED), read("evaluation-dev.json"))
    assert card == again
    for head in ("emotion", "sentiment"):
        assert f"| {test[head]['model']['weighted_f1']:.3f} [" in card


def test_the_scores_are_of_this_model() -> None:
    checkpoint = read_checkpoint(bundled_run())
    for name in ("evaluation-test.json", UNNAMED, "evaluation-dev.json"):
        report = read(name)
        assert report["run"] == "meld-text"
        assert report["fingerprint"] == checkpoint.recipe.fingerprint
    assert checkpoint.decoding is not None
    temperature = read("evaluation-test.json")["calibration"]["emotion"]["temperature"]
    assert temperature["value"] == checkpoint.decoding.emotion.value


def test_it_reads_text_in_float32_and_nothing_said_later() -> None:
    """A timeline of something that goes on has no later."""
    checkpoint = read_checkpoint(bundled_run())
    [spec] = checkpoint.recipe.encoders
    assert (spec.modality, spec.name, spec.weights) == ("text", "minilm", "pretrained")
    assert spec.precision == "float32"
    assert checkpoint.dims.input == "raw"
    assert checkpoint.dims.model.context == "dialogue"
    assert not checkpoint.dims.model.future


def test_nothing_in_it_names_a_folder_or_quotes_the_corpus() -> None:
    checkpoint = read_checkpoint(bundled_run())
    assert checkpoint.features is None
    assert checkpoint.data is None
    for name in FILES:
        if name.endswith(".json"):
            assert [text for text in _strings(read(name)) if text.startswith(("/", "~", "."))] == []
            assert '"text":' not in (bundled_run() / name).read_text(encoding="utf-8")


def _strings(values: Any) -> list[str]:
    if isinstance(values, dict):
        return [text for each in values.items() for text in _strings(list(each))]
    if isinstance(values, list):
        return [text for each in values for text in _strings(each)]
    return [values] if isinstance(values, str) else []


def predict(*dialogues: list[str]) -> list[Prediction]:
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("test", number, place), text=text))
        for number, dialogue in enumerate(dialogues)
        for place, text in enumerate(dialogue)
    ]
    predictor = Predictor.load(bundled_run())
    return predictor.predict(predictor.encode(clips))


@pytest.mark.heavy
def test_it_predicts_the_emotion_of_plain_sentences_offline_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("prediction asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    before = _state()
    found = predict(
        ["I'm so happy for you!"], ["I hate you! Get out of my house!"], ["Oh my God! What?!"]
    )
    labels = [(each.emotion.label, each.sentiment.label) for each in found]
    assert labels[:2] == [("joy", "positive"), ("anger", "negative")]
    assert labels[2][0] == "surprise"
    for each in found:
        assert sum(each.emotion.probabilities.values()) == pytest.approx(1)
    assert _state() == before  # it is read, never written to


def _state() -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in bundled_run().iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(
    not (REAL / "test_sent_emo.csv").is_file(), reason="the real MELD annotations are not here"
)
def test_its_scores_measured_again_from_the_package_are_those_of_its_card() -> None:
    wanted = read("evaluation-test.json")
    rows = read_corpus(REAL, ("test",))["test"]
    predictor = Predictor.load(bundled_run())
    found = predictor.predict(predictor.encode([DecodedClip(utterance=row) for row in rows]))
    emotion = np.array([EMOTIONS.index(row.emotion) for row in rows if row.emotion])
    sentiment = np.array([SENTIMENTS.index(row.sentiment) for row in rows if row.sentiment])
    for head, true in (("emotion", emotion), ("sentiment", sentiment)):
        probabilities = [[*getattr(each, head).probabilities.values()] for each in found]
        measured = weighted_f1(true, np.argmax(probabilities, axis=1))
        # Other batches round otherwise: a row or two of 2,610 may change sides.
        assert measured == pytest.approx(wanted[head]["model"]["weighted_f1"], abs=1e-3)
