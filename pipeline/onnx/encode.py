"""Encodes clips by the graphs of a folder, as `pipeline.encode` does by PyTorch.

OnnxEncoders
  ├ OnnxEncoder          of a modality with one encoder
  └ JoinedOnnxEncoders   of one with several, each of which is an OnnxEncoder
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.encode_batches import BatchEncoder, encode_in_batches
from pipeline.encoders.side_by_side import Items, SideBySide, spread_layers
from pipeline.errors import CacheCorrupt, InputError, MismatchError
from pipeline.onnx.graph import Computes, Graph, NoGraph, read_checked
from pipeline.onnx.index import GRAPH, EncoderGraph, JoinedGraphs, OnnxIndex, part_folder
from pipeline.onnx.reading import READINGS, Floats, GraphReading, MakesUpItems
from pipeline.recipe import DecodeConfig, FrameView
from pipeline.schema import ClipFeatures, DecodedClip, Modality


class OnnxEncoder:
    """One encoder: a graph, and what reads clips for it."""

    def __init__(self, described: EncoderGraph, reading: GraphReading, graph: Computes) -> None:
        self.described = described
        self.reading = reading
        self.graph = graph

    @property
    def batch_size(self) -> int | None:
        return self.reading.batch_size

    @property
    def is_int8(self) -> bool:
        return self.described.quantisation == "int8"

    @classmethod
    def load(cls, folder: Path, described: EncoderGraph, *, threads: int | None) -> "OnnxEncoder":
        """Raises as `OnnxEncoders.load`; the self-test is not run."""
        kind = READINGS[described.reading["kind"]]
        wanted = {*([GRAPH] if kind.has_graph else []), *kind.files}
        if set(described.files) != wanted:
            raise CacheCorrupt(
                f"{folder}: lists {_told(described.files)} and not {_told(wanted)}; export again"
            )
        files = {name: read_checked(folder / name, described.files[name]) for name in kind.files}
        try:
            reading = kind.read(described.reading, files)
        except ValueError as error:
            raise MismatchError(f"{folder}: cannot be read as exported ({error})") from error
        if not kind.has_graph:
            return cls(described, reading, NoGraph())
        inputs, outputs = reading.ports(described.layers, described.dim)
        graph = Graph.load(
            folder / GRAPH,
            sha256=described.files[GRAPH],
            inputs=inputs,
            outputs=outputs,
            threads=threads,
        )
        return cls(described, reading, graph)

    def encode(self, items: Sequence[Any]) -> Floats:
        """float32 [items, layers, dim]"""
        return self.reading.encode(self.graph, items)

    def encode_test_clips(self) -> Floats:
        """float32 [clips, layers, dim]. Raises ValueError where it reads nothing in one."""
        if isinstance(self.reading, MakesUpItems):
            return self.encode(self.reading.test_items())
        items = self.reading.prepare(self.reading.test_clips())
        if any(item is None for item in items):
            raise ValueError("the self-test's clips hold nothing that can be encoded")
        return self.encode(items)

    def error(self) -> float:
        """The largest difference from what the self-test expects, as a share of the largest
        expected value; infinite where a value is not finite."""
        expected = self.described.self_test.expected
        found = self.encode_test_clips()
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf")
        return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))


class JoinedOnnxEncoders:
    """Several encoders of one modality, as `pipeline.encoders.several` joins them: their features
    side by side, zeros of one that finds nothing where others do."""

    def __init__(
        self, joined: JoinedGraphs, parts: Sequence[OnnxEncoder], decode: DecodeConfig | None
    ) -> None:
        """parts: those of `joined`; decode: how the clips are decoded"""
        self.parts = tuple(parts)
        self.reading = SideBySide(
            [
                (part.name, encoder.reading)
                for part, encoder in zip(joined.parts, self.parts, strict=True)
            ],
            decode,
            [part.view for part in joined.parts],
        )
        self.layers = max(part.described.layers for part in self.parts)
        sizes = [part.batch_size for part in self.parts if part.batch_size is not None]
        self.batch_size = min(sizes, default=None)

    @property
    def is_int8(self) -> bool:
        return any(part.is_int8 for part in self.parts)

    def encode(self, items: Sequence[Items]) -> Floats:
        """float32 [items, layers, sum of dims]"""
        columns = []
        for part, column in zip(self.parts, zip(*items, strict=True), strict=True):
            there = [row for row, item in enumerate(column) if item is not None]
            features = np.zeros((len(items), self.layers, part.described.dim), np.float32)
            if there:
                encoded = part.encode([column[row] for row in there])
                features[there] = encoded[:, spread_layers(encoded.shape[1], self.layers)]
            columns.append(features)
        return np.concatenate(columns, axis=2)


class OnnxEncoders:
    """The encoders of a folder that `write_encoder_graphs` or `quantise_graphs` wrote."""

    def __init__(self, encoders: Mapping[Modality, OnnxEncoder | JoinedOnnxEncoders]) -> None:
        self.encoders = encoders

    @classmethod
    def load(
        cls,
        folder: Path,
        modalities: Sequence[Modality],
        *,
        decode: DecodeConfig | None,
        threads: int | None = None,
    ) -> "OnnxEncoders":
        """Checks every file, opens the graphs and runs their self-tests.

        decode:  how the clips will be decoded; None where they are words alone
        threads: that one call computes with; None takes one per core

        Raises:
            InputError: no such folder, or none of these encoders in it.
            CacheCorrupt: damaged files, others than were written, or such as are not opened.
            MismatchError: another version of the format, encoders of clips that were decoded in
                another way, or a graph that computes something else on this machine than where it
                was exported.
            StorageError: a file cannot be read.
        """
        index = OnnxIndex.read(folder)
        lacking = [name for name in modalities if name not in index.encoders]
        if lacking:
            raise InputError(
                f"{folder}: no {lacking[0]} encoder; it has {', '.join(index.encoders)}"
            )
        encoders: dict[Modality, OnnxEncoder | JoinedOnnxEncoders] = {}
        for name in modalities:
            described = index.encoders[name]
            if isinstance(described, JoinedGraphs):
                parts = [
                    _open(folder / part_folder(name, place), part.graph, part.view, decode, threads)
                    for place, part in enumerate(described.parts)
                ]
                encoders[name] = JoinedOnnxEncoders(described, parts, decode)
            else:
                encoders[name] = _open(folder / name, described, None, decode, threads)
        return cls(encoders)

    @property
    def precision(self) -> dict[Modality, str]:
        """What each encoder computes in: "float32" or "int8"."""
        return {
            name: "int8" if encoder.is_int8 else "float32"
            for name, encoder in self.encoders.items()
        }

    def encode(self, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        """Features of each clip, in order; see `encode_in_batches`."""
        return encode_in_batches(
            {name: _batch_encoder(encoder) for name, encoder in self.encoders.items()}, clips
        )


def _open(
    folder: Path,
    described: EncoderGraph,
    view: FrameView | None,
    decode: DecodeConfig | None,
    threads: int | None,
) -> OnnxEncoder:
    encoder = OnnxEncoder.load(folder, described, threads=threads)
    try:
        if view is not None:
            if decode is None or view not in decode.views:
                raise ValueError(f"it reads frames of {view}")
            decode = decode.of_view(view)
        encoder.reading.check_decode(decode)
    except ValueError as error:
        raise MismatchError(
            f"{folder}: clips are not decoded as it reads them ({error}); export again"
        ) from error
    check_self_test(folder, encoder)
    return encoder


def check_self_test(place: Path, encoder: OnnxEncoder) -> None:
    """Raises MismatchError where the graph computes something else here."""
    try:
        error = encoder.error()
    except ValueError as reason:
        raise MismatchError(f"{place}: its self-test cannot be run ({reason})") from reason
    allowed = encoder.described.self_test.tolerance
    if error > allowed:
        raise MismatchError(
            f"{place}: this machine computes something else than was exported: the largest error "
            f"is {error:.2%} of the largest value, {allowed:.2%} is allowed (8-bit graphs made for "
            "other processors do that); export again on this machine"
        )


def _told(names: Collection[str]) -> str:
    return ", ".join(f"{name!r:.80}" for name in sorted(names)[:5]) or "nothing"


def _batch_encoder(encoder: OnnxEncoder | JoinedOnnxEncoders) -> BatchEncoder:
    encode: Callable[[Sequence[Any]], Floats] = encoder.encode
    return BatchEncoder(reading=encoder.reading, batch_size=encoder.batch_size, encode=encode)
