"""Computes a bundle by ONNX Runtime: its encoders and its fusion model, without PyTorch."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion.inference.bundle import FUSION_GRAPH
from fusion.inference.description import RunDescription
from fusion.inference.onnx import OnnxFusion
from fusion.inference.runtime import FeatureRows, HeadLogits, RuntimeName
from pipeline.onnx.encode import OnnxEncoders
from pipeline.schema import ClipFeatures, DecodedClip, Modality
from pipeline.system.resources import num_cores

log = logging.getLogger(__name__)


class OnnxRuntime:
    """The graphs of a bundle. It may be used by several threads at once."""

    name: RuntimeName = "onnx"
    device = "cpu"

    def __init__(self, encoders: OnnxEncoders, fusion: OnnxFusion, threads: int) -> None:
        self.encoders = encoders
        self.fusion = fusion
        self.threads = threads

    @classmethod
    def load(
        cls,
        folder: Path,
        description: RunDescription,
        *,
        sha256: str | None = None,
        threads: int | None = None,
    ) -> "OnnxRuntime":
        """Every graph is checked before it is opened, and computes its self-test.

        folder:  of the graphs
        sha256:  of the fusion model's graph; None compares nothing
        threads: that one call computes with; None takes one per core

        Raises InputError, CacheCorrupt, MismatchError or StorageError, as `OnnxEncoders.load`.
        """
        threads = num_cores() if threads is None else threads
        encoders = OnnxEncoders.load(
            folder, description.dims.names, decode=description.recipe.decode, threads=threads
        )
        fusion = OnnxFusion.load(
            folder / FUSION_GRAPH, description.dims, sha256=sha256, threads=threads
        )
        told = ", ".join(f"{name} in {kind}" for name, kind in encoders.precision.items())
        log.info("graphs of %s (%s) by ONNX Runtime", folder.resolve(), told)
        return cls(encoders, fusion, threads)

    @property
    def precision(self) -> Mapping[Modality, str]:
        return self.encoders.precision

    def describe(self) -> Mapping[str, str]:
        return {"threads": str(self.threads)}

    def encode(self, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        return self.encoders.encode(clips)

    def fuse(self, rows: FeatureRows) -> HeadLogits:
        return self.fusion.fuse(rows)
