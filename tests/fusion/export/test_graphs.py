"""Whether a run can be written as graphs is told before anything is written."""

from types import SimpleNamespace

import pytest

from fusion.export.graphs import check_graphs
from fusion.inference.pytorch import PyTorchRuntime
from pipeline.encode import Encoders
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig, FeatureRecipe


def runtime_of(audio: str) -> PyTorchRuntime:
    decode = DecodeConfig()
    choice = choose_encoder("audio", EncoderRequest(audio=audio), "float32")
    checkpoint = SimpleNamespace(
        recipe=FeatureRecipe(encoders=(choice.spec,), decode=decode), dims=SimpleNamespace(own=())
    )
    return SimpleNamespace(  # type: ignore[return-value]
        checkpoint=checkpoint,
        encoders=Encoders([choice], decode),
        precision={"audio": "float32"},
    )


@pytest.mark.parametrize("audio", ["prosody", "spectrogram,prosody"])
def test_an_encoder_without_a_graph_is_refused_by_name(audio: str) -> None:
    with pytest.raises(UsageError, match=f"audio encoder {audio} cannot be .* without --onnx"):
        check_graphs(runtime_of(audio))


def test_an_encoder_with_one_is_not() -> None:
    check_graphs(runtime_of("spectrogram"))
