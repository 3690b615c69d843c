"""A graph that was checked, ready to compute by ONNX Runtime."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheCorrupt, MismatchError, StorageError
from pipeline.onnx.silent import onnxruntime
from pipeline.onnx.wire import Refused, check_graph

OPSET = 20  # version of ONNX's operators: what PyTorch 2.11 writes best, and ONNX Runtime reads
MOST_BYTES = 2**31 - 1  # of one Protocol Buffers message

Kind = Literal["float32", "int64", "uint8", "bool"]
_KINDS: Mapping[Kind, tuple[str, Any]] = {
    "float32": ("tensor(float)", np.float32),
    "int64": ("tensor(int64)", np.int64),
    "uint8": ("tensor(uint8)", np.uint8),
    "bool": ("tensor(bool)", np.bool_),
}


@dataclass(frozen=True)
class Port:
    """An input or an output of a graph. shape: None where the length may be any."""

    name: str
    kind: Kind
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        lengths = ", ".join("any" if length is None else str(length) for length in self.shape)
        return f"{self.name} {self.kind} [{lengths}]"


class Computes(Protocol):
    """What a reading asks of a graph."""

    def run(self, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
        """feeds: each input by its name. Returns the outputs in their order."""


class NoGraph:
    """Of an encoder whose reading computes its features by itself."""

    def run(self, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
        raise ValueError("this encoder has no graph")


class Graph:
    """Computes on the CPU. One graph may be used by several threads at once."""

    def __init__(self, session: Any, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self._session = session
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        sha256: str | None,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        threads: int | None = None,
    ) -> "Graph":
        """
        sha256:  hex, of the file's bytes; None checks everything else
        inputs, outputs: what it must have, in this order
        threads: that one call computes with; None takes one per core

        Raises:
            CacheCorrupt: the file is missing, not the one that was written, or not a graph that
                may be opened.
            MismatchError: a graph of other inputs or outputs.
            StorageError: the file cannot be read.
        """
        content = read_checked(path, sha256)
        try:
            check_graph(content)
        except Refused as error:
            raise CacheCorrupt(f"{path}: refused: {error}; export again") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # Threads that wait awake take the cores of other graphs and programs, also for 25 ms of CPU
        # after every call; asleep, they made calls faster beside other work (LOG.md).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors; they are raised as well
        try:
            session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # what ONNX Runtime raises shares no base class
            raise CacheCorrupt(
                f"{path}: ONNX Runtime cannot open it ({_first_line(error)}); export again"
            ) from error
        _check_ports(path, "inputs", session.get_inputs(), inputs)
        _check_ports(path, "outputs", session.get_outputs(), outputs)
        return cls(session, inputs, outputs)

    def run(self, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
        """feeds: each input by its name. Returns the outputs in their order.

        Raises ValueError where an input is missing or of another type, or is not what the graph
        can compute with.
        """
        if feeds.keys() != {port.name for port in self.inputs}:
            raise ValueError(f"inputs are {', '.join(map(str, self.inputs))}, not {list(feeds)}")
        for port in self.inputs:
            if feeds[port.name].dtype != _KINDS[port.kind][1]:
                raise ValueError(f"{port} is wanted, not {feeds[port.name].dtype}")
        try:
            found: list[NDArray[Any]] = self._session.run(None, feeds)
        except Exception as error:  # what ONNX Runtime raises shares no base class
            raise ValueError(f"ONNX Runtime cannot compute it ({_first_line(error)})") from error
        return found


def read_checked(path: Path, sha256: str | None) -> bytes:
    """The file's bytes, once, so that what is checked is what is opened. Raises as `Graph.load`."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CacheCorrupt(f"{path}: refused: larger than 2 GB; export again")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CacheCorrupt(f"{path} is missing; export again") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise CacheCorrupt(
            f"{path}: not the file that was exported (its SHA-256 differs); export again, or "
            "restore it"
        )
    return content


def _check_ports(path: Path, what: str, found: Sequence[Any], wanted: Sequence[Port]) -> None:
    there = [f"{each.name} {each.type} {_shape_of(each)}" for each in found]
    expected = [f"{port.name} {_KINDS[port.kind][0]} {list(port.shape)}" for port in wanted]
    if there != expected:
        told = ", ".join(f"{each.name} {each.type} {each.shape}" for each in found)
        raise MismatchError(
            f"{path}: its {what} are {told[:300]}; wanted are {', '.join(map(str, wanted))}"
        )


def _shape_of(found: Any) -> list[int | None]:
    """A length that may be any has a name, or none."""
    return [length if isinstance(length, int) else None for length in found.shape]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
