"""A smaller run is exported, pruned and fine-tuned or in bfloat16, and measured against the run."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fusion.export import prune as pruning
from fusion.export.export import ExportConfig, ExportResult, export
from fusion.export.gate import ExportRefused
from fusion.export.graphs import check_graphs
from fusion.finetuning.loop import TuneConfig
from fusion.inference.load import ModelChoice
from fusion.inference.predictor import Predictor
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.encoders.choice import EncoderRequest
from pipeline.errors import InputError, UsageError
from pipeline.extract.extract import ExtractConfig, extract
from pipeline.schema import EMOTIONS, ClipKey, DecodedClip, Utterance
from tests.conftest import Meld

pytestmark = pytest.mark.heavy

CUES = {"joy": ("wonderful", "positive"), "anger": ("terrible", "negative")}
FILLING = "the a we you they coffee house street and then so was on in of today again".split()
TUNE = TuneConfig(epochs=1, batch_size=16)


@pytest.fixture(scope="module", autouse=True)
def without_ray_and_few_timed_clips(encode_here: Callable[..., Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.parallel.engine.encode_shards", encode_here)
        patch.setattr("fusion.export.gate.TIMED_CLIPS", 3)  # how fast it is does not matter here
        yield


@pytest.fixture(scope="module")
def place(
    tiny_text_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    without_ray_and_few_timed_clips: None,
) -> Path:
    """corpus/, whose emotions are one planted word each; features/ by a tiny BERT; run/"""
    place = tmp_path_factory.mktemp("prune")
    (place / "corpus").mkdir()
    for split, rows in {"train": 48, "dev": 32}.items():
        rng = random.Random(split)
        lines = ["Dialogue_ID,Utterance_ID,Speaker,Utterance,Emotion,Sentiment"]
        for row in range(rows):
            emotion = rng.choice(sorted(CUES))
            cue, sentiment = CUES[emotion]
            words = [*rng.choices(FILLING, k=rng.randint(3, 6)), cue]
            lines.append(f"{row // 4},{row % 4},Ann,{' '.join(words)},{emotion},{sentiment}")
        (place / "corpus" / f"{split}_sent_emo.csv").write_text("\n".join(lines) + "\n")
    extract(
        ExtractConfig(
            data=place / "corpus",
            features=place / "features",
            splits=("train", "dev"),
            modalities=("text",),
            encoders=EncoderRequest(text=str(tiny_text_folder)),
            precision="float32",
        )
    )
    for name, model in {"run": ModelConfig(), "dialogues": ModelConfig(context="dialogue")}.items():
        train_fusion(
            TrainConfig(
                features=place / "features",
                out=place / name,
                model=replace(model, hidden=16, projection=8),
                fit=FitConfig(epochs=10),
            )
        )
    return place


def by_weights(predictor: Predictor, clip: DecodedClip) -> float:
    """Time goes by numbers of weights: that of networks this small is noise."""
    runtime: Any = predictor.runtime
    return float(sum(value.numel() for value in runtime.encoders.parameters()))


def config(place: Path, out: Path, **changes: Any) -> ExportConfig:
    values = {"prune": 0.5, "tune": TUNE, "max_loss": 100.0, "data": place / "corpus"}
    weights_dir = changes.pop("weights_dir")
    return ExportConfig(run=place / "run", out=out, weights_dir=weights_dir, **values | changes)


@pytest.fixture(scope="module")
def half(
    place: Path, tiny_text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> ExportResult:
    """The run, pruned by half."""
    out = tmp_path_factory.mktemp("bundles") / "half"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion.export.gate._time", by_weights)
        return export(config(place, out, weights_dir=tiny_text_folder.parent))


def say(predictor: Predictor, *texts: str) -> list[Any]:
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("dev", 0, row), text=text, speaker=""))
        for row, text in enumerate(texts)
    ]
    return predictor.predict(predictor.encode(clips))


def test_half_of_the_units_are_gone_and_what_is_left_was_fine_tuned(
    place: Path, half: ExportResult, tiny_text_folder: Path
) -> None:
    original = ModelChoice(run=place / "run", weights_dir=tiny_text_folder.parent).load()
    shipped = ModelChoice(run=half.bundle).load()
    units = json.loads((half.bundle / "encoders/text/config.json").read_text())["pruned_units"]
    assert units == {
        f"encoder.layer.{number}.{part}": count
        for number in (0, 1)
        for part, count in (("attention", 6), ("intermediate", 32))
    }
    assert shipped.description.dims.model.hidden == 8
    assert shipped.description.finetuned == ("text",)
    assert say(shipped, "so wonderful")[0] != say(original, "so wonderful")[0]
    assert half.work is not None
    tuned = Predictor.load(half.work / "tuned")
    assert say(shipped, "so wonderful", "terrible") == say(tuned, "so wonderful", "terrible")


def test_the_export_and_its_card_say_what_it_costs(half: ExportResult) -> None:
    assert half.gate is not None
    before, after = half.gate.variants
    assert [before.name, after.name] == ["PyTorch", "50 % pruned, PyTorch"]
    assert after.num_bytes < before.num_bytes
    exported = json.loads((half.bundle / "export.json").read_text())
    assert exported["pruned"] == 0.5
    assert exported["gate"]["passes"] is True
    card = (half.bundle / "README.md").read_text()
    assert "with 50 % of the units of each\nlayer removed" in card
    assert "| 50 % pruned, PyTorch |" in card


def test_the_bundle_is_trusted_where_it_was_made(half: ExportResult, meld: Meld) -> None:
    assert meld("verify", half.bundle).status == 0


def test_a_tuned_encoder_in_bfloat16_is_to_be_tuned_in_float32_for_graphs(
    half: ExportResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert half.work is not None
    runtime: Any = Predictor.load(half.work / "tuned").runtime
    monkeypatch.setattr(type(runtime), "precision", {"text": "bfloat16"})
    with pytest.raises(UsageError, match=r"float32; fine-tune with --precision float32$"):
        check_graphs(runtime)


def test_a_killed_export_goes_on_with_the_run_that_was_fine_tuned(
    place: Path,
    half: ExportResult,
    tiny_text_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_again(*_: object) -> None:
        raise AssertionError("it was fine-tuned before")

    monkeypatch.setattr("fusion.export.gate._time", by_weights)
    monkeypatch.setattr(pruning, "finetune", not_again)
    monkeypatch.setattr(pruning, "extract", not_again)
    again = export(config(place, half.bundle, weights_dir=tiny_text_folder.parent, overwrite=True))
    assert again.files.keys() == half.files.keys()
    with pytest.raises(UsageError, match="with another share; remove it, or name another --out"):
        export(
            config(
                place, half.bundle, weights_dir=tiny_text_folder.parent, overwrite=True, prune=0.25
            )
        )


def test_a_pruned_model_that_is_not_faster_is_refused_and_the_fine_tuned_run_stays(
    place: Path,
    half: ExportResult,
    tiny_text_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusion.export.gate._time", lambda predictor, clip: 7.0)
    assert half.work is not None
    before = (half.bundle / "config.json").read_bytes()
    with pytest.raises(ExportRefused, match=r"not faster here: 1\.00 times as fast") as refused:
        export(config(place, half.bundle, weights_dir=tiny_text_folder.parent, overwrite=True))
    assert refused.value.report.variants[-1].name == "50 % pruned, PyTorch"
    assert f"the smaller run stays in {half.work / 'tuned'}" in str(refused.value)
    assert (half.bundle / "config.json").read_bytes() == before
    assert (half.work / "tuned" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_graphs_are_quantised")
def test_pruned_graphs_in_8_bits_are_measured_against_the_run(
    place: Path, half: ExportResult, tiny_text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work of the bundle above is taken over."""
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    monkeypatch.setattr("fusion.export.gate._time", lambda *_: next(falling))
    falling = iter(range(10**6, 0, -1))
    result = export(
        config(
            place,
            half.bundle,
            weights_dir=tiny_text_folder.parent,
            overwrite=True,
            quantise="int8",
        )
    )
    assert result.gate is not None
    assert [each.name for each in result.gate.variants] == [
        "PyTorch",
        "50 % pruned, PyTorch",
        "50 % pruned, ONNX",
        "50 % pruned, ONNX int8",
    ]
    plain, graphs = result.gate.variants[1:3]
    assert graphs.emotion.f1 == plain.emotion.f1
    assert not (half.bundle / "encoders").exists()
    assert say(ModelChoice(run=half.bundle).load(), "terrible")[0].emotion.label in EMOTIONS


def test_bfloat16_halves_the_encoders_and_the_bundle_computes_as_it_was_measured(
    place: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)  # no test before has another number; the gate measures all cores
    result = export(
        ExportConfig(
            run=place / "run",
            out=tmp_path / "small",
            quantise="bfloat16",
            data=place / "corpus",
            max_loss=100.0,
            weights_dir=tiny_text_folder.parent,
        )
    )
    assert torch.get_num_threads() == 1
    assert result.gate is not None
    before, after = result.gate.variants
    assert after.name == "bfloat16"
    assert after.num_bytes < 0.6 * before.num_bytes
    assert after.emotion.largest_logit_error > 0
    shipped = ModelChoice(run=result.bundle).load()
    assert shipped.precision == {"text": "bfloat16"}
    runtime: Any = shipped.runtime
    assert {value.dtype for value in runtime.encoders.parameters()} == {torch.bfloat16}
    assert "computes with encoders in bfloat16" in (result.bundle / "README.md").read_text()
    for asked in ({"onnx": True}, {"quantise": "int8", "data": place / "corpus"}):
        with pytest.raises(
            UsageError,
            match=r"^ONNX graphs: .*bfloat16, and graphs are written in float32; extract",
        ):
            export(ExportConfig(run=result.bundle, out=tmp_path / "graphs", **asked))
    with pytest.raises(UsageError, match=r"no encoder of .* would change"):
        export(
            ExportConfig(
                run=result.bundle,
                out=tmp_path / "again",
                quantise="bfloat16",
                data=place / "corpus",
            )
        )


def test_a_run_that_sees_whole_dialogues_is_not_pruned(
    place: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    asked = config(place, tmp_path / "out", weights_dir=tiny_text_folder.parent)
    with pytest.raises(UsageError, match="sees whole dialogues"):
        export(replace(asked, run=place / "dialogues"))
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_without_train_is_refused_before_anything_is_made(
    place: Path, tiny_text_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "dev_sent_emo.csv").write_bytes(
        (place / "corpus" / "dev_sent_emo.csv").read_bytes()
    )
    asked = config(place, tmp_path / "out", weights_dir=tiny_text_folder.parent, data=tmp_path)
    with pytest.raises(InputError, match=r"no train_sent_emo\.csv"):
        export(asked)
    assert [path.name for path in tmp_path.iterdir()] == ["dev_sent_emo.csv"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--prune", "0"), "a share above 0 and below 1"),
        (("--prune", "1.5"), "a share above 0 and below 1"),
        (("--prune", "nan"), "a share above 0 and below 1"),
        (("--epochs", "5"), "nothing is fine-tuned without --prune"),
        (("--prune", "0.5", "--link-encoders"), "pruned encoders exist in the bundle alone"),
        (("--prune", "0.5", "--epochs", "0"), "epochs must be at least 1"),
        (("--prune", "0.5", "--learning-rate", "text"), "takes a rate per part"),
        (("--quantise", "bfloat16", "--onnx"), "float32 or int8"),
        (("--quantise", "int8", "--onnx"), "writes graphs, in 8 bits"),
        (("--quantise", "bfloat16", "--link-encoders"), "smaller in bfloat16"),
        (("--data", "x"), "nothing is measured without --quantise or --prune"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    options: tuple[str, ...], said: str, meld: Meld, tmp_path: Path
) -> None:
    done = meld("export", tmp_path / "run", "--out", tmp_path / "out", *options)
    assert done.status == 2
    assert said in " ".join(done.err.split())
