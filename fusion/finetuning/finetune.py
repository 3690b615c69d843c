"""`meld finetune --end-to-end`: the encoders behind a trained fusion model learn with it.

a run, its cache, the raw clips -> the same model on raw input (compared before step 1)
-> training, alone or in Ray Train workers -> a run that owns its encoders
"""

import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fusion.evaluation.evaluate import report_of
from fusion.evaluation.joint_labels import allowed_pairs, fit_decoding
from fusion.evaluation.report import EvalReport
from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.cost import FinetunePlan, make_plan
from fusion.finetuning.endtoend import EndToEnd
from fusion.finetuning.loop import StepResult, TuneConfig, Tuning, predict_raw
from fusion.finetuning.setup import (
    LiveData,
    TuneSource,
    Watch,
    build_end_to_end,
    check_parity,
    open_live,
)
from fusion.finetuning.workers import Worker, run_workers
from fusion.inference.checkpoint import CONFIG, Checkpoint, read_checkpoint, write_checkpoint
from fusion.inference.predictions import Predictions
from fusion.training.history import EpochResult, read_history
from fusion.training.run_folder import HISTORY, METRICS, hold_run, open_run
from fusion.training.train import TrainConfig, choose_device, train_fusion
from pipeline.annotations import read_corpus
from pipeline.cache import require_cache
from pipeline.device import native_precision
from pipeline.encoders.saved import write_encoders
from pipeline.errors import UsageError
from pipeline.recipe import Precision
from pipeline.schema import MODALITIES, Modality
from pipeline.settings import build_config, describe_config, merge_settings
from pipeline.whole_files import write_whole

# May differ between a run and its --resume: none of them changes what is trained.
_FREE_ON_RESUME = ("resume", "overwrite", "workers", "address", "out")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What to fine-tune and where.

    run:        a trained fusion run; None trains one first, on `features`, in <out>/start
    features:   None takes the run's own caches (or features/ where there is no run)
    modalities: of the fusion model that is trained first; those of a given run are its own
    unfreeze:   whose encoders learn; None unfreezes all of the run's
    store:      where decoded clips are kept; None takes <features>/decoded
    encoders:   the fine-tuned run whose encoders made the features; None takes that which they
                recorded
    out:        None makes a name under runs/; --resume needs it
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

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "FinetuneConfig":
        """From a command line and a TOML file. With `resume`, from what the run was begun with;
        what is given beside that may not contradict it. Raises UsageError."""
        config = build_config(cls, values)
        if not config.resume:
            return config
        assert config.out is not None
        begun = build_config(cls, ProgressFolder(config.out).read_settings())
        both = _with_whole_paths(build_config(cls, merge_settings(describe_config(begun), values)))
        differing = [
            f"{name}: {getattr(begun, name)} != {getattr(both, name)}"
            for name in vars(begun)
            if name not in _FREE_ON_RESUME and getattr(begun, name) != getattr(both, name)
        ]
        if differing:
            raise UsageError(
                f"--resume: {config.out} was begun with other settings ({'; '.join(differing)}); "
                "leave them out, or start a new run with another --out"
            )
        return both


def _with_whole_paths(config: FinetuneConfig) -> FinetuneConfig:
    """Workers have working folders of their own, and --resume may come from elsewhere."""
    names = ("run", "data", "features", "store", "out", "weights_dir", "encoders")
    paths = {name: getattr(config, name) for name in names}
    return replace(config, **{name: path and path.absolute() for name, path in paths.items()})


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """parity: largest difference of logits before step 1; seconds: of training alone.

    history: begins with epoch 0, the start; where that is the best, it is what the run holds
    """

    run: Path
    start: Path
    plan: FinetunePlan
    parity: float
    history: tuple[EpochResult, ...]
    best: EpochResult
    seconds: float
    dev: EvalReport

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "start": str(self.start),
            "best": dataclasses.asdict(self.best),
            "epochs": len(self.history) - 1,
            "seconds": self.seconds,
            "parity": self.parity,
            "plan": dataclasses.asdict(self.plan),
            "dev": self.dev.to_dict(),
        }


Say = Callable[[str], None]
OnStep = Callable[[StepResult], None]


def finetune(
    config: FinetuneConfig,
    say: Say = lambda line: None,
    on_step: OnStep = lambda step: None,
    on_decoded: Callable[[int, int, int], None] = lambda *_: None,
) -> FinetuneResult:
    """Runs the stage; a run that was killed goes on with `resume`.

    Raises:
        UsageError, InputError, StorageError: the message says what to do.
        RecipeMismatch: run, cache, weights and clips do not belong together.
        ParityError: the encoders on raw input do not give what the cache holds.
    """
    with _open(config) as opened:
        return _finetune(opened, Watch(say, on_decoded), on_step)


def _finetune(config: FinetuneConfig, watch: Watch, on_step: OnStep) -> FinetuneResult:
    assert config.out is not None
    _train_start(config)
    source = tune_source(config)
    live = open_live(source, watch)
    device = choose_device(config.device)
    model = build_end_to_end(live, device)
    plan = make_plan(model, live, config.tune)
    watch.say(str(plan))
    parity = check_parity(model, live, device)
    watch.say(f"step 0: logits on raw input and on the cache differ by at most {parity:.2g}")
    started = time.perf_counter()
    if config.workers == 1:
        _train(model, live, config, Worker(device=device), on_step)
    else:
        model.cpu()  # the workers need the GPU's memory
        _train_in_workers(source, config, on_step)
        ProgressFolder(config.out).load_best(model)
        model.to(device)
    seconds = time.perf_counter() - started
    return _finish(config, model, live, plan, parity, seconds)


@contextmanager
def _open(config: FinetuneConfig) -> Iterator[FinetuneConfig]:
    """The config with every path in it and a folder for the run, held for the length of the block;
    what is there is touched only after a look at what was asked for, and never while another
    process writes it."""
    if config.resume:
        assert config.out is not None
        with hold_run(config.out):
            yield config
        return
    config = replace(config, precision=_precision(config))  # a resumed run keeps to it
    if config.run is None:
        config = replace(config, features=config.features or Path("features"))
    inputs = [path for path in (config.run, config.data, config.features, config.store) if path]
    _look_at_inputs(config)
    with open_run(
        config.out,
        overwrite=config.overwrite,
        name=f"finetune-seed{config.seed}",
        inputs=inputs,
    ) as out:
        config = _with_whole_paths(replace(config, out=out, run=config.run or out / "start"))
        ProgressFolder(out).begin(describe_config(replace(config, overwrite=False)))
        yield config


def _look_at_inputs(config: FinetuneConfig) -> None:
    """Raises InputError, or what reading them raises, for a run, cache or corpus not there."""
    if config.run is not None:
        read_checkpoint(config.run)
    else:
        assert config.features is not None
        require_cache(config.features, "train")
        require_cache(config.features, "dev")
    read_corpus(config.data, ("train", "dev"))


def _train_start(config: FinetuneConfig) -> None:
    """The fusion run to start from, where none was given; once."""
    assert config.out is not None
    start = config.out / "start"
    if config.run != start or (start / CONFIG).is_file():
        return
    assert config.features is not None
    train_fusion(
        TrainConfig(
            features=config.features,
            modalities=config.modalities,
            out=start,
            overwrite=True,
            seed=config.seed,
            device=config.device,
        )
    )


def _precision(config: FinetuneConfig) -> Precision:
    if config.precision != "auto":
        return config.precision
    device = choose_device(config.device)
    return native_precision("cuda" if device.type == "cuda" else "cpu")


def tune_source(config: FinetuneConfig) -> TuneSource:
    assert config.run is not None
    return TuneSource(
        run=config.run,
        data=config.data,
        features=config.features,
        modalities=config.modalities,
        unfreeze=config.unfreeze,
        store=config.store,
        weights_dir=config.weights_dir,
        encoders=config.encoders,
        precision=_precision(config),
        augment=config.tune.augment,
        train_batchnorm=config.tune.train_batchnorm,
        gradient_checkpointing=config.tune.gradient_checkpointing,
        seed=config.seed,
        device=config.device,
        address=config.address,
    )


# --------------------------------------------------------------------------------- training


def _train(
    model: EndToEnd, live: LiveData, config: FinetuneConfig, worker: Worker, on_step: OnStep
) -> None:
    """What one worker does, whether it is alone or not."""
    assert config.out is not None
    progress = ProgressFolder(config.out)
    tuning = Tuning(model, live.train, live.dev, config.tune, config.seed, worker, progress)
    tuning.to_the_end(on_step)


def _train_beside_others(source: TuneSource, config: FinetuneConfig, worker: Worker) -> None:
    assert config.out is not None
    progress = ProgressFolder(config.out)

    def tell(step: StepResult) -> None:
        if worker.is_first:
            progress.tell_step(dataclasses.asdict(step))

    live = open_live(source)  # decoded already, by the process that started this one
    _train(build_end_to_end(live, worker.device), live, config, worker, tell)


def _train_in_workers(source: TuneSource, config: FinetuneConfig, on_step: OnStep) -> None:
    assert config.out is not None
    progress = ProgressFolder(config.out)
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(1):
            step = progress.last_step()
            if step is not None:
                on_step(StepResult(**step))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        run_workers(
            functools.partial(_train_beside_others, source, config),
            workers=config.workers,
            device=choose_device(config.device).type,
            address=config.address,
            folder=progress.folder,
        )
    finally:
        finished.set()
        watcher.join()


# -------------------------------------------------------------------------------- finishing


def _finish(
    config: FinetuneConfig,
    model: EndToEnd,
    live: LiveData,
    plan: FinetunePlan,
    parity: float,
    seconds: float,
) -> FinetuneResult:
    """`model` with the best epoch's weights -> a run folder; its config comes last."""
    assert config.out is not None
    assert config.run is not None
    run = config.out
    history = tuple(read_history(run / HISTORY))
    worker = Worker(device=choose_device(config.device))
    output = predict_raw(model, live.dev, worker, batch_size=32)
    predictions = Predictions.of(run.name, live.dev.data, output)
    labels = live.train.data
    allowed = allowed_pairs(labels.emotion.numpy(), labels.sentiment.numpy())
    recipe = write_encoders(run, model.encoders, live.recipe, live.unfrozen)
    checkpoint = Checkpoint(
        model=model.fusion.cpu().eval(),
        recipe=recipe,
        projection_hash=None,
        emotion_counts=live.start.emotion_counts,
        sentiment_counts=live.start.sentiment_counts,
        settings=describe_config(config),
        features=run.absolute() / "features",
        finetuned=live.unfrozen,
        data=config.data,
        decoding=fit_decoding(predictions, allowed),
    )
    best = max(history, key=lambda result: result.score)
    result = FinetuneResult(
        run=run,
        start=config.run,
        plan=plan,
        parity=parity,
        history=history,
        best=best,
        seconds=seconds,
        dev=report_of(checkpoint, predictions),
    )
    metrics = json.dumps(result.to_dict(), indent=2, sort_keys=True)
    write_whole(run / METRICS, metrics.encode() + b"\n")
    from fusion.evaluation.plots import plot_report
    from fusion.training.curves import plot_history  # matplotlib takes seconds to load

    plot_report(result.dev, run)
    plot_history(history, run / "training.png", title=run.name)
    write_checkpoint(run, checkpoint)
    return result
