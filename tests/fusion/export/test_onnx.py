"""A fusion model's graph gives the logits of PyTorch, whatever is absent and however long the
dialogues are."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from fusion.export.onnx import write_fusion_graph
from fusion.inference.onnx import OnnxFusion
from fusion.inference.runtime import FeatureRows
from fusion.model.dialogue import Turns
from fusion.model.dims import FUSION_TYPES, FusionDims, ModalityDims, ModelConfig
from fusion.model.ensemble import join_members
from fusion.model.fusion import FusionModel
from pipeline.errors import CacheCorrupt, MismatchError
from pipeline.schema import ClipKey, Modality

pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")

SHAPES: tuple[tuple[Modality, int, int], ...] = (
    ("text", 3, 12),
    ("video", 1, 8),
    ("audio", 1, 10),
)


def make_model(config: ModelConfig, modalities: int = 3) -> FusionModel:
    """Every part of it does something: what starts as a no-op is drawn at random."""
    dims = FusionDims(
        modalities=tuple(
            ModalityDims(modality=name, layers=layers, dim=dim)
            for name, layers, dim in SHAPES[:modalities]
        ),
        model=config,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FusionModel(dims).eval()
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape)
            value.copy_(1 + noise.abs() if name.endswith("deviation") else noise / 2)
    return model


def make_rows(dims: FusionDims, dialogues: Sequence[int]) -> FeatureRows:
    """Utterances of dialogues of these lengths, in mixed order; in one nothing is present."""
    keys = [
        ClipKey("test", number, turn)
        for number, length in enumerate(dialogues)
        for turn in range(length)
    ]
    random = np.random.default_rng(len(keys))
    random.shuffle(keys)
    present = random.random((len(keys), len(dims.modalities))) > 0.4
    present[0] = False
    return FeatureRows(
        modalities=dims.names,
        features={
            each.modality: random.normal(size=(len(keys), each.layers, each.dim)).astype(np.float32)
            for each in dims.modalities
        },
        present=present,
        keys=tuple(keys),
        text=("",) * len(keys),
        speaker=tuple(random.choice(["Ross", "Joey", ""], len(keys)).tolist()),
    )


def check_alike(model: FusionModel, path: Path) -> None:
    write_fusion_graph(model, path)
    graph = OnnxFusion.load(path, model.dims, threads=1)
    for dialogues in ([1], [2], [33, 1, 5], [12] * 100):
        rows = make_rows(model.dims, dialogues)
        with torch.no_grad():
            wanted = model(
                {name: torch.from_numpy(values) for name, values in rows.features.items()},
                torch.from_numpy(rows.present),
                Turns.of(rows.keys, rows.speaker),
            )
        found = graph.fuse(rows)
        np.testing.assert_allclose(found.emotion, wanted.emotion_logits, atol=2e-5)
        np.testing.assert_allclose(found.sentiment, wanted.sentiment_logits, atol=2e-5)


@pytest.mark.heavy
def test_attention_with_dialogue_context_in_a_graph(tmp_path: Path) -> None:
    config = ModelConfig(fusion="attention", context="dialogue", projection=8, hidden=16)
    model = make_model(config)
    path = tmp_path / "fusion.onnx"
    check_alike(model, path)
    rows = make_rows(model.dims, [3])
    with pytest.raises(MismatchError, match=r"its inputs are .* wanted are"):
        OnnxFusion.load(path, make_model(ModelConfig(projection=8)).dims)
    with pytest.raises(CacheCorrupt, match="not the file that was exported"):
        OnnxFusion.load(path, model.dims, sha256="0" * 64)
    graph = OnnxFusion.load(path, model.dims)
    wide = {**rows.features, "audio": np.zeros((3, 1, 11), np.float32)}
    with pytest.raises(MismatchError, match=r"audio features are \[1, 11\]"):
        graph.fuse(FeatureRows(**{**vars(rows), "features": wide}))


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSION_TYPES)
@pytest.mark.parametrize("context", ["none", "dialogue", "future"])
def test_every_join_and_every_context_in_a_graph(fusion: str, context: str, tmp_path: Path) -> None:
    config = ModelConfig(
        fusion=fusion,  # type: ignore[arg-type]
        context="none" if context == "none" else "dialogue",
        future=context == "future",
        projection=8,
        hidden=16,
    )
    check_alike(make_model(config), tmp_path / "fusion.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSION_TYPES)
def test_a_single_modality_in_a_graph(fusion: str, tmp_path: Path) -> None:
    config = ModelConfig(fusion=fusion, projection=8, hidden=16)  # type: ignore[arg-type]
    check_alike(make_model(config, modalities=1), tmp_path / "fusion.onnx")


@pytest.mark.heavy
@pytest.mark.parametrize("context", ["none", pytest.param("dialogue", marks=pytest.mark.slow)])
def test_the_graph_of_an_ensemble_gives_the_average_of_its_members(
    context: Literal["none", "dialogue"], tmp_path: Path
) -> None:
    config = ModelConfig(context=context, hidden=16, projection=8)
    members = [make_model(config, modalities=2) for _ in range(2)]
    with torch.no_grad():
        members[1].heads.emotion.bias += torch.arange(7.0)
    model = join_members(members, own=("text",))
    write_fusion_graph(model, tmp_path / "fusion.onnx")
    rows = make_rows(model.dims, [3, 1, 5])
    found = OnnxFusion.load(tmp_path / "fusion.onnx", model.dims).fuse(rows)
    features = {name: torch.from_numpy(values) for name, values in rows.features.items()}
    with torch.no_grad():
        wanted = model(features, torch.from_numpy(rows.present), Turns.of(rows.keys, rows.speaker))
    assert np.allclose(np.exp(found.emotion).sum(axis=1), 1, atol=1e-5)
    assert np.allclose(found.emotion, wanted.emotion_logits.numpy(), atol=1e-4)
    assert np.allclose(found.sentiment, wanted.sentiment_logits.numpy(), atol=1e-4)
