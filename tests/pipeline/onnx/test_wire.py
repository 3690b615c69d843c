"""What may not be opened: planted with the package `onnx`, found without it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import CacheCorrupt, MismatchError
from pipeline.onnx.graph import Graph, Port
from pipeline.onnx.wire import Refused, check_graph

onnx = pytest.importorskip("onnx", reason="pip install 'meld[export]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

X = Port("x", "float32", (None, 2))
Y = Port("y", "float32", (None, 2))


def weight(values: Any = ((1.0, 2.0), (3.0, 4.0)), name: str = "w") -> Any:
    return numpy_helper.from_array(np.array(values, np.float32), name)


def make(
    nodes: Sequence[Any] | None = None,
    weights: Sequence[Any] | None = None,
    *,
    domain: str = "",
    name: str = "x",
) -> Any:
    """y = x @ w, and what a test does to it."""
    graph = helper.make_graph(
        nodes or [helper.make_node("MatMul", [name, "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        [weight()] if weights is None else weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, 20)])
    model.ir_version = 10
    return model


def external(location: str) -> Any:
    model = make()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model


def with_node(operator: str, domain: str = "", **attributes: Any) -> Any:
    node = helper.make_node(operator, ["x", "w"], ["y"], domain=domain, **attributes)
    return make([node])


def branching() -> Any:
    inner = helper.make_graph([], "inner", [], [])
    return make([helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)])


def changed(change: Callable[[Any], Any]) -> Any:
    model = make()
    change(model)
    return model


def constant(values: Any) -> Any:
    tensor = weight(values, "c")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return make(nodes, [])


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "weights in another file": (lambda: external("weights.bin"), "weights in another file"),
    "weights up the tree": (lambda: external("../../etc/passwd"), "weights in another file"),
    "a library's operators": (lambda: make(domain="evil"), "operators of 'evil'"),
    "a library's operator": (lambda: with_node("MatMul", "evil"), "operators of 'evil'"),
    "an operator of contrib": (lambda: with_node("Attention", "com.microsoft"), "com.microsoft"),
    "an unknown operator": (lambda: with_node("Exec"), "operator 'Exec'"),
    "a branch": (branching, "graph within an operator|operator 'If'"),
    "a graph in an attribute": (
        lambda: with_node("MatMul", body=helper.make_graph([], "g", [], [])),
        "graph within an operator",
    ),
    "functions": (
        lambda: changed(lambda model: model.functions.add(name="f")),
        "functions or a training",
    ),
    "sparse weights": (
        lambda: changed(lambda model: model.graph.sparse_initializer.add()),
        "sparse weights",
    ),
    "NaN": (lambda: make(weights=[weight(((np.nan, 0), (0, 0)))]), "not finite"),
    "infinity among weights": (lambda: make(weights=[weight(((np.inf, 0), (0, 0)))]), "not finite"),
    "NaN in a constant": (lambda: constant(((np.nan, 0.0), (0, 0))), "not finite"),
    "NaN in another field": (
        lambda: make(weights=[helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [np.nan] * 4)]),
        "not finite",
    ),
    "text as a weight": (
        lambda: make(weights=[helper.make_tensor("w", TensorProto.STRING, [1], [b"x"])]),
        "weights of type 8",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_graph_that_reaches_beyond_itself_is_refused(name: str, tmp_path: Path) -> None:
    build, message = HOSTILE[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(build().SerializeToString())
    with pytest.raises(CacheCorrupt, match=message) as caught:
        Graph.load(path, sha256=None, inputs=[X], outputs=[Y])
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_graph_of_ours_is_opened_and_a_masks_infinity_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    mask = numpy_helper.from_array(np.array(-np.inf, np.float32), "mask")
    path.write_bytes(make(weights=[weight(), mask]).SerializeToString())
    graph = Graph.load(path, sha256=None, inputs=[X], outputs=[Y], threads=1)
    [found] = graph.run(x=np.ones((3, 2), np.float32))
    assert found.tolist() == [[4.0, 6.0]] * 3
    with pytest.raises(ValueError, match=r"x float32 .* is wanted, not float64"):
        graph.run(x=np.ones((3, 2)))


def test_every_cut_and_much_noise_is_refused_and_never_crashes() -> None:
    content = make().SerializeToString()
    assert check_graph(content) == 20
    random = np.random.default_rng(0)
    cuts = [content[:end] for end in range(len(content))]
    assert all(map(refusal, cuts))
    for _ in range(300):
        damaged = bytearray(content)
        damaged[random.integers(len(content))] = random.integers(256)
        assert "\n" not in refusal(bytes(damaged))


def refusal(content: bytes) -> str:
    """Why it is refused; empty where it is not."""
    try:
        check_graph(content)
    except Refused as error:
        return str(error)
    return ""


def test_the_threads_of_a_graph_sleep_while_they_wait(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make().SerializeToString())
    graph = Graph.load(path, sha256=None, inputs=[X], outputs=[Y], threads=2)
    options = graph._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_other_inputs_and_what_no_runtime_opens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(make(name="z").SerializeToString())
    with pytest.raises(MismatchError, match=r"inputs are z .*; wanted are x float32 \[any, 2\]"):
        Graph.load(path, sha256=None, inputs=[X], outputs=[Y])
    path.write_bytes(make(weights=[]).SerializeToString())
    with pytest.raises(CacheCorrupt, match="ONNX Runtime cannot open it"):
        Graph.load(path, sha256=None, inputs=[X], outputs=[Y])
