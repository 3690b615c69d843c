"""The gate lets pass what says the same, and refuses what loses more than is allowed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from console.show.bundle import show_gate
from fusion.export.gate import Candidate, Gate, refusal
from fusion.inference.runtime import FeatureRows, HeadLogits
from fusion.model.dims import FusionDims, ModalityDims
from pipeline.errors import InputError
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipFeatures, DecodedClip

DIMS = FusionDims(modalities=(ModalityDims(modality="text", layers=1, dim=1),))
DIALOGUES, TURNS = 40, 5


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The words of an utterance are its number; its emotion is number modulo 7."""
    rows = [
        f"{number},{number},Joey,{EMOTIONS[number % 7]},{SENTIMENTS[number % 3]},"
        f"{number // TURNS},{number % TURNS},1,1"
        for number in range(DIALOGUES * TURNS)
    ]
    head = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode"
    (tmp_path / "dev_sent_emo.csv").write_text("\n".join([head, *rows]))
    return tmp_path


def predictor(is_wrong: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Says what is labelled, but for the utterances that it is to get wrong."""

    def encode(clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        return [
            ClipFeatures(
                utterance=clip.utterance,
                raw={"text": np.full((1, 1), float(clip.utterance.text), np.float32)},
            )
            for clip in clips
        ]

    def fuse(rows: FeatureRows) -> HeadLogits:
        number = rows.features["text"][:, 0, 0].astype(int)
        wrong = is_wrong(number).astype(int)
        return HeadLogits(np.eye(7)[(number + wrong) % 7], np.eye(3)[(number + wrong) % 3])

    return SimpleNamespace(
        description=SimpleNamespace(set_aside=None, dims=DIMS),
        recipe=SimpleNamespace(encoders=(SimpleNamespace(context=0, dialogue="none"),)),
        decode=None,
        modalities=("text",),
        encode=encode,
        runtime=SimpleNamespace(fuse=fuse),
    )


def candidate(name: str, made: Any) -> Candidate:
    return Candidate(name=name, load=lambda threads: made, num_bytes=1)


def nothing(number: np.ndarray) -> np.ndarray:
    return np.zeros(len(number), bool)


def test_a_variant_with_equal_predictions_passes_without_loss(corpus: Path) -> None:
    original = predictor(nothing)
    gate = Gate(original, corpus, "dev", max_loss=0.0)
    costs = [gate.measure(candidate(name, original)) for name in ("run", "same")]
    report = gate.report(costs)
    assert report.passes
    assert (report.rows, report.dialogues) == (DIALOGUES * TURNS, DIALOGUES)
    change = costs[1].emotion.change
    assert change is not None
    assert (change.low, change.value, change.high) == (0, 0, 0)
    assert costs[1].emotion.agreement == 1


def test_a_variant_that_loses_a_tenth_is_refused_with_its_loss(corpus: Path) -> None:
    original, variant = predictor(nothing), predictor(lambda number: number % 10 == 3)
    gate = Gate(original, corpus, "dev", max_loss=1.0)
    costs = [gate.measure(candidate("run", original)), gate.measure(candidate("bad", variant))]
    report = gate.report(costs)
    assert not report.passes
    cost = costs[1].emotion
    assert cost.agreement == pytest.approx(0.9)
    assert cost.largest_logit_error == 1
    assert cost.change is not None
    assert cost.change.value == pytest.approx(-0.1, abs=0.01)
    assert cost.change.low < cost.change.value < cost.change.high < 0
    assert "bad may lose more than --max-loss 1 points" in refusal(report)


def test_the_lower_bound_counts_and_not_the_value(corpus: Path) -> None:
    """Two wrong rows of 200 cost a point; by chance of the dialogues it could have been two."""
    original, variant = predictor(nothing), predictor(lambda number: number % 100 == 3)
    for max_loss, passes in ((1.5, False), (5.0, True)):
        gate = Gate(original, corpus, "dev", max_loss=max_loss)
        costs = [
            gate.measure(candidate("run", original)),
            gate.measure(candidate("small", variant)),
        ]
        change = costs[1].emotion.change
        assert change is not None
        assert -1.5 < 100 * change.value < -0.5
        assert gate.report(costs).passes is passes


def test_a_corpus_without_labels_cannot_say_what_is_lost(tmp_path: Path) -> None:
    (tmp_path / "dev_sent_emo.csv").write_text(
        "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\nHi,Joey,,,0,0\n"
    )
    with pytest.raises(InputError, match="no row of dev has a label"):
        Gate(predictor(nothing), tmp_path, "dev", max_loss=1.0)


def test_a_corpus_without_what_the_run_reads_cannot_say_what_is_lost(corpus: Path) -> None:
    """Its clips are not beside its CSVs."""
    original = predictor(nothing)
    original.modalities = ("text", "video")
    gate = Gate(original, corpus, "dev", max_loss=1.0)
    with pytest.raises(InputError, match="no clip of dev has video, which the run reads"):
        gate.measure(candidate("run", original))


def test_the_table_of_the_gate_is_whole_in_80_columns(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original, variant = predictor(nothing), predictor(lambda number: number % 10 == 3)
    gate = Gate(original, corpus, "dev", max_loss=1.0)
    names = ("PyTorch", "50 % pruned, ONNX int8")
    costs = [
        gate.measure(candidate(name, made))
        for name, made in zip(names, (original, variant), strict=True)
    ]
    show_gate(gate.report(costs), as_json=False)
    shown = capsys.readouterr().out
    assert "…" not in shown
    change = costs[1].sentiment.change
    assert change is not None
    assert f"{100 * change.value:+.2f} [{100 * change.low:+.2f}, {100 * change.high:+.2f}]" in shown


def test_a_variant_is_timed_in_turns_with_the_run(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine becomes slower all the time, for both alike; the variant takes half as long."""
    now = [1.0]
    original, variant = predictor(nothing), predictor(nothing)

    def milliseconds(made: Any, clip: DecodedClip) -> float:
        now[0] += 0.01
        return now[0] * (2 if made is original else 1)

    monkeypatch.setattr("fusion.export.gate._time", milliseconds)
    gate = Gate(original, corpus, "dev", max_loss=1.0)
    costs = [gate.measure(candidate("run", original)), gate.measure(candidate("half", variant))]
    assert (costs[0].speed_one_core, costs[0].speed_all_cores) == (1, 1)
    assert costs[1].speed_one_core == pytest.approx(2, abs=0.02)
    report = gate.report(costs, must_be_faster=True)
    assert report.is_faster
    assert not gate.report(costs[:1], must_be_faster=True).passes
