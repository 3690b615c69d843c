"""Writes a fusion model as an ONNX graph; `fusion.inference.onnx` computes it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fusion.inference.onnx import fusion_ports
from fusion.model.dialogue import Turns
from fusion.model.ensemble import Fusion
from pipeline.onnx.write import trace_graph
from pipeline.system.files import write_whole

_ROWS = 4  # of the example that is traced


def write_fusion_graph(model: Fusion, path: Path) -> None:
    """Writes everything from features to logits: standardisation, the masks of absent modalities,
    the join, dialogue context. Temperatures and joint labels come after it (`decoding.py`).

    The model is on the CPU.

    Raises:
        UsageError: it cannot be traced, or a package of the extra `export` is missing.
        StorageError: it cannot be written.
    """
    inputs, outputs = fusion_ports(model.dims)
    kinds = {"float32": torch.float32, "bool": torch.bool, "int64": torch.int64}
    examples = {
        port.name: torch.zeros(_ROWS, *map(int, port.shape[1:]), dtype=kinds[port.kind])  # type: ignore[arg-type]
        for port in inputs
    }
    content = trace_graph(
        _Logits(model),
        examples,
        lengths={port.name: {0: "rows"} for port in inputs},
        outputs=[port.name for port in outputs],
    )
    write_whole(path, content)


class _Logits(nn.Module):
    """The model with plain tensors as arguments: one per modality, `present`, and where the rows
    stand in their dialogues if it looks at that."""

    def __init__(self, model: Fusion) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        names = self.model.dims.names
        features = dict(zip(names, tensors, strict=False))
        present, *turns = tensors[len(names) :]
        output = self.model(features, present, Turns(*turns) if turns else None)
        return output.emotion_logits, output.sentiment_logits
