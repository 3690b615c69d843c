"""8-bit graphs: near the float ones, and sums that leave their register are found."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.prosody import FEATURES
from pipeline.errors import InputError, MismatchError, UsageError
from pipeline.onnx.encode import OnnxEncoders
from pipeline.onnx.graph import Graph, NoGraph, Port
from pipeline.onnx.index import EncoderGraph, GraphPart, JoinedGraphs, OnnxIndex, SelfTest
from pipeline.onnx.quantise import (
    INT8_TOLERANCE,
    _layer_bytes,
    quantise_graph,
    quantise_graphs,
    rank_layers,
)
from pipeline.onnx.reading import FrameReading, ProsodyReading
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipKey, DecodedClip, Modality, Utterance
from tests.pipeline.onnx.conftest import DECODE

onnx = pytest.importorskip("onnx", reason="pip install 'meld[export]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

pytestmark = pytest.mark.usefixtures("tiny_graphs_are_quantised")

TEXTS = ["Oh my God!", "Hi", "We were on a break, and everybody knows it!", "so it goes " * 90]
CLIPS = [
    DecodedClip(utterance=Utterance(key=ClipKey("dev", 0, row), text=text))
    for row, text in enumerate(TEXTS)
]


def join_graphs(graphs: Path, folder: Path) -> None:
    """The text encoder twice, and the spectrogram's with prosody, as they would be written."""
    index = OnnxIndex.read(graphs)
    text, spectrogram = index.encoders["text"], index.encoders["audio"]
    assert isinstance(text, EncoderGraph)
    assert isinstance(spectrogram, EncoderGraph)
    settings = {"kind": "prosody", "min_samples": 400, "sample_rate_hz": DECODE.sample_rate_hz}
    reading = ProsodyReading.of({**settings, "features": list(FEATURES)}, {})
    measured = reading.encode(NoGraph(), reading.prepare(reading.test_clips()))
    prosody = EncoderGraph(
        reading={**settings, "features": list(FEATURES)},
        layers=1,
        dim=len(FEATURES),
        files={},
        quantisation="none",
        self_test=SelfTest(expected=measured, tolerance=1e-3),
    )
    for place in ("text/0", "text/1", "audio/0"):
        shutil.copytree(graphs / place.partition("/")[0], folder / place)
    joined: dict[Modality, JoinedGraphs] = {
        "text": JoinedGraphs(
            parts=tuple(GraphPart(name=name, view=None, graph=text) for name in ("one", "other"))
        ),
        "audio": JoinedGraphs(
            parts=(
                GraphPart(name="spectrogram", view=None, graph=spectrogram),
                GraphPart(name="prosody", view=None, graph=prosody),
            )
        ),
    }
    OnnxIndex(encoders=joined).write(folder)


@pytest.mark.heavy
def test_of_several_encoders_each_graph_is_made_small_and_its_layers_are_its_own(
    graphs: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "float", tmp_path / "int8"
    join_graphs(graphs, whole)
    layers = _layer_bytes((graphs / "text/model.onnx").read_bytes())
    kept = f"text/1:{next(iter(layers))}"
    sound = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32)
    clips = [replace(each, waveform=sound) for each in CLIPS]
    quantise_graphs(whole, out, clips, decode=DECODE, float_layers=[kept])
    one, other = (out / place / "model.onnx" for place in ("text/0", "text/1"))
    assert one.read_bytes() != other.read_bytes()
    assert not (out / "audio/1").exists()
    kinds = {place: each.quantisation for place, each in OnnxIndex.read(out).graphs()}
    assert kinds["text/0"] == kinds["text/1"] == "int8"
    assert kinds["audio/1"] == "none"
    small, large = (
        OnnxEncoders.load(folder, ("text", "audio"), decode=DECODE, threads=1).encode(clips)
        for folder in (out, whole)
    )
    for found, wanted in zip(small, large, strict=True):
        for name, values in wanted.raw.items():
            assert np.abs(found.raw[name] - values).max() < INT8_TOLERANCE * np.abs(values).max()


@pytest.mark.heavy
def test_a_text_encoder_in_8_bits_is_small_and_near(
    text_and_sound: Encoders, graphs: Path, tmp_path: Path
) -> None:
    quantise_graphs(graphs, tmp_path, CLIPS, decode=DECODE)
    small, large = (folder / "text/model.onnx" for folder in (tmp_path, graphs))
    assert small.stat().st_size < 0.32 * large.stat().st_size
    # The spectrogram's is small already.
    assert (tmp_path / "audio/model.onnx").read_bytes() == (
        graphs / "audio/model.onnx"
    ).read_bytes()
    ours = OnnxEncoders.load(tmp_path, ("text", "audio"), decode=DECODE, threads=1)
    assert ours.precision == {"text": "int8", "audio": "float32"}
    for one, other in zip(ours.encode(CLIPS), encode_clips(text_and_sound, CLIPS), strict=True):
        assert one.failures == other.failures
        difference = np.abs(one.raw["text"] - other.raw["text"]).max()
        assert 0 < difference < 0.05 * np.abs(other.raw["text"]).max()


@pytest.mark.heavy
def test_layers_that_compute_in_float_are_as_small_and_nearer(graphs: Path, tmp_path: Path) -> None:
    ranked = rank_layers(graphs, "text", CLIPS[:2], decode=DECODE)
    assert len(ranked) == 2 * 6  # query, key, value, out, up, down per layer
    assert [each.error for each in ranked] == sorted((each.error for each in ranked), reverse=True)
    assert min(each.error for each in ranked) > 0
    quantise_graphs(graphs, tmp_path / "all", CLIPS, decode=DECODE)
    nodes = [each.node for each in ranked]
    quantise_graphs(graphs, tmp_path / "stored", CLIPS, decode=DECODE, float_layers=nodes)
    wanted = OnnxEncoders.load(graphs, ("text",), decode=DECODE).encode(CLIPS)
    errors, sizes = {}, {}
    for name in ("all", "stored"):
        found = OnnxEncoders.load(tmp_path / name, ("text",), decode=DECODE).encode(CLIPS)
        pairs = zip(found, wanted, strict=True)
        errors[name] = np.mean([np.abs(a.raw["text"] - b.raw["text"]).mean() for a, b in pairs])
        sizes[name] = (tmp_path / name / "text/model.onnx").stat().st_size
    assert 0 < errors["stored"] < errors["all"]  # what is left is the table of words
    assert sizes["stored"] < 1.05 * sizes["all"]


@pytest.mark.parametrize("operator", ["Conv", "MatMul", "Gemm", "Gemm transposed"])
def test_stored_weights_are_within_half_a_step_of_their_output(operator: str) -> None:
    """The output of which all weights are a hundred times smaller keeps its own scale."""
    random = np.random.default_rng(2)
    outputs_first = operator in ("Conv", "Gemm transposed")
    values = random.uniform(-1, 1, (6, 4, 1, 1, 1) if operator == "Conv" else (6, 4))
    values[0] /= 100
    if not outputs_first:
        values = values.T
    values = np.ascontiguousarray(values, np.float32)
    attributes = {"transB": 1} if operator == "Gemm transposed" else {}
    shape = [1, 4, 1, 1, 1] if operator == "Conv" else [1, 4]
    node = helper.make_node(operator.split()[0], ["x", "w"], ["y"], name="layer", **attributes)
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6, *shape[2:]])],
        [numpy_helper.from_array(values, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    stored = quantise_graph(model.SerializeToString(), [], float_layers=["layer"])
    tensors = {
        each.name: numpy_helper.to_array(each)
        for each in onnx.load_from_string(stored).graph.initializer
    }
    assert tensors["w_8"].dtype == np.int8
    restored = tensors["w_8"].astype(np.float32) * tensors["w_scale"]
    step = np.abs(restored - values).max(axis=tuple(range(1, values.ndim)) if outputs_first else 0)
    assert step[0] < 0.51 * 0.01 / 127
    assert step.max() < 0.51 / 127


@pytest.mark.heavy
def test_an_unknown_layer_and_clips_without_the_modality_are_refused(
    graphs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="float_layers: no layer is named layer_7"):
        quantise_graphs(graphs, tmp_path, CLIPS, decode=DECODE, float_layers=["layer_7"])
    silent = [DecodedClip(utterance=Utterance(key=ClipKey("dev", 0, 0), text=""))]
    with pytest.raises(InputError, match="no calibration clip has text"):
        quantise_graphs(graphs, tmp_path, silent, decode=DECODE)


FRAMES = Port("x", "float32", (None, 8, 4, 8, 8))


def convolution() -> bytes:
    """3-D, with weights and inputs that add up: the largest sums are far beyond 16 bits."""
    random = np.random.default_rng(0)
    weights = random.uniform(0.9, 1, (8, 8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1] * 6)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["clips", 8, 4, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["clips", 8, 4, 8, 8])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model.SerializeToString()


def worst(content: bytes, path: Path, feed: np.ndarray, wanted: np.ndarray) -> float:
    path.write_bytes(content)
    output = Port("y", "float32", FRAMES.shape)
    [found] = Graph.load(path, sha256=None, inputs=[FRAMES], outputs=[output]).run(x=feed)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def _has_vnni() -> bool:
    path = Path("/proc/cpuinfo")
    return path.is_file() and "vnni" in path.read_text()


def test_unsigned_weights_of_a_convolution_are_exact_enough_on_every_processor(
    tmp_path: Path,
) -> None:
    feed = np.random.default_rng(1).uniform(0.9, 1, (1, 8, 4, 8, 8)).astype(np.float32)
    path = tmp_path / "model.onnx"
    path.write_bytes(convolution())
    output = Port("y", "float32", FRAMES.shape)
    [wanted] = Graph.load(path, sha256=None, inputs=[FRAMES], outputs=[output]).run(x=feed)
    feeds = [{"x": feed}]
    assert worst(quantise_graph(convolution(), feeds), path, feed, wanted) < 0.02
    if not _has_vnni():
        signed = quantise_graph(convolution(), feeds, unsigned=False)
        assert worst(signed, path, feed, wanted) > 0.2


def frames_encoder() -> bytes:
    """uint8 [clips, 4, 8, 8, 3] -> values from 0.9 to 1 -> `convolution` -> mean: [clips, 1, 8]"""
    random = np.random.default_rng(0)
    constants = {
        "tenth": np.float32(0.1 / 255),
        "most": np.float32(0.9),
        "w": random.uniform(0.9, 1, (8, 3, 3, 3, 3)).astype(np.float32),
        "axes": np.array([2, 3, 4]),
        "first": np.array([1]),
    }
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "tenth"], ["small"]),
        helper.make_node("Add", ["small", "most"], ["near"]),
        helper.make_node("Transpose", ["near"], ["pixels"], perm=[0, 4, 1, 2, 3]),
        helper.make_node("Conv", ["pixels", "w"], ["found"], name="conv", pads=[1] * 6),
        helper.make_node("ReduceMean", ["found", "axes"], ["mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "first"], ["features"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("frames", TensorProto.UINT8, ["clips", 4, 8, 8, 3])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["clips", 1, 8])],
        [numpy_helper.from_array(np.array(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    return model.SerializeToString()


SMALL = DecodeConfig(num_frames=4, frame_height=8, frame_width=8)


def write_frames_encoder(folder: Path, content: bytes, expected: np.ndarray) -> None:
    (folder / "video").mkdir(parents=True)
    (folder / "video/model.onnx").write_bytes(content)
    described = EncoderGraph(
        reading={"kind": "frames", "num_frames": 4, "height": 8, "width": 8, "batch_size": 8},
        layers=1,
        dim=8,
        files={"model.onnx": hashlib.sha256(content).hexdigest()},
        quantisation="int8",
        self_test=SelfTest(expected=expected, tolerance=INT8_TOLERANCE),
    )
    OnnxIndex(encoders={"video": described}).write(folder)


def test_signed_convolutions_whose_sums_leave_their_register_fail_the_self_test_at_load(
    tmp_path: Path,
) -> None:
    reading = FrameReading(num_frames=4, height=8, width=8, batch_size=8)
    inputs, outputs = reading.ports(1, 8)
    path = tmp_path / "float.onnx"
    path.write_bytes(frames_encoder())
    graph = Graph.load(path, sha256=None, inputs=inputs, outputs=outputs)
    items = [item for item in reading.prepare(reading.test_clips()) if item is not None]
    expected = reading.encode(graph, items)
    feeds = [{"frames": np.stack(items)}]

    write_frames_encoder(tmp_path / "good", quantise_graph(frames_encoder(), feeds), expected)
    OnnxEncoders.load(tmp_path / "good", ("video",), decode=SMALL)

    if _has_vnni():
        pytest.skip("this processor adds signed 8-bit products exactly")
    signed = quantise_graph(frames_encoder(), feeds, unsigned=False)
    write_frames_encoder(tmp_path / "signed", signed, expected)
    with pytest.raises(MismatchError, match=r"video: this machine .* the largest error is \d\d"):
        OnnxEncoders.load(tmp_path / "signed", ("video",), decode=SMALL)
