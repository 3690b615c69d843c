"""Whisper's encoder from a folder in CTranslate2's form, which faster-whisper reads too, and which
a package ships.

    model.bin: version, name and revision of the specification, number of variables, and of each
               its name, shape, type, size and values, little-endian
    config.json, preprocessor_config.json: say nothing of the network's shape

The library itself computes only the last layer, and not in PyTorch; the features are means of every
layer, and fine-tuning changes the weights. So they are read here, without it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MismatchError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import WhisperConfig

WEIGHTS = "model.bin"
HEAD_DIM = 64  # of every Whisper; the file does not say how many heads there are
_SPECIFICATION = "WhisperSpec"
_VERSIONS = range(4, 7)
# Types of values by CTranslate2's numbers for them. bfloat16 is read by its bits.
_FLOATS: Mapping[int, tuple[str, str]] = {
    0: ("float32", "<f4"),
    4: ("float16", "<f2"),
    5: ("bfloat16", "<u2"),
}
_MOST_VARIABLES = 10_000
_MOST_DIMENSIONS = 4
_ENCODER = "encoder/"
_LAYER = f"{_ENCODER}layer_{{}}/"


@dataclass(frozen=True, kw_only=True)
class Variable:
    """Where the values of a variable lie in the file.

    kind: CTranslate2's number for the type of the values
    offset, num_bytes: in bytes
    """

    shape: tuple[int, ...]
    kind: int
    offset: int
    num_bytes: int


def is_model(folder: Path) -> bool:
    """Whether the folder has weights in this form and none in the usual one."""
    return (folder / WEIGHTS).is_file() and not any(folder.glob("*.safetensors"))


def count_layers(folder: Path) -> int:
    """Layers of the encoder, without its embeddings.

    Raises:
        MismatchError: it is no Whisper in this form.
    """
    return _count_layers(_read_table(folder / WEIGHTS))


def read_config(folder: Path) -> "WhisperConfig":
    """The shape of the network, of which only the encoder is used.

    Raises:
        MismatchError: it is no Whisper in this form.
    """
    from transformers import WhisperConfig

    path = folder / WEIGHTS
    table = _read_table(path)
    try:
        width, mels, _ = table[f"{_ENCODER}conv1/weight"].shape
        inner, _ = table[f"{_LAYER.format(0)}ffn/linear_0/weight"].shape
    except (KeyError, ValueError) as error:
        raise MismatchError(f"{path}: has no encoder of Whisper ({error})") from error
    if width % HEAD_DIM:
        raise MismatchError(
            f"{path}: its encoder is {width} wide, which heads of {HEAD_DIM} do not share"
        )
    return WhisperConfig(
        d_model=width,
        num_mel_bins=mels,
        encoder_layers=_count_layers(table),
        encoder_attention_heads=width // HEAD_DIM,
        encoder_ffn_dim=inner,
    )


def read_encoder(folder: Path, config: "WhisperConfig") -> "dict[str, Tensor]":
    """The weights under the names that transformers has for them, in float32.

    config: what `read_config` says of the same folder

    Raises:
        MismatchError: a variable is missing, has another shape, or is not stored as floats.
    """
    import torch

    path = folder / WEIGHTS
    table = _read_table(path)
    weights: dict[str, Tensor] = {}

    def take(name: str, *shape: int) -> "Tensor":
        variable = table.get(_ENCODER + name)
        if variable is None or variable.shape != shape:
            found = "missing" if variable is None else f"of shape {list(variable.shape)}"
            raise MismatchError(f"{path}: {_ENCODER}{name} is {found}; wanted is {list(shape)}")
        return torch.from_numpy(_read_values(path, _ENCODER + name, variable))

    def take_linear(ours: str, theirs: str, *shape: int) -> None:
        weights[f"{ours}.weight"] = take(f"{theirs}/weight", *shape)
        weights[f"{ours}.bias"] = take(f"{theirs}/bias", shape[0])

    def take_norm(ours: str, theirs: str) -> None:
        weights[f"{ours}.weight"] = take(f"{theirs}/gamma", width)
        weights[f"{ours}.bias"] = take(f"{theirs}/beta", width)

    width, inner = config.d_model, config.encoder_ffn_dim
    take_linear("conv1", "conv1", width, config.num_mel_bins, 3)
    take_linear("conv2", "conv2", width, width, 3)
    take_norm("layer_norm", "layer_norm")
    for number in range(config.encoder_layers):
        ours, theirs = f"layers.{number}", f"layer_{number}"
        take_norm(f"{ours}.self_attn_layer_norm", f"{theirs}/self_attention/layer_norm")
        take_norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
        # Queries, keys and values lie above one another; keys have no bias in Whisper.
        fused = take(f"{theirs}/self_attention/linear_0/weight", 3 * width, width).chunk(3)
        biases = take(f"{theirs}/self_attention/linear_0/bias", 3 * width).chunk(3)
        for part, weight, bias in zip("qkv", fused, biases, strict=True):
            weights[f"{ours}.self_attn.{part}_proj.weight"] = weight
            if part != "k":
                weights[f"{ours}.self_attn.{part}_proj.bias"] = bias
        take_linear(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1", width, width)
        take_linear(f"{ours}.fc1", f"{theirs}/ffn/linear_0", inner, width)
        take_linear(f"{ours}.fc2", f"{theirs}/ffn/linear_1", width, inner)
    return weights


def _count_layers(table: Mapping[str, Variable]) -> int:
    number = 0
    while any(name.startswith(_LAYER.format(number)) for name in table):
        number += 1
    return number


def _read_table(path: Path) -> dict[str, Variable]:
    """What variables there are; their values are skipped. Raises MismatchError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            return _parse_table(file, size)
    except (OSError, ValueError, struct.error) as error:
        reason = "it ends too early" if isinstance(error, struct.error) else error
        raise MismatchError(f"{path}: no Whisper model in CTranslate2's form ({reason})") from error


def _parse_table(file: BinaryIO, size: int) -> dict[str, Variable]:
    """Raises ValueError, struct.error."""
    [version] = _unpack(file, "I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}; known are {_VERSIONS[0]} to {_VERSIONS[-1]}")
    name = _read_text(file)
    _unpack(file, "I")  # the specification's revision
    if name != _SPECIFICATION:
        raise ValueError(f"a {name[:40]!r}; wanted is {_SPECIFICATION}")
    [count] = _unpack(file, "I")
    if count > _MOST_VARIABLES:
        raise ValueError(f"{count} variables")
    table = {}
    for _ in range(count):
        name = _read_text(file)
        [dimensions] = _unpack(file, "B")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{name[:40]!r} has {dimensions} dimensions")
        shape = _unpack(file, f"{dimensions}I")
        kind, num_bytes = _unpack(file, "BI")
        offset = file.tell()
        if offset + num_bytes > size:
            raise ValueError("it ends too early")
        table[name] = Variable(shape=shape, kind=kind, offset=offset, num_bytes=num_bytes)
        file.seek(num_bytes, 1)
    return table


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    form = f"<{form}"
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _read_text(file: BinaryIO) -> str:
    """Its length counts the zero at its end."""
    [length] = _unpack(file, "H")
    return file.read(length).rstrip(b"\0").decode()


def _read_values(path: Path, name: str, variable: Variable) -> NDArray[np.float32]:
    """Raises MismatchError."""
    known = _FLOATS.get(variable.kind)
    if known is None:
        names = ", ".join(each for each, _ in _FLOATS.values())
        raise MismatchError(
            f"{path}: {name} is quantised to integers; convert the model anew with "
            f"--quantization float16 (read are {names})"
        )
    values = np.fromfile(
        path,
        known[1],
        count=variable.num_bytes // np.dtype(known[1]).itemsize,
        offset=variable.offset,
    )
    if values.size != np.prod(variable.shape, dtype=np.int64):
        raise MismatchError(f"{path}: {name} holds {values.size} values, not those of its shape")
    if known[0] == "bfloat16":  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    return values.reshape(variable.shape).astype(np.float32)
