"""`onnx.json`: what lies in a folder of graphs, and how each is read. Written last.

onnx.json
text/      model.onnx, tokenizer.json
video/     model.onnx                      one folder per modality, named after it
audio/     0/model.onnx, 1/model.onnx      of several encoders of one modality, one folder each
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheCorrupt, InputError, MismatchError, StorageError
from pipeline.onnx.graph import OPSET
from pipeline.onnx.reading import READINGS, take, take_side
from pipeline.recipe import FrameView
from pipeline.schema import MODALITIES, Modality
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED

FORMAT = "meld-onnx"
FORMAT_VERSION = 2
INDEX = "onnx.json"
GRAPH = "model.onnx"
MOST_INDEX_BYTES = 64 * 2**20
MOST_PARTS = 100

Quantisation = Literal["none", "int8"]


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What the graph must give for the clips that its reading makes up.

    expected:  float32 [clips, layers, dim], computed by PyTorch in float32
    tolerance: largest difference that is allowed, as a share of the largest expected value
    """

    expected: NDArray[np.float32]
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class EncoderGraph:
    """One encoder in the folder.

    reading:      {"kind": ..., ...}: what prepares its inputs
    files:        {name: SHA-256 (hex)}, of everything that lies in its folder
    quantisation: "int8" where weights are 8-bit integers
    """

    reading: Mapping[str, Any]
    layers: int
    dim: int
    files: Mapping[str, str]
    quantisation: Quantisation
    self_test: SelfTest


@dataclass(frozen=True, kw_only=True)
class GraphPart:
    """One of several encoders of a modality; view: of the clips' frames that it wants, if any"""

    name: str
    view: FrameView | None
    graph: EncoderGraph


@dataclass(frozen=True, kw_only=True)
class JoinedGraphs:
    """Several encoders of one modality, whose features are concatenated in this order."""

    parts: tuple[GraphPart, ...]


@dataclass(frozen=True, kw_only=True)
class OnnxIndex:
    encoders: Mapping[Modality, EncoderGraph | JoinedGraphs]

    def write(self, folder: Path) -> None:
        """Raises StorageError."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "opset": OPSET,
            "encoders": {name: _to_dict(each) for name, each in self.encoders.items()},
        }
        write_whole(folder / INDEX, json.dumps(content, indent=1).encode())

    def graphs(self) -> Iterator[tuple[str, EncoderGraph]]:
        """The folder of each single encoder, and what is in it."""
        for modality, encoder in self.encoders.items():
            if isinstance(encoder, JoinedGraphs):
                for number, part in enumerate(encoder.parts):
                    yield part_folder(modality, number), part.graph
            else:
                yield modality, encoder

    def find(self, place: str) -> tuple[EncoderGraph, FrameView | None]:
        """The encoder of a folder that `graphs` gives, and the view of frames that it wants, if it
        is one of several."""
        modality, _, part = place.partition("/")
        encoder = self.encoders[cast(Modality, modality)]
        if isinstance(encoder, EncoderGraph):
            return encoder, None
        found = encoder.parts[int(part)]
        return found.graph, found.view

    def with_graphs(self, graphs: Mapping[str, EncoderGraph]) -> "OnnxIndex":
        """The same with another description of each; graphs: by folder, as `graphs` gives them"""
        return OnnxIndex(
            encoders={
                modality: JoinedGraphs(
                    parts=tuple(
                        replace(part, graph=graphs[part_folder(modality, number)])
                        for number, part in enumerate(encoder.parts)
                    )
                )
                if isinstance(encoder, JoinedGraphs)
                else graphs[modality]
                for modality, encoder in self.encoders.items()
            }
        )

    @classmethod
    def read(cls, folder: Path) -> "OnnxIndex":
        """
        Raises:
            InputError: no folder of graphs.
            CacheCorrupt: a damaged one.
            MismatchError: another format or another version of it.
            StorageError: it cannot be read.
        """
        path = folder / INDEX
        try:
            if path.stat().st_size > MOST_INDEX_BYTES:
                raise CacheCorrupt(f"{path}: refused: larger than 64 MB; export again")
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise InputError(f"{folder}: holds no ONNX graphs (no {INDEX})") from error
        except (ValueError, RecursionError) as error:
            raise CacheCorrupt(f"{path}: not JSON ({error}); export again") from error
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        try:
            _check_format(path, content)
            found = take(content, "encoders", dict)
            if not found or not set(found) <= set(MODALITIES):
                raise ValueError(f"encoders of {', '.join(map(str, found)) or 'nothing'}")
            graphs = {name: _read_encoders(found[name]) for name in MODALITIES if name in found}
        except MALFORMED as error:
            raise CacheCorrupt(f"{path}: damaged ({error}); export again") from error
        return cls(encoders=graphs)


def part_folder(modality: Modality, number: int) -> str:
    """Of one of several encoders of a modality, within the folder of all."""
    return f"{modality}/{number}"


def _check_format(path: Path, content: Any) -> None:
    _check_keys(content, {"format", "format_version", "opset", "encoders"})
    for name, wanted in (("format", FORMAT), ("format_version", FORMAT_VERSION), ("opset", OPSET)):
        if content[name] != wanted:
            raise MismatchError(
                f"{path}: {name} is {content[name]!r:.80}, and this program reads {wanted!r}; "
                "export again"
            )


def _to_dict(encoder: EncoderGraph | JoinedGraphs) -> dict[str, Any]:
    if isinstance(encoder, JoinedGraphs):
        return {"parts": [_part_to_dict(part) for part in encoder.parts]}
    values = asdict(encoder)
    # Nine digits give every float32 back.
    values["self_test"]["expected"] = [
        [[float(f"{value:.9g}") for value in layer] for layer in clip]
        for clip in encoder.self_test.expected
    ]
    return values


def _part_to_dict(part: GraphPart) -> dict[str, Any]:
    view = None if part.view is None else asdict(part.view)
    return {"name": part.name, "view": view, "graph": _to_dict(part.graph)}


def _read_encoders(values: Any) -> EncoderGraph | JoinedGraphs:
    if not isinstance(values, dict) or "parts" not in values:
        return _read_encoder(values)
    _check_keys(values, {"parts"})
    parts = tuple(_read_part(part) for part in take(values, "parts", list))
    if not 2 <= len(parts) <= MOST_PARTS:
        raise ValueError(f"{len(parts)} parts")
    return JoinedGraphs(parts=parts)


def _read_part(values: Any) -> GraphPart:
    _check_keys(values, {"name", "view", "graph"})
    view = values["view"]
    if view is not None:
        _check_keys(view, {each.name for each in fields(FrameView)})
        view = FrameView(
            height=take_side(view, "height"),
            width=take_side(view, "width"),
            fit=take(view, "fit", str),
        )
    name = take(values, "name", str)
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise ValueError(f"{name!r:.80} is no name of an encoder")
    return GraphPart(name=name, view=view, graph=_read_encoder(values["graph"]))


def _read_encoder(values: Any) -> EncoderGraph:
    _check_keys(values, {each.name for each in fields(EncoderGraph)})
    reading, files = take(values, "reading", dict), take(values, "files", dict)
    kind = READINGS.get(take(reading, "kind", str))
    if kind is None:
        raise ValueError(f"the reading is {reading['kind']!r:.80}; known are {', '.join(READINGS)}")
    for name, digest in files.items():
        is_plain = name == Path(name).name and not name.startswith(".")
        if not is_plain or not isinstance(digest, str) or len(digest) != 64:
            raise ValueError(f"{name!r:.80} is no name of a file with its SHA-256")
    if values["quantisation"] not in get_args(Quantisation):
        raise ValueError(f"quantisation is {values['quantisation']!r:.80}")
    encoder = EncoderGraph(
        reading=reading,
        layers=take(values, "layers", int),
        dim=take(values, "dim", int),
        files=files,
        quantisation=values["quantisation"],
        self_test=_read_self_test(values["self_test"]),
    )
    if encoder.quantisation == "int8" and not kind.has_graph:
        raise ValueError("int8 of an encoder without a graph")
    if encoder.self_test.expected.shape[1:] != (encoder.layers, encoder.dim):
        raise ValueError(f"a self-test of shape {encoder.self_test.expected.shape}")
    return encoder


def _read_self_test(values: Any) -> SelfTest:
    _check_keys(values, {each.name for each in fields(SelfTest)})
    expected = np.array(take(values, "expected", list), np.float32)
    tolerance = take(values, "tolerance", float)
    if expected.ndim != 3 or not np.isfinite(expected).all() or not 0 < tolerance <= 1:
        raise ValueError(f"a self-test of shape {expected.shape} with tolerance {tolerance}")
    return SelfTest(expected=expected, tolerance=tolerance)


def _check_keys(values: Any, wanted: set[str]) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{values!r:.80} instead of an object")
    odd = sorted(map(str, values.keys() ^ wanted))
    if odd:
        raise ValueError(f"missing or unknown: {', '.join(odd)[:200]}")
