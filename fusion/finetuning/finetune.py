"""`meld finetune --end-to-end`: trains the encoders together with a trained fusion model.

a run, its cache, the raw clips -> the same model on raw input (compared before step 1)
-> training, alone or in Ray Train workers -> a run that owns its encoders
"""

import dataclasses
import functools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusion.evaluation.evaluate import EvaluateConfig, open_split, report_of
from fusion.evaluation.joint_labels import allowed_pairs, fit_decoding
from fusion.evaluation.report import EvalReport
from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.cost import FinetunePlan, make_plan
from fusion.finetuning.endtoend import EndToEnd
from fusion.finetuning.ensemble import (
    config_of_member,
    histories_of,
    join,
    member_folders,
    remove_members,
    steps_of_member,
    told_by,
)
from fusion.finetuning.job import (
    FinetuneConfig,
    FinetuneJob,
    check_begun,
    choose_hardware,
    resolve,
)
from fusion.finetuning.loop import StepResult, Tuning, predict_raw
from fusion.finetuning.setup import (
    LiveData,
    Watch,
    build_end_to_end,
    check_parity,
    check_wishes,
    open_live,
)
from fusion.finetuning.workers import Worker, run_workers
from fusion.inference.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fusion.inference.description import CHECKPOINTS, CONFIG
from fusion.inference.encoders import find_encoders_of
from fusion.inference.predict import predict_rows, predictions_of
from fusion.inference.predictions import Predictions
from fusion.training.config import TrainConfig
from fusion.training.distil import check_teacher_of
from fusion.training.history import EpochResult, mean_history, read_history
from fusion.training.run_folder import (
    HISTORY,
    MARKER,
    METRICS,
    clear_run,
    hold_run,
    open_run,
)
from fusion.training.train import Member, count_train_labels, train_fusion
from pipeline.cache.format import read_header, require_cache
from pipeline.corpus.annotations import read_corpus
from pipeline.encoders.find import find_encoders
from pipeline.encoders.saved import write_encoders
from pipeline.errors import MeldError, StorageError
from pipeline.schema import Split
from pipeline.system.files import refuse_other_names, write_whole
from pipeline.system.json_values import MALFORMED


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """start: None where each member of an ensemble trained its own, which is gone with it
    parity: largest difference of logits before step 1; seconds: of training alone.

    history: begins with epoch 0, the start; if that is the best, the run holds its weights. Of an
        ensemble, the mean of its members
    members: of an ensemble; empty where the run is a single model
    """

    run: Path
    start: Path | None
    plan: FinetunePlan
    parity: float
    history: tuple[EpochResult, ...]
    seconds: float
    dev: EvalReport
    members: tuple[Member, ...] = ()

    @property
    def best(self) -> EpochResult:
        return best_of(self.history)

    def to_dict(self) -> dict[str, Any]:
        return {
            "run": str(self.run),
            "start": None if self.start is None else str(self.start),
            "best": dataclasses.asdict(self.best),
            "epochs": len(self.history) - 1,
            "members": [dataclasses.asdict(each) for each in self.members],
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
    """Runs the stage; a killed run is resumed with `resume`.

    Raises:
        UsageError, InputError, StorageError: the message says what to do.
        RecipeMismatch: run, cache, weights and clips do not match.
        ParityError: the features of raw input differ from those in the cache.
    """
    with _open(config) as job:
        watch = Watch(say, on_decoded)
        if config.ensemble > 1:
            return _finetune_members(config, job, watch, on_step)
        return _finetune(job, watch, on_step)


def _finetune(job: FinetuneJob, watch: Watch, on_step: OnStep) -> FinetuneResult:
    _train_start(job)
    live = open_live(job, watch)
    device = torch.device(job.hardware.device)
    model = build_end_to_end(live, device)
    plan = make_plan(model, live, job.tune)
    watch.say(str(plan))
    parity = check_parity(model, live, device)
    watch.say(f"step 0: logits on raw input and on the cache differ by at most {parity:.2g}")
    started = time.perf_counter()
    if job.workers == 1:
        _train(model, live, Worker(device=device), on_step)
    else:
        model.cpu()  # the workers need the GPU's memory
        _train_in_workers(job, on_step)
        ProgressFolder(job.out).load_best(model)
        model.to(device)
    seconds = time.perf_counter() - started
    return _finish(model, live, plan, parity, seconds)


def _finetune_members(
    config: FinetuneConfig, job: FinetuneJob, watch: Watch, on_step: OnStep
) -> FinetuneResult:
    """One after another, each in a folder of its own, then as one; see `ensemble.py`."""
    folders = member_folders(job.out, config)
    if (job.out / CONFIG).is_file():  # it comes last
        remove_members(job.out, folders)
        return _read_ensemble(job)
    for number, folder in enumerate(folders):
        member = config_of_member(job, config, folder)
        if member is not None:
            watch.say(f"model {number + 1} of {len(folders)}, seed {folder.name}")
            follow = steps_of_member(number, len(folders), on_step)
            finetune(member, watch.say, follow, watch.on_decoded)
    first = FinetuneConfig.from_mapping({"out": str(folders[0]), "resume": True})
    live = open_live(resolve(first, folders[0], job.hardware), watch)
    device = torch.device(job.hardware.device)
    joined = join(job.out, folders, live, device)
    histories = histories_of(folders)
    result = _write_run(
        job,
        live,
        predictions_of(job.out.name, live.dev.data, joined.output, untrained=live.untrained),
        dataclasses.replace(
            joined.first,
            dims=joined.model.dims,
            model=joined.model,
            recipe=joined.recipe,
            settings=job.settings,
            features=job.out.absolute() / "features",
        ),
        history=mean_history(histories),
        plan=make_plan(build_end_to_end(live, device), live, job.tune),
        parity=max(told_by(folders, "parity")),
        seconds=sum(told_by(folders, "seconds")),
        members=tuple(
            Member(seed=int(folder.name), best=best_of(history))
            for folder, history in zip(folders, histories, strict=True)
        ),
    )
    remove_members(job.out, folders)
    return result


def _read_ensemble(job: FinetuneJob) -> FinetuneResult:
    """The result of one that is whole, measured on dev once more. Raises StorageError, or what
    measuring it raises."""
    checkpoint, dev = open_split(EvaluateConfig(run=job.out, split="dev"))
    try:
        told = json.loads((job.out / METRICS).read_bytes())
        plan, parity, seconds = FinetunePlan(**told["plan"]), told["parity"], told["seconds"]
        members = tuple(
            Member(seed=each["seed"], best=EpochResult(**each["best"])) for each in told["members"]
        )
    except (OSError, *MALFORMED) as error:
        raise StorageError(f"{job.out / METRICS}: cannot be read: {error!r}") from error
    return FinetuneResult(
        run=job.out,
        start=_start_of(job, members),
        plan=plan,
        parity=parity,
        history=tuple(read_history(job.out / HISTORY)),
        seconds=seconds,
        dev=report_of(checkpoint, predict_rows(checkpoint, dev, run=job.out.name)),
        members=members,
    )


def _start_of(job: FinetuneJob, members: Sequence[Member]) -> Path | None:
    return None if members and job.trains_start else job.run


@contextmanager
def _open(config: FinetuneConfig) -> Iterator[FinetuneJob]:
    """The job and its run's folder, held for the length of the block; what is there is touched only
    after a look at what was asked for, and never while another process writes it."""
    hardware = choose_hardware(config)
    if config.begun is not None:
        with hold_run(config.begun):
            check_begun(config, config.begun)
            ProgressFolder(config.begun).remove_leftovers()
            yield resolve(config, config.begun, hardware)
        return
    refuse_other_names(config.out or Path())
    inputs = _look_at_inputs(config)
    if config.run is not None:
        check_wishes(resolve(config, Path(), hardware), read_checkpoint(config.run))
    with open_run(
        config.out,
        overwrite=config.overwrite,
        name=f"finetune-seed{config.seed}",
        inputs=inputs,
    ) as out:
        job = resolve(config, out, hardware)
        progress = ProgressFolder(out)
        progress.begin(job.settings)
        try:
            yield job
        except MeldError:
            if not _has_begun(out):  # refused: the corrected command needs no other folder
                clear_run(out)
            raise


def _has_begun(run: Path) -> bool:
    """Whether anything of a fine-tuning is in the run but its settings."""
    made = {path.name for path in run.iterdir()} - {MARKER, CHECKPOINTS}
    return bool(made) or ProgressFolder(run).has_steps


def _look_at_inputs(config: FinetuneConfig) -> list[Path]:
    """Everything that is needed, the encoders' files too. Raises InputError, or what reading them
    raises, for a run, cache, corpus or encoder not there."""
    if config.run is not None:
        start = read_checkpoint(config.run)
        choices = find_encoders_of(
            config.run,
            start,
            weights_dir=config.weights_dir,
            encoders=config.encoders,
        )
        inputs = [config.run, config.features or start.require_features()]
        splits = _splits_needed(start.set_aside is None)
    else:
        features = config.features or Path("features")
        header = read_header(require_cache(features, "train"))
        splits = _splits_needed(config.dev_share is None and (features / "dev.h5").is_file())
        choices = find_encoders(
            header.recipe,
            config.modalities or header.recipe.modalities,
            weights_dir=config.weights_dir,
            run=config.encoders,
            recorded=header.encoders_run,
            beside=(features,),
        )
        inputs = [features]
    corpus = read_corpus(config.data, splits)
    if config.distil is not None:
        said = {row.key: (row.speaker, row.text) for row in corpus["train"]}
        check_teacher_of(config.distil, said)
    named = (config.data, config.features, config.store, config.distil)
    inputs += [path for path in named if path]
    return inputs + [choice.path for choice in choices if choice.path is not None]


def _splits_needed(has_dev: bool) -> tuple[Split, ...]:
    return ("train", "dev") if has_dev else ("train",)


def _train_start(job: FinetuneJob) -> None:
    """The fusion run to start from, where none was given; once."""
    if not job.trains_start or (job.run / CONFIG).is_file():
        return
    train_fusion(
        TrainConfig(
            features=job.features,
            modalities=job.modalities,
            out=job.run,
            overwrite=True,
            seed=job.seed,
            dev_share=job.dev_share,
            device=job.hardware.device,
        )
    )


# --------------------------------------------------------------------------------- training


def _train(model: EndToEnd, live: LiveData, worker: Worker, on_step: OnStep) -> None:
    """What one worker does, whether it is alone or not."""
    job = live.job
    progress = ProgressFolder(job.out)
    tuning = Tuning(
        model, live.train, live.dev, job.tune, job.seed, worker, progress, soft=live.soft
    )
    tuning.to_the_end(on_step)


def _train_beside_others(job: FinetuneJob, worker: Worker) -> None:
    progress = ProgressFolder(job.out)

    def tell(step: StepResult) -> None:
        if worker.is_first:
            progress.tell_step(dataclasses.asdict(step))

    live = open_live(job)  # decoded already, by the process that started this one
    _train(build_end_to_end(live, worker.device), live, worker, tell)


def _train_in_workers(job: FinetuneJob, on_step: OnStep) -> None:
    progress = ProgressFolder(job.out)
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
            functools.partial(_train_beside_others, job),
            workers=job.workers,
            device=job.hardware.workers_device,
            address=job.address,
            folder=progress.folder,
        )
    finally:
        finished.set()
        watcher.join()


# -------------------------------------------------------------------------------- finishing


def _finish(
    model: EndToEnd, live: LiveData, plan: FinetunePlan, parity: float, seconds: float
) -> FinetuneResult:
    """`model` with the best epoch's weights -> a run folder; its config comes last."""
    job, run = live.job, live.job.out
    worker = Worker(device=torch.device(job.hardware.device))
    output = predict_raw(model, live.dev, worker, batch_size=32)
    predictions = predictions_of(run.name, live.dev.data, output, untrained=live.untrained)
    here = count_train_labels(live.train.data)
    recipe = write_encoders(run, dict(model.encoders.items()), live.recipe, live.unfrozen)
    checkpoint = Checkpoint(
        dims=model.fusion.cpu().eval().dims,
        model=model.fusion.cpu().eval(),
        recipe=recipe,
        projection_hash=None,
        emotion_counts=live.start.emotion_counts if any(live.start.emotion_counts) else here[0],
        sentiment_counts=(
            live.start.sentiment_counts if any(live.start.sentiment_counts) else here[1]
        ),
        settings=job.settings,
        features=run.absolute() / "features",
        finetuned=live.unfrozen,
        data=job.data,
        untrained=live.untrained,
        set_aside=live.start.set_aside,
    )
    return _write_run(
        job,
        live,
        predictions,
        checkpoint,
        history=tuple(read_history(run / HISTORY)),
        plan=plan,
        parity=parity,
        seconds=seconds,
    )


def best_of(history: Sequence[EpochResult]) -> EpochResult:
    return max(history, key=lambda result: result.score)  # the first of equals


def _write_run(
    job: FinetuneJob,
    live: LiveData,
    predictions: Predictions,
    checkpoint: Checkpoint,
    *,
    history: tuple[EpochResult, ...],
    plan: FinetunePlan,
    parity: float,
    seconds: float,
    members: tuple[Member, ...] = (),
) -> FinetuneResult:
    """Fits what decodes to dev, measures, and writes all but the encoders.

    predictions: of dev, by what `checkpoint` holds
    """
    run, labels = job.out, live.train.data
    allowed = allowed_pairs(labels.emotion.numpy(), labels.sentiment.numpy(), live.untrained)
    checkpoint = dataclasses.replace(checkpoint, decoding=fit_decoding(predictions, allowed))
    result = FinetuneResult(
        run=run,
        start=_start_of(job, members),
        plan=plan,
        parity=parity,
        history=history,
        seconds=seconds,
        dev=report_of(checkpoint, predictions),
        members=members,
    )
    metrics = json.dumps(result.to_dict(), indent=2, sort_keys=True)
    write_whole(run / METRICS, metrics.encode() + b"\n")
    if members:
        lines = "".join(json.dumps(dataclasses.asdict(each)) + "\n" for each in history)
        write_whole(run / HISTORY, lines.encode())
    from fusion.evaluation.plots import plot_report
    from fusion.training.curves import plot_history  # matplotlib takes seconds to load

    plot_report(result.dev, run)
    plot_history(history, run / "training.png", title=run.name)
    write_checkpoint(run, checkpoint)
    return result
