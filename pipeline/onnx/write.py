"""Writes encoders as ONNX graphs. Needs PyTorch and the packages of the extra `export`."""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.encode import Encoders
from pipeline.encoders.encoder import AnyEncoder, HasGraph, StandsForSeveral
from pipeline.errors import UsageError
from pipeline.onnx.encode import OnnxEncoder, check_self_test
from pipeline.onnx.graph import MOST_BYTES, OPSET
from pipeline.onnx.index import (
    GRAPH,
    EncoderGraph,
    GraphPart,
    JoinedGraphs,
    OnnxIndex,
    SelfTest,
    part_folder,
)
from pipeline.onnx.reading import READINGS, MakesUpItems
from pipeline.onnx.wire import Refused, check_graph
from pipeline.recipe import DecodeConfig
from pipeline.schema import Modality
from pipeline.system.extras import needs_extra
from pipeline.system.files import write_whole

# Of the largest value: what two orders of adding float32 numbers may differ by, with room.
FLOAT_TOLERANCE = 1e-3


def write_encoder_graphs(encoders: Encoders, folder: Path) -> None:
    """Writes a graph of every encoder into `folder`, and `onnx.json` last.

    The encoders are on the CPU and in float32. Each graph is run once and compared with PyTorch.

    Raises:
        UsageError: an encoder that cannot be written, or a package that is missing.
        MismatchError: a graph that does not compute what PyTorch computes.
        StorageError: it cannot be written.
    """
    written = {
        modality: _write_encoders(modality, encoder, encoders.decode, folder)
        for modality, encoder in encoders.items()
    }
    OnnxIndex(encoders=written).write(folder)


def _write_encoders(
    modality: Modality, encoder: AnyEncoder, decode: DecodeConfig | None, folder: Path
) -> EncoderGraph | JoinedGraphs:
    if not isinstance(encoder, StandsForSeveral):
        return _write_encoder(modality, encoder, decode, folder / modality)
    parts = [
        GraphPart(
            name=part.name,
            view=part.view,
            graph=_write_encoder(
                modality, part.encoder, part.decode, folder / part_folder(modality, place)
            ),
        )
        for place, part in enumerate(encoder.as_seen())
    ]
    return JoinedGraphs(parts=tuple(parts))


def _write_encoder(
    modality: Modality, encoder: AnyEncoder, decode: DecodeConfig | None, folder: Path
) -> EncoderGraph:
    if not isinstance(encoder, HasGraph):
        raise UsageError(
            f"the {modality} encoder ({type(encoder).__name__}) cannot be written as an ONNX graph"
        )
    source = encoder.graph_source(decode)
    files = {name: content.encode() for name, content in source.files.items()}
    if source.net is not None:
        files[GRAPH] = trace_graph(
            source.net, source.inputs, lengths=source.lengths, outputs=source.outputs
        )
    for name, content in files.items():
        write_whole(folder / name, content)
    reading = READINGS[source.reading["kind"]].read(source.reading, files)
    items = (
        reading.test_items()
        if isinstance(reading, MakesUpItems)
        else encoder.preparation.prepare(reading.test_clips())
    )
    with torch.inference_mode():
        expected = encoder(encoder.preparation.collate(items)).numpy()
    described = EncoderGraph(
        reading=source.reading,
        layers=expected.shape[1],
        dim=expected.shape[2],
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        quantisation="none",
        self_test=SelfTest(expected=expected, tolerance=FLOAT_TOLERANCE),
    )
    check_self_test(folder, OnnxEncoder.load(folder, described, threads=None))
    return described


def trace_graph(
    net: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    lengths: Mapping[str, Mapping[int, str]],
    outputs: Sequence[str],
) -> bytes:
    """The network as an ONNX file: one file, with every weight in it. Arguments as in
    `GraphSource`.

    Raises UsageError where the network cannot be traced, is not in float32 on the CPU, or is too
    large, or where a package of the extra `export` is missing.
    """
    with needs_extra("export"):
        import onnx  # noqa: F401 - the exporter imports it by itself, and says less
        import onnxscript  # noqa: F401
    _check_float32_on_cpu(net)
    names = sorted({name for axes in lengths.values() for name in axes.values()})
    dims = {name: torch.export.Dim(name) for name in names}
    shapes = tuple(
        {axis: dims[length] for axis, length in lengths.get(name, {}).items()} for name in inputs
    )
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _ByPosition(net).eval(),
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_shapes=(shapes,),
                opset_version=OPSET,
                optimize=True,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise UsageError(f"this network cannot be written as an ONNX graph: {reason}") from error
    assert program is not None
    model = program.model_proto
    _strip(model)
    if model.ByteSize() > MOST_BYTES:
        raise UsageError("this encoder is larger than 2 GB and does not fit into one ONNX file")
    content: bytes = model.SerializeToString(deterministic=True)
    try:
        check_graph(content)
    except Refused as error:
        raise UsageError(f"this network cannot be written as an ONNX graph: {error}") from error
    return content


class _ByPosition(nn.Module):
    """Takes however many tensors the network takes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *tensors: Tensor) -> Any:
        return self.net(*tensors)


def _check_float32_on_cpu(net: nn.Module) -> None:
    for name, value in net.named_parameters():
        if value.dtype != torch.float32 or value.device.type != "cpu":
            kind = str(value.dtype).removeprefix("torch.")
            raise UsageError(
                f"only a network in float32 on the CPU is written as an ONNX graph; {name} is "
                f"{kind} on {value.device.type}"
            )


def _strip(model: Any) -> None:
    """Removes where in the source each operator comes from: paths of this machine among it."""
    model.ClearField("metadata_props")
    graph = model.graph
    for message in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
    graph.ClearField("value_info")


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own parts that will be removed, and logs what it does."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for log in logs:
            log.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
