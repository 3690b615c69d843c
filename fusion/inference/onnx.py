"""Computes a fusion model's graph by ONNX Runtime; without PyTorch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.inference.runtime import FeatureRows, HeadLogits
from fusion.model.dims import FusionDims
from fusion.model.turns import TurnPlaces, place_turns
from pipeline.errors import MismatchError
from pipeline.onnx.graph import Graph, Port
from pipeline.schema import EMOTIONS, SENTIMENTS

MOST_ROWS = 1024  # computed at once: dialogue context compares each row with each


class OnnxFusion:
    """Features of utterances in, logits out. It may be used by several threads at once."""

    def __init__(self, dims: FusionDims, graph: Graph) -> None:
        self.dims = dims
        self.graph = graph

    @classmethod
    def load(
        cls, path: Path, dims: FusionDims, *, sha256: str | None = None, threads: int | None = None
    ) -> "OnnxFusion":
        """The graph that `write_fusion_graph` wrote of a model with these dims.

        Raises as `Graph.load`: CacheCorrupt, MismatchError, StorageError.
        """
        inputs, outputs = fusion_ports(dims)
        graph = Graph.load(path, sha256=sha256, inputs=inputs, outputs=outputs, threads=threads)
        return cls(dims, graph)

    def fuse(self, rows: FeatureRows) -> HeadLogits:
        """Raises ValueError where there is no row, MismatchError where the features have another
        shape than the model takes."""
        if not len(rows):
            raise ValueError("no rows to fuse")
        self._check_shapes(rows)
        places = place_turns(rows.keys, rows.speaker)
        batches = list(self._batches(places))
        parts = [self._fuse(rows, places, batch) for batch in batches]
        back = np.argsort(np.concatenate(batches))
        emotion, sentiment = (
            np.concatenate(values)[back].astype(np.float64) for values in zip(*parts, strict=True)
        )
        return HeadLogits(emotion, sentiment)

    def _fuse(
        self, rows: FeatureRows, places: TurnPlaces, batch: NDArray[np.int64]
    ) -> list[NDArray[np.float32]]:
        feeds: dict[str, NDArray[Any]] = {
            name: rows.features[name][batch] for name in self.dims.names
        }
        feeds["present"] = rows.present[batch]
        if self._has_context:
            feeds |= {name: values[batch] for name, values in places._asdict().items()}
        return self.graph.run(**feeds)

    @property
    def _has_context(self) -> bool:
        return self.dims.model.context != "none"

    def _batches(self, places: TurnPlaces) -> Iterator[NDArray[np.int64]]:
        """Every row once; with dialogue context whole dialogues, together about `MOST_ROWS`."""
        num_rows = len(places.dialogue)
        if not self._has_context:
            for start in range(0, num_rows, MOST_ROWS):
                yield np.arange(start, min(start + MOST_ROWS, num_rows))
            return
        order = np.argsort(places.dialogue, kind="stable")
        counts = np.bincount(places.dialogue)
        batch_of = (np.cumsum(counts) - counts) // MOST_ROWS  # of each dialogue
        sizes = np.bincount(batch_of, weights=counts).astype(np.int64)
        for part in np.split(order, np.cumsum(sizes)[:-1]):
            if len(part):
                yield part

    def _check_shapes(self, rows: FeatureRows) -> None:
        for dims in self.dims.modalities:
            found = rows.features[dims.modality].shape[1:]
            if found != (dims.layers, dims.dim):
                raise MismatchError(
                    f"{dims.modality} features are {list(found)} [layers, dim], the model takes "
                    f"{[dims.layers, dims.dim]}"
                )


def fusion_ports(dims: FusionDims) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of the graph of a model with these dims."""
    inputs = [
        Port(each.modality, "float32", (None, each.layers, each.dim)) for each in dims.modalities
    ]
    inputs.append(Port("present", "bool", (None, len(dims.modalities))))
    if dims.model.context != "none":
        inputs += [Port(name, "int64", (None,)) for name in TurnPlaces._fields]
    outputs = [
        Port("emotion", "float32", (None, len(EMOTIONS))),
        Port("sentiment", "float32", (None, len(SENTIMENTS))),
    ]
    return inputs, outputs
