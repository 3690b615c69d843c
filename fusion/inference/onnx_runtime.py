"""Computes a bundle by ONNX Runtime: its encoders and its fusion model, without PyTorch."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from fusion.inference.bundle import FUSION_GRAPH, GRAPHS
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
        cls, bundle: Path, description: RunDescription, exported: Mapping[str, object]
    ) -> "OnnxRuntime":
        """exported: the content of its `export.json`. Every graph is checked before it is opened,
        and computes its self-test.

        Raises InputError, CacheCorrupt, MismatchError or StorageError, as `OnnxEncoders.load`.
        """
        threads = num_cores()
        folder = bundle / GRAPHS
        encoders = OnnxEncoders.load(folder, description.dims.names, threads=threads)
        files = exported.get("files")
        digest = files.get(f"{GRAPHS}/{FUSION_GRAPH}") if isinstance(files, dict) else None
        fusion = OnnxFusion.load(
            folder / FUSION_GRAPH, description.dims, sha256=digest, threads=threads
        )
        told = ", ".join(f"{name} in {kind}" for name, kind in encoders.precision.items())
        log.info("bundle %s (%s) by ONNX Runtime", bundle.resolve(), told)
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
