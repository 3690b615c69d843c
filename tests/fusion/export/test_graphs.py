"""Whether a run can be written as graphs is told before anything is written."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusion.export.graphs import check_graphs
from fusion.inference.pytorch import PyTorchRuntime
from pipeline.encode import Encoders
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import Modality


def runtime_of(modality: Modality, name: str) -> PyTorchRuntime:
    decode = DecodeConfig()
    request = replace(EncoderRequest(), **{modality: name})
    choice = choose_encoder(modality, request, "float32")
    checkpoint = SimpleNamespace(
        recipe=FeatureRecipe(encoders=(choice.spec,), decode=decode), dims=SimpleNamespace(own=())
    )
    return SimpleNamespace(  # type: ignore[return-value]
        checkpoint=checkpoint,
        encoders=Encoders([choice], decode),
        precision={modality: "float32"},
    )


@pytest.mark.parametrize("audio", ["spectrogram", "prosody", "spectrogram,prosody"])
def test_what_hears_can_be_written(audio: str) -> None:
    check_graphs(runtime_of("audio", audio))


@pytest.mark.parametrize("text", ["{vectors}", "{tiny},{vectors}"])
def test_an_encoder_without_a_graph_is_refused_by_name(
    text: str, tiny_text_folder: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words.vec"
    words.write_text("so 1 2\nit 3 4\n")
    name = text.format(tiny=tiny_text_folder, vectors=f"glove:{words}")
    with pytest.raises(UsageError, match=r"text encoder glove:words\.vec .* without --onnx"):
        check_graphs(runtime_of("text", name))
