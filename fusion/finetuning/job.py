"""The configuration of a fine-tuning, and the same with everything resolved.

FinetuneConfig   as typed: a path may be left out, device and precision may be "auto"
FinetuneJob absolute paths, a device and a precision; read by every step and every worker
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fusion.data.set_aside import check_share
from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.loop import TuneConfig
from fusion.inference.checkpoint import read_checkpoint
from fusion.training.build import choose_device
from fusion.training.config import check_ensemble, check_overwrite
from fusion.training.losses import check_teacher
from fusion.training.run_folder import START
from pipeline.errors import UsageError
from pipeline.recipe import Precision
from pipeline.schema import MODALITIES, Modality
from pipeline.settings import build_config, describe_config, flatten, merge_settings
from pipeline.system.device import native_precision

# May differ between a run and its --resume: none of them changes what is trained.
_FREE_ON_RESUME = ("resume", "overwrite", "workers", "address", "out")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What to fine-tune and where.

    run:        trained run to start from; None trains one first, on `features`, in <out>/start
    data:       folder with the CSVs and clips
    features:   folder of the caches; None takes the run's own (or features/ without a run)
    modalities: modalities of the fusion model that is trained first; a given run has its own
    unfreeze:   modalities whose encoders are trained; None takes all of the run
        whose encoder has parameters
    store:      folder of the decoded clips; None takes <features>/decoded
    encoders:   fine-tuned run whose encoders made the features; None takes the one that is recorded
                in them
    dev_share:  share of train's dialogues that is held out as dev for the fusion model that is
                trained first; a given run keeps the dialogues that it held out
    out:        folder of the new run; None makes a new one under runs/; `resume` needs it
    overwrite:  replace the run in `out`
    resume:     resume the unfinished run in `out`
    seed:       random seed of the training
    ensemble:   number of models that are fine-tuned, of this seed and those after it; the run is
        one model, which averages their probabilities
    distil:     a trained run, the teacher: the model learns from its calibrated probabilities
        beside the labels (`tune.loss.teacher_weight`)
    device:     "auto" uses a GPU if there is one
    precision:  precision that the encoders compute in, while weights stay float32; "auto" uses
                bfloat16 if the hardware supports it
    workers:    number of Ray Train workers, with one GPU each if there are GPUs
    address:    existing Ray cluster, "auto" or "host:port"; None starts Ray on this machine if
                needed
    weights_dir: folder that is searched for pretrained weights before the libraries' caches
    """

    run: Path | None = None
    data: Path = Path("data")
    features: Path | None = None
    modalities: tuple[Modality, ...] | None = None
    unfreeze: tuple[Modality, ...] | None = None
    store: Path | None = None
    out: Path | None = None
    overwrite: bool = False
    resume: bool = False
    seed: int = 0
    ensemble: int = 1
    distil: Path | None = None
    dev_share: float | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    workers: int = 1
    address: str | None = None
    weights_dir: Path | None = None
    encoders: Path | None = None
    tune: TuneConfig = field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, not {self.workers}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), not {self.seed}")
        check_ensemble(self.ensemble, self.seed)
        check_teacher(self.tune.loss, self.distil, "tune.loss")
        if self.dev_share is not None:
            check_share(self.dev_share)
        for name in ("modalities", "unfreeze"):
            chosen = getattr(self, name)
            if chosen is not None and (not chosen or set(chosen) - set(MODALITIES)):
                raise ValueError(f"{name}: some of {', '.join(MODALITIES)}, not {chosen}")
        if self.workers > 1 and self.tune.train_batchnorm:
            raise ValueError("train_batchnorm: each worker would have its own; use --workers 1")
        if self.resume and self.out is None:
            raise ValueError("--resume needs --out, the run to go on with")
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on with the run in --out, --overwrite replaces it")
        check_overwrite(self.overwrite, self.out)

    @property
    def begun(self) -> Path | None:
        """The run to go on with; None begins a new one."""
        return self.out if self.resume else None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "FinetuneConfig":
        """The config of options and a TOML file. With `resume`, the settings of the unfinished run,
        which given ones may not contradict. Raises UsageError."""
        config = build_config(cls, values)
        run = config.begun
        if run is None:
            return config
        begun = ProgressFolder(run).read_settings()
        config = with_whole_paths(build_config(cls, merge_settings(begun, values)))
        check_begun(config, run)
        return config


def check_begun(config: FinetuneConfig, run: Path) -> None:
    """Raises UsageError where the run was begun with other settings than `config`."""
    begun = build_config(FinetuneConfig, ProgressFolder(run).read_settings())
    before, now = (flatten(describe_config(each)) for each in (begun, config))
    differing = [
        f"{name}: {before[name]} != {now[name]}"
        for name in before
        if name not in _FREE_ON_RESUME and before[name] != now[name]
    ]
    if differing:
        raise UsageError(
            f"--resume: {run} was begun with other settings ({'; '.join(differing)}); leave them "
            "out, or start a new run with another --out"
        )


def with_whole_paths(config: FinetuneConfig) -> FinetuneConfig:
    """With absolute paths: workers have other working folders, and --resume may be called from
    another one."""
    names = ("run", "data", "features", "store", "out", "weights_dir", "encoders", "distil")
    paths = {name: getattr(config, name) for name in names}
    return replace(config, **{name: path and path.absolute() for name, path in paths.items()})


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """device: here, where the model is compared and measured; workers_device: where it trains."""

    device: Literal["cpu", "cuda"]
    workers_device: Literal["cpu", "cuda"]
    precision: Precision


def choose_hardware(config: FinetuneConfig) -> Hardware:
    """Raises UsageError where a GPU was asked for and there is none."""
    device: Literal["cpu", "cuda"] = "cpu"
    if config.address is not None and config.workers > 1:
        from pipeline.parallel.cluster import look_at_cluster  # Ray

        there, precision = look_at_cluster(config.address, config.device, config.precision)
        if there == "cuda" and torch.cuda.is_available():
            device = "cuda"
        return Hardware(device=device, workers_device=there, precision=precision)
    if choose_device(config.device).type == "cuda":
        device = "cuda"
    precision = native_precision(device) if config.precision == "auto" else config.precision
    return Hardware(device=device, workers_device=device, precision=precision)


@dataclass(frozen=True, kw_only=True)
class FinetuneJob:
    """A `FinetuneConfig` with everything resolved; other fields are as there.

    asked_precision: the config's, "auto" where a run is resumed; `hardware` has what came of it
    settings: the settings that the run records and that --resume uses
    """

    out: Path
    run: Path
    data: Path
    features: Path
    modalities: tuple[Modality, ...] | None
    unfreeze: tuple[Modality, ...] | None
    store: Path | None
    weights_dir: Path | None
    encoders: Path | None
    distil: Path | None
    hardware: Hardware
    asked_precision: Literal["auto", "float32", "bfloat16"] = field(compare=False)
    seed: int
    dev_share: float | None
    workers: int
    address: str | None
    tune: TuneConfig
    settings: Mapping[str, Any]

    @property
    def trains_start(self) -> bool:
        """Whether the fusion run to start from is trained on the way."""
        return self.run == self.out / START


def resolve(config: FinetuneConfig, out: Path, hardware: Hardware) -> FinetuneJob:
    """Reads nothing but the run to start from, and that for its features alone.

    Raises what `read_checkpoint` raises.
    """
    # A resumed run has in its settings what "auto" came to, which nobody asked for.
    asked_precision = "auto" if config.resume else config.precision
    features = config.features
    if config.run is None:
        features = features or Path("features")
    config = with_whole_paths(
        replace(
            config,
            out=out,
            run=config.run or out / START,
            features=features,
            precision=hardware.precision,  # a resumed run keeps to it
            resume=False,
            overwrite=False,
        )
    )
    run = (config.run or out / START).absolute()
    return FinetuneJob(
        out=out.absolute(),
        run=run,
        data=config.data,
        features=config.features or read_checkpoint(run).require_features(),
        modalities=config.modalities,
        unfreeze=config.unfreeze,
        store=config.store,
        weights_dir=config.weights_dir,
        encoders=config.encoders,
        distil=config.distil,
        hardware=hardware,
        asked_precision=asked_precision,
        seed=config.seed,
        dev_share=config.dev_share,
        workers=config.workers,
        address=config.address,
        tune=config.tune,
        settings=describe_config(config),
    )
