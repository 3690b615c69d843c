"""Graphs in 8 bits: what they cost, what the gate lets pass, and what they are not for."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fusion.export.export import ExportConfig, export
from fusion.export.gate import VariantCost
from fusion.inference.bundle import GRAPHS
from pipeline.schema import EMOTIONS, SENTIMENTS
from tests.bundles.forging import change_json
from tests.bundles.talk import timeline
from tests.conftest import Meld

pytestmark = pytest.mark.heavy


@pytest.fixture
def traced_once(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export of `text_run` takes the graphs that there are: tracing them anew gives the same,
    and takes most of the time of an export in 8 bits."""
    monkeypatch.setattr(
        "fusion.export.export.write_graphs",
        lambda runtime, folder: shutil.copytree(graphs / GRAPHS, folder),
    )


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of words alone: dev has 12 dialogues of 3 utterances."""
    folder = tmp_path_factory.mktemp("words")
    rows = [
        f'{number},"{EMOTIONS[number % 7]} number {number}",Joey,{EMOTIONS[number % 7]},'
        f"{SENTIMENTS[number % 3]},{number // 3},{number % 3},1,1"
        for number in range(36)
    ]
    head = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode"
    (folder / "dev_sent_emo.csv").write_text("\n".join([head, *rows]))
    return folder


@pytest.fixture
def small_config(
    text_run: Path, tiny_text_folder: Path, words: Path, tmp_path: Path
) -> ExportConfig:
    return ExportConfig(
        run=text_run,
        out=tmp_path / "small",
        quantise="int8",
        data=words,
        weights_dir=tiny_text_folder.parent,
    )


@pytest.fixture
def to_8_bits(tiny_text_folder: Path, words: Path) -> Sequence[object]:
    """Options of `meld export`."""
    return ("--quantise", "int8", "--data", words, "--weights-dir", tiny_text_folder.parent)


@pytest.mark.usefixtures("traced_once")
def test_8_bits_that_lose_little_are_written_without_pytorch_and_with_what_they_cost(
    meld: Meld, small_config: ExportConfig
) -> None:
    out = small_config.out
    gate = export(replace(small_config, max_loss=100)).gate
    assert gate is not None
    by_torch, in_float, in_8_bits = gate.variants
    assert (gate.rows, gate.dialogues) == (36, 12)
    assert in_float.emotion.largest_logit_error < 1e-4 < in_8_bits.emotion.largest_logit_error
    assert in_8_bits.num_bytes < 0.4 * in_float.num_bytes
    assert by_torch.emotion.agreement == in_float.emotion.agreement == 1
    assert not (out / "encoders").exists()
    assert "| ONNX int8 |" in (out / "README.md").read_text()
    exported = json.loads((out / "export.json").read_bytes())
    assert exported["runtimes"] == ["onnx"]
    assert exported["gate"]["passes"]
    told = meld("verify", out, "--json").json
    assert told["trusted"]
    assert timeline(meld, out)["model"]["precision"] == {"text": "int8"}


@pytest.mark.usefixtures("traced_once")
def test_an_export_that_the_gate_refuses_replaces_nothing_and_shows_what_was_lost(
    meld: Meld,
    text_run: Path,
    text_bundle: Path,
    to_8_bits: Sequence[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(VariantCost, "passes", lambda self, max_loss: False)
    monkeypatch.setattr("fusion.export.graphs._rank", lambda *_: [])
    out = Path(shutil.copytree(text_bundle, tmp_path / "shipped"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = meld("export", text_run, "--out", out, "--overwrite", *to_8_bits)
    assert done.status == 6
    assert "nothing was written" in done.err
    assert "ONNX int8" in done.out
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("traced_once")
def test_layers_that_lose_too_much_in_8_bits_compute_in_float_and_stay_small(
    small_config: ExportConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted gate lets pass what errs less than all layers in 8 bits do."""
    errors: list[float] = []

    def passes(self: VariantCost, max_loss: float) -> bool:
        errors.append(self.emotion.largest_logit_error)
        return len(errors) == 3

    monkeypatch.setattr(VariantCost, "passes", passes)
    gate = export(small_config).gate
    assert gate is not None
    assert len(gate.float_layers) == 2
    in_float, in_8_bits = gate.variants[1:]
    assert in_8_bits.num_bytes < 0.4 * in_float.num_bytes


@pytest.mark.slow
def test_planted_scales_that_are_off_by_two_are_found_and_nothing_is_written(
    meld: Meld,
    text_run: Path,
    to_8_bits: Sequence[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pipeline.onnx import quantise

    right = quantise._round_to_8_bits

    def off_by_two(values: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        rounded, scale = right(values, axes)
        return rounded, 2 * scale

    monkeypatch.setattr(quantise, "_round_to_8_bits", off_by_two)
    out = tmp_path / "small"
    done = meld("export", text_run, "--out", out, "--max-loss", "100", *to_8_bits)
    assert done.status == 6
    assert "the largest error is" in done.err
    assert not out.exists()


@pytest.fixture
def small(graphs: Path, tmp_path: Path) -> Path:
    """What says of itself that it has graphs in 8 bits."""
    folder = Path(shutil.copytree(graphs, tmp_path / "small"))
    change_json("export.json", lambda values: values.update(runtimes=["onnx"]))(folder)
    return folder


def test_8_bit_graphs_read_no_cached_features(meld: Meld, small: Path, tmp_path: Path) -> None:
    done = meld("evaluate", small, "--features", tmp_path)
    assert done.status == 2
    assert "8-bit graphs, which read no cached features" in done.err


def test_8_bit_graphs_are_not_exported_again(meld: Meld, small: Path, tmp_path: Path) -> None:
    done = meld("export", small, "--out", tmp_path / "out")
    assert done.status == 2
    assert "export the run that they were made from" in done.err


@pytest.mark.parametrize("option", [("--max-loss", 3), ("--split", "test"), ("--data", "d")])
def test_what_is_measured_is_said_with_quantise_alone(
    meld: Meld, text_run: Path, tmp_path: Path, option: tuple[object, ...]
) -> None:
    done = meld("export", text_run, "--out", tmp_path / "out", *option)
    assert done.status == 2
    assert "nothing is measured without --quantise" in done.err
