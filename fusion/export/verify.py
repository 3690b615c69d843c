"""`meld verify`: may a bundle be trusted on this machine?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fusion.export.golden import Verification, verify_golden
from fusion.inference.bundle import check_files, read_export
from fusion.inference.load import ModelChoice
from pipeline.errors import InputError


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """weights_dir: where linked encoders are looked for first; device, runtime: as in
    `ModelChoice`"""

    bundle: Path
    weights_dir: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    runtime: Literal["auto", "torch", "onnx"] = "auto"


def verify(config: VerifyConfig) -> Verification:
    """Hashes all files, then computes the golden clips and compares each stage.

    Raises:
        InputError: no bundle.
        CacheCorrupt: a file is not the one that was exported.
        UsageError, StorageError, WeightsMissing, MismatchError: as `ModelChoice.load`.
    """
    exported = read_export(config.bundle)
    if exported is None:
        raise InputError(
            f"{config.bundle} is no bundle: it has no export.json; make one with: meld export"
        )
    check_files(config.bundle, exported)
    predictor = ModelChoice(
        run=config.bundle,
        weights_dir=config.weights_dir,
        device=config.device,
        runtime=config.runtime,
    ).load()
    return verify_golden(predictor, config.bundle)
