"""8-bit graphs: a quarter of the bytes, and faster. Needs the packages of the extra `export`.

    transformers   weights of matrix products: 8 bits with a scale per column; what meets them is
                   scaled as it comes (dynamic). Tables of embeddings: 8 bits with a scale per row.
    convolutions   weights and what meets them: 8 bits, with ranges from calibration clips (static)
    float layers   those that lose too much so: only what is stored has 8 bits, with a scale per
                   output; the product is computed in float, as fast as in a float graph

No sum may leave its register: processors without VNNI add two products of unsigned and signed
8-bit numbers in 16 bits and cut off what does not fit, without a word. Weights of matrix products
have 7 bits for that reason, and those of convolutions are unsigned, as what meets them.
"""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.encoders.side_by_side import with_view
from pipeline.errors import InputError, StorageError, UsageError
from pipeline.onnx.encode import OnnxEncoder, check_self_test
from pipeline.onnx.graph import Computes
from pipeline.onnx.index import GRAPH, EncoderGraph, OnnxIndex
from pipeline.onnx.reading import Floats
from pipeline.onnx.wire import check_graph
from pipeline.recipe import DecodeConfig, FrameView
from pipeline.schema import DecodedClip
from pipeline.system.extras import needs_extra
from pipeline.system.files import write_whole

# Smaller graphs stay in float: there is nothing to gain (the spectrogram's is 1.5 MB).
LEAST_BYTES = 4 * 2**20
# Of tables of embeddings, in numbers; a smaller one is beside the point.
_LEAST_TABLE = 100_000
# Of the largest value: what 8 bits may be off in the self-test. Ordinary rounding is at 2 to 8 %,
# sums that were cut off are beyond 20 %.
INT8_TOLERANCE = 0.15

Feeds = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How much of an encoder's error one layer makes when it alone computes in 8 bits.

    node:  its encoder's folder and its name in the graph ("text:node_linear"), as `float_layers`
        takes it
    error: root mean square of the difference in the features, as a share of theirs
    bytes: of its weights in float
    """

    node: str
    error: float
    bytes: int


def quantise_graphs(
    folder: Path,
    out: Path,
    calibration: Sequence[DecodedClip],
    *,
    decode: DecodeConfig | None,
    float_layers: Collection[str] = (),
) -> None:
    """Writes the graphs of `folder` with 8-bit weights into `out`, `onnx.json` last.

    calibration: clips like those that will be encoded; convolutions take their ranges from them
    decode: how they were decoded
    float_layers: names of nodes (`rank_layers` gives them) that compute in float

    Raises:
        UsageError: a name that no graph has, or a package is missing.
        InputError: no calibration clip has what an encoder reads.
        MismatchError: an encoder whose 8-bit graph is too far from its float one on this machine.
        CacheCorrupt, StorageError: as `OnnxEncoders.load`; `out` cannot be written.
    """
    index = OnnxIndex.read(folder)
    opened = {place: _open(folder, place, index, decode) for place, _ in index.graphs()}
    contents = {place: each.content for place, each in opened.items()}
    _check_names(contents, float_layers)
    graphs: dict[str, EncoderGraph] = {}
    for place, each in opened.items():
        content, described = each.content, each.encoder.described
        if len(content) >= LEAST_BYTES:
            feeds = _record(each, calibration)
            if not feeds:
                raise InputError(f"no calibration clip has {place}, which its encoder needs")
            prefix = f"{place}:"
            own = [name.removeprefix(prefix) for name in float_layers if name.startswith(prefix)]
            content = quantise_graph(content, feeds, float_layers=own)
            digest = hashlib.sha256(content).hexdigest()
            described = replace(
                described,
                files={**described.files, GRAPH: digest},
                quantisation="int8",
                self_test=replace(described.self_test, tolerance=INT8_TOLERANCE),
            )
        _write(folder / place, out / place, described, content)
        check_self_test(out / place, OnnxEncoder.load(out / place, described, threads=None))
        graphs[place] = described
    index.with_graphs(graphs).write(out)


def rank_layers(
    folder: Path, place: str, calibration: Sequence[DecodedClip], *, decode: DecodeConfig | None
) -> list[LayerError]:
    """The layers of an encoder that `quantise_graphs` lets compute in 8 bits, the worst first: if a
    gate refuses the whole, those should compute in float first. Takes one quantisation per layer.

    place: its folder within `folder`, as `OnnxIndex.graphs` gives it

    Raises as `quantise_graphs`.
    """
    opened = _open(folder, place, OnnxIndex.read(folder), decode)
    content, described = opened.content, opened.encoder.described
    feeds = _record(opened, calibration)
    if not feeds:
        raise InputError(f"no calibration clip has {place}, which its encoder needs")
    items = opened.items(calibration)
    sizes = _layer_bytes(content)
    ranked = []
    with tempfile.TemporaryDirectory() as scratch:

        def load(graph: bytes) -> OnnxEncoder:
            (Path(scratch) / GRAPH).write_bytes(graph)
            files = {**described.files, GRAPH: hashlib.sha256(graph).hexdigest()}
            for name in files.keys() - {GRAPH}:
                shutil.copyfile(folder / place / name, Path(scratch) / name)
            return OnnxEncoder.load(Path(scratch), replace(described, files=files), threads=None)

        stored = load(quantise_graph(content, feeds, float_layers=sizes))
        wanted = stored.encode(items)
        for node, size in sizes.items():
            others = sizes.keys() - {node}
            one = quantise_graph(content, feeds, float_layers=others)
            alone = load(one)
            ranked.append(
                LayerError(
                    node=f"{place}:{node}",
                    error=_difference(alone.encode(items), wanted),
                    bytes=size,
                )
            )
    return sorted(ranked, key=lambda layer: layer.error, reverse=True)


def quantise_graph(
    content: bytes,
    feeds: Sequence[Feeds],
    *,
    float_layers: Collection[str] = (),
    unsigned: bool = True,
) -> bytes:
    """One graph with 8-bit weights.

    feeds:    inputs like those that it will have
    float_layers: nodes that compute in float, from weights that are stored in 8 bits
    unsigned: False gives convolutions signed weights, which some processors add up wrongly

    Raises UsageError where a package of the extra `export` is missing.
    """
    with needs_extra("export"), _quiet():
        import onnx
        from onnxruntime.quantization import (
            QuantFormat,
            QuantType,
            quantize_dynamic,
            quantize_static,
        )

        with tempfile.TemporaryDirectory() as scratch:
            source, target = Path(scratch) / "float.onnx", Path(scratch) / "int8.onnx"
            source.write_bytes(content)
            excluded = sorted(float_layers)
            if _has_other(content, {"Conv"}, excluded):
                quantize_static(
                    source,
                    target,
                    _reader(feeds),
                    quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=["Conv"],
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QUInt8 if unsigned else QuantType.QInt8,
                    nodes_to_exclude=excluded,
                    extra_options={"WeightSymmetric": True},
                )
                source.write_bytes(target.read_bytes())
            if _has_other(source.read_bytes(), {"MatMul", "Gemm"}, excluded):
                quantize_dynamic(
                    source,
                    target,
                    op_types_to_quantize=["MatMul", "Gemm"],
                    per_channel=True,
                    reduce_range=True,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=excluded,
                )
                source.write_bytes(target.read_bytes())
            model = onnx.load_from_string(source.read_bytes())
    _store_in_8_bits(model, float_layers)
    _quantise_tables(model)
    model.graph.ClearField("value_info")
    quantised: bytes = model.SerializeToString(deterministic=True)
    check_graph(quantised)
    return quantised


def _store_in_8_bits(model: Any, nodes: Collection[str]) -> None:
    """Weights of these nodes: 8-bit numbers with a scale per output, which the runtime multiplies
    once, when it loads the graph."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    tensors = {each.name: each for each in graph.initializer if each.data_type == 1}
    uses = [name for node in graph.node for name in node.input]
    for node in [each for each in graph.node if each.name in nodes]:
        weight = node.input[1]
        if uses.count(weight) > 1:  # a weight that is shared stays as it is
            continue
        values = numpy_helper.to_array(tensors[weight])
        outputs = _axis_of_outputs(node, values.ndim)
        others = tuple(axis for axis in range(values.ndim) if axis != outputs)
        rounded, scale = _round_to_8_bits(values, others)
        graph.initializer.remove(tensors[weight])
        graph.initializer.append(numpy_helper.from_array(rounded, f"{weight}_8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{weight}_scale"))
        at = list(graph.node).index(node)
        cast = helper.make_node(
            "Cast", [f"{weight}_8"], [f"{weight}_cast"], f"{node.name}_cast", to=TensorProto.FLOAT
        )
        multiply = helper.make_node(
            "Mul", [f"{weight}_cast", f"{weight}_scale"], [weight], f"{node.name}_mul"
        )
        graph.node.insert(at, cast)
        graph.node.insert(at + 1, multiply)


def _axis_of_outputs(node: Any, num_axes: int) -> int:
    """Of its weight. Of a product of many matrices each column has one scale in all of them."""
    if node.op_type == "Conv":
        return 0
    is_transposed = any(each.name == "transB" and each.i for each in node.attribute)
    return 0 if is_transposed else num_axes - 1


def _round_to_8_bits(
    values: NDArray[Any], axes: tuple[int, ...]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The numbers, and a scale for each that shares those axes; their product is near `values`."""
    scale = np.maximum(np.abs(values).max(axis=axes, keepdims=True), 1e-12) / 127
    rounded = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
    return rounded, scale.astype(np.float32)


def _quantise_tables(model: Any) -> None:
    """Rows of a table are looked up in 8 bits and multiplied by their scale."""
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    for node in _tables(graph):
        table, out = node.input[0], node.output[0]
        tensor = next(each for each in graph.initializer if each.name == table)
        rounded, scale = _round_to_8_bits(numpy_helper.to_array(tensor), (1,))  # [rows, width]
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(rounded, f"{table}_8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{table}_scale"))
        at = list(graph.node).index(node)
        looked_up = [
            helper.make_node("Gather", [f"{table}_8", node.input[1]], [f"{out}_8"], node.name),
            helper.make_node(
                "Gather", [f"{table}_scale", node.input[1]], [f"{out}_scale"], f"{node.name}_scale"
            ),
            helper.make_node(
                "Cast", [f"{out}_8"], [f"{out}_cast"], f"{node.name}_cast", to=TensorProto.FLOAT
            ),
            helper.make_node("Mul", [f"{out}_cast", f"{out}_scale"], [out], f"{node.name}_mul"),
        ]
        graph.node.remove(node)
        for position, each in enumerate(looked_up, at):
            graph.node.insert(position, each)


def _tables(graph: Any) -> list[Any]:
    """Nodes that look rows up in a table of their own, which no other node uses."""
    sizes = {each.name: list(each.dims) for each in graph.initializer if each.data_type == 1}
    uses = [name for node in graph.node for name in node.input]
    return [
        node
        for node in graph.node
        if node.op_type == "Gather"
        and len(size := sizes.get(node.input[0], [])) == 2
        and np.prod(size) >= _LEAST_TABLE
        and uses.count(node.input[0]) == 1
        and all(attribute.i == 0 for attribute in node.attribute if attribute.name == "axis")
    ]


def _layer_bytes(content: bytes) -> dict[str, int]:
    """Names of the nodes that would compute in 8 bits, and what their weights take in float."""
    with needs_extra("export"):
        import onnx
    graph = onnx.load_from_string(content).graph
    sizes = {
        each.name: 4 * int(np.prod(each.dims)) for each in graph.initializer if each.data_type == 1
    }
    layers = [
        node
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm") and node.input[1] in sizes
    ]
    return {node.name: sizes[node.input[1]] for node in layers}


def _check_names(contents: Mapping[str, bytes], float_layers: Collection[str]) -> None:
    known = {
        f"{place}:{node}"
        for place, content in contents.items()
        if content
        for node in _layer_bytes(content)
    }
    odd = sorted(set(float_layers) - known)
    if odd:
        raise UsageError(f"float_layers: no layer is named {', '.join(odd)[:200]}")


def _has_other(content: bytes, operators: Collection[str], excluded: Collection[str]) -> bool:
    """Whether a graph has a node with one of these operators that is not excluded."""
    import onnx

    nodes = onnx.load_from_string(content).graph.node
    return any(node.op_type in operators and node.name not in excluded for node in nodes)


def _reader(feeds: Sequence[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(feeds)

        def get_next(self) -> Feeds | None:
            return next(self.left, None)

    return Reader()


class _Recorder:
    """Notes what a reading feeds to a graph."""

    def __init__(self, graph: Computes) -> None:
        self.graph = graph
        self.feeds: list[Feeds] = []

    def run(self, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
        self.feeds.append(feeds)
        return self.graph.run(**feeds)


@dataclass(frozen=True)
class _Opened:
    """An encoder and the bytes of its graph, none where it has none.

    view: of the clips' frames that it wants, if it is one of several; decode: of the clips
    """

    encoder: OnnxEncoder
    content: bytes
    view: FrameView | None
    decode: DecodeConfig | None

    def items(self, clips: Sequence[DecodedClip]) -> list[Any]:
        """What it reads of each clip, of those that have it."""
        seen = [with_view(clip, self.decode, self.view) for clip in clips]
        return [item for item in self.encoder.reading.prepare(seen) if item is not None]


def _open(folder: Path, place: str, index: OnnxIndex, decode: DecodeConfig | None) -> _Opened:
    described, view = index.find(place)
    encoder = OnnxEncoder.load(folder / place, described, threads=None)
    content = (folder / place / GRAPH).read_bytes() if GRAPH in described.files else b""
    return _Opened(encoder, content, view, decode)


def _record(opened: _Opened, clips: Sequence[DecodedClip]) -> list[Feeds]:
    """The inputs that the graph gets for these clips, one clip at a time."""
    recorder = _Recorder(opened.encoder.graph)
    for item in opened.items(clips):
        opened.encoder.reading.encode(recorder, [item])
    return recorder.feeds


def _difference(found: Floats, wanted: Floats) -> float:
    size = float(np.sqrt(np.square(wanted.astype(np.float64)).mean()))
    return float(np.sqrt(np.square(found - wanted).astype(np.float64).mean())) / max(size, 1e-12)


def _write(source: Path, out: Path, described: EncoderGraph, content: bytes) -> None:
    if GRAPH in described.files:
        write_whole(out / GRAPH, content)
    for name in described.files.keys() - {GRAPH}:
        try:
            write_whole(out / name, (source / name).read_bytes())
        except OSError as error:
            raise StorageError(f"cannot read {source / name}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The library advises on the root logger what was done already."""
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
