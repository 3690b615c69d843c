"""Reads an ONNX file as far as it must be known before a runtime may open it.

The package `onnx` would read it too, but it weighs more than the runtime itself, and a serving
environment has no other use for it. The format is Protocol Buffers: a message is a row of fields,
each a number, a kind and a value. The numbers of the fields are those of onnx.proto, which never
change (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
# numbers of onnx.proto's fields
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 8, 20, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALISER, _GRAPH_SPARSE = 1, 5, 15
_NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS = 5, 10
# Graphs in nodes, and kinds of values that no graph of ours has.
_ATTRIBUTE_OTHERS = frozenset((6, 11, 14, 15, 22, 23))
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_DOUBLES = 1, 2, 4, 10
_TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 9, 13, 14
_FLOAT, _DOUBLE = 1, 11
# float32, uint8, int8, int32, int64, bool, double
_TYPES = frozenset((_FLOAT, 2, 3, 6, 7, 9, _DOUBLE))

DOMAINS = frozenset(("", "ai.onnx"))
# What graphs of ours are made of. All of it only computes: there is no loop and no branch, nothing
# random, and nothing that reads a file.
OPERATORS = frozenset(
    # arithmetic
    "Abs Add Cast Ceil Clip Div Erf Exp Expand Floor Gelu IsNaN Log Max Min Mod Mul Neg Pow "
    "Reciprocal Relu Round Sigmoid Sign Softmax Softplus Sqrt Sub Tanh "
    # comparison
    "And Equal Greater GreaterOrEqual Less LessOrEqual Not Or Where "
    # shape and order
    "Concat Constant ConstantOfShape CumSum Flatten Gather GatherElements GatherND Identity Pad "
    "Range Reshape Shape Size Slice Split Squeeze Tile TopK Transpose Unsqueeze "
    # layers
    "AveragePool BatchNormalization Conv Gemm GlobalAveragePool InstanceNormalization "
    "LayerNormalization MatMul MaxPool "
    "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum RMSNormalization "
    # 8 bits
    "ConvInteger DequantizeLinear DynamicQuantizeLinear MatMulInteger QLinearConv QLinearMatMul "
    "QuantizeLinear".split()
)


class Refused(ValueError):
    """The file is not an ONNX graph that may be opened; the message says why."""


@dataclass(frozen=True)
class Field:
    """value: the bytes of a field that has some, else its number"""

    number: int
    value: memoryview | int

    @property
    def content(self) -> memoryview:
        if isinstance(self.value, int):
            raise Refused("damaged: a number where a message should be")
        return self.value

    @property
    def text(self) -> str:
        try:
            return bytes(self.content).decode()
        except UnicodeDecodeError as error:
            raise Refused("damaged: a name that is no text") from error


def check_graph(content: bytes) -> int:
    """Reads every operator and every weight of an ONNX file; the version of its operators.

    Raises Refused where the file could reach beyond itself (weights in other files, operators of
    other libraries), could compute for ever (loops), or holds weights that are not finite.
    """
    graphs, opsets = [], []
    for field in _fields(memoryview(content)):
        if field.number == _MODEL_GRAPH:
            graphs.append(field.content)
        elif field.number == _MODEL_OPSETS:
            opsets.append(_read_opset(field.content))
        elif field.number in (_MODEL_TRAINING, _MODEL_FUNCTIONS):
            raise Refused("it has functions or a training of its own")
    if len(graphs) != 1 or len(opsets) != 1:
        raise Refused(
            f"it has {len(graphs)} graphs and {len(opsets)} sets of operators, not one of each"
        )
    for field in _fields(graphs[0]):
        if field.number == _GRAPH_NODE:
            _check_node(field.content)
        elif field.number == _GRAPH_INITIALISER:
            _check_tensor(field.content)
        elif field.number == _GRAPH_SPARSE:
            raise Refused("it has sparse weights")
    return opsets[0]


def _read_opset(content: memoryview) -> int:
    domain, version = "", 0
    for field in _fields(content):
        if field.number == _OPSET_DOMAIN:
            domain = field.text
        elif field.number == _OPSET_VERSION and isinstance(field.value, int):
            version = field.value
    _check_domain(domain)
    return version


def _check_node(content: memoryview) -> None:
    operator, domain = "", ""
    for field in _fields(content):
        if field.number == _NODE_TYPE:
            operator = field.text
        elif field.number == _NODE_DOMAIN:
            domain = field.text
        elif field.number == _NODE_ATTRIBUTE:
            _check_attribute(field.content)
    _check_domain(domain)
    if operator not in OPERATORS:
        raise Refused(f"it has the operator {operator[:80]!r}, which no graph of ours has")


def _check_domain(domain: str) -> None:
    if domain not in DOMAINS:
        raise Refused(f"it has operators of {domain[:80]!r}; only those of ONNX itself are run")


def _check_attribute(content: memoryview) -> None:
    for field in _fields(content):
        if field.number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _check_tensor(field.content)
        elif field.number in _ATTRIBUTE_OTHERS:
            raise Refused("it has a graph within an operator, or sparse values")


def _check_tensor(content: memoryview) -> None:
    kind, sizes, values = 0, [], []
    for field in _fields(content):
        if field.number == _TENSOR_EXTERNAL or (field.number == _TENSOR_LOCATION and field.value):
            raise Refused("it has weights in another file")
        if field.number == _TENSOR_TYPE and isinstance(field.value, int):
            kind = field.value
        elif field.number == _TENSOR_DIMS:
            sizes.append(field.value)
        elif field.number in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES):
            values.append(field)
    if kind not in _TYPES:
        raise Refused(f"it has weights of type {kind}, which no graph of ours has")
    if kind in (_FLOAT, _DOUBLE):
        _check_finite(kind, values)


def _check_finite(kind: int, values: Sequence[Field]) -> None:
    """A single infinity is a mask's; NaN never means anything."""
    for field in values:
        if isinstance(field.value, int):
            raise Refused("damaged: numbers that are not packed")
        try:
            numbers = np.frombuffer(field.value, "<f4" if kind == _FLOAT else "<f8")
        except ValueError as error:
            raise Refused("damaged: half a number") from error
        lost = np.isnan(numbers) if len(numbers) == 1 else ~np.isfinite(numbers)
        if lost.any():
            raise Refused("it has weights that are not finite")


def _fields(message: memoryview) -> Iterator[Field]:
    """Of one message, in the order in which they stand."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield Field(number, value)
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in (_FIXED_32, _FIXED_64):
            size = 4 if kind == _FIXED_32 else 8
        else:
            raise Refused("not an ONNX file, or a damaged one")
        if at + size > len(message):
            raise Refused("not an ONNX file, or a damaged one: it ends in the middle of a value")
        yield Field(number, message[at : at + size])
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that stands there, and where the next value begins."""
    value = 0
    for shift in range(0, 70, 7):  # 64 bits take ten bytes
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Refused("not an ONNX file, or a damaged one: a number that does not end")
