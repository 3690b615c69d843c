"""`meld train-fusion`: feature caches -> a run folder with a trained, measured model."""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fusion.data.batches import Rows
from fusion.data.split import FusionData, check_recipe, pool_splits
from fusion.evaluation.evaluate import report_of, report_subsets
from fusion.evaluation.joint_labels import allowed_pairs, fit_decoding
from fusion.evaluation.report import EvalReport
from fusion.inference.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fusion.inference.predict import predict_rows, predict_subsets
from fusion.model.ensemble import Fusion, join_members
from fusion.model.fusion import FusionModel
from fusion.training.build import build_model, choose_device
from fusion.training.config import TrainConfig, check_layers, check_modality_dropout
from fusion.training.distil import SoftTargets, soft_targets
from fusion.training.fit import FitResult, Training, fit_together
from fusion.training.history import EpochResult, mean_history, mean_of
from fusion.training.losses import count_labels
from fusion.training.parts import Parts, load_parts
from fusion.training.run_folder import HISTORY, MEMBER_HISTORY, METRICS, open_run
from fusion.training.trackers import final_tables, open_trackers
from fusion.training.warm_start import check_shape, take_weights
from pipeline.errors import StorageError, UsageError
from pipeline.schema import EMOTIONS, SENTIMENTS
from pipeline.settings import describe_config
from pipeline.system.files import write_whole
from pipeline.system.json_values import json_bytes, to_values

log = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model of an ensemble: its seed, and its best epoch on dev."""

    seed: int
    best: EpochResult


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """seconds: of the training loop, for all trainings of the batch

    train, dev: measured with the best epoch's weights
    best_epoch: 0 where no epoch was better on dev than the start of a warm start; of an ensemble,
        where its members were best on average (each has the weights of its own best)
    members: of an ensemble; empty where the run is a single model
    rows_refitted: the run's weights are of a second training on so many rows, all of train; None
        where there was none
    has_test: the folder of caches has a test cache
    """

    run: Path
    epochs: int
    best_epoch: int
    seconds: float
    train: EvalReport
    dev: EvalReport
    has_test: bool = True
    rows_refitted: int | None = None
    members: tuple[Member, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return to_values(self) | {"train": self.train.to_dict(), "dev": self.dev.to_dict()}


def train_fusion(
    config: TrainConfig, on_epoch: Callable[[EpochResult], None] = lambda result: None
) -> TrainResult:
    """Trains on train and chooses the epoch on dev; test is not read. Without a dev cache, a share
    of train's dialogues is held out as dev, and the run records which.

    Raises UsageError, InputError, StorageError or RecipeMismatch; the message says what to do.
    """
    return train_seeds([config], lambda _, result: on_epoch(result))[0]


def train_seeds(
    configs: Sequence[TrainConfig],
    on_epoch: Callable[[int, EpochResult], None] = lambda number, result: None,
    *,
    draw: Callable[[TrainConfig], bool] = lambda config: True,
) -> list[TrainResult]:
    """Trains runs that differ in `seed` and `out` alone as one batched model, which is much faster
    than one after another. Each is the same as alone, up to rounding.

    on_epoch: called with the number of the run and its epoch
    draw: whether to plot a run, which takes seconds
    Raises as `train_fusion`, and ValueError where they differ in more.
    """
    config = configs[0]
    if any(dataclasses.replace(c, seed=config.seed, out=config.out) != config for c in configs):
        raise ValueError("runs that are trained side by side may differ in seed and out alone")
    device = choose_device(config.device)
    if config.distil is not None:
        read_checkpoint(config.distil)  # before features are read
    start = None if config.start is None else read_checkpoint(config.start)
    parts = load_parts(
        config.features,
        modalities=config.modalities,
        input=config.input,
        dev_share=config.dev_share,
        loss=config.fit.loss,
        start=start,
    )
    train, dev = parts.train, parts.dev
    if config.refit and parts.set_aside is None:
        raise UsageError(
            f"--refit: dev has a cache in {config.features}, and the model learns from all of "
            "train already; leave it out, or hold dialogues of train out with --dev-share"
        )
    check_modality_dropout(train.modalities, config.fit.modality_dropout)
    check_layers(train.features, config.model)
    if parts.set_aside is not None:
        log.info("%s", parts.set_aside)
    modalities = ",".join(train.modalities)
    log.info("%s of %d rows on %s, dev of %d", modalities, len(train.keys), device, len(dev.keys))
    soft = _soft_targets(config, train)
    seeds = [(run, seed) for run, each in enumerate(configs) for seed in _seeds_of(each)]
    models = [_first_model(config, train, start, seed=seed).to(device) for _, seed in seeds]
    trainings = [
        Training(
            model=model,
            train=Rows.prepare(model, train, device, soft),
            dev=Rows.prepare(model, dev, device),
            seed=seed,
            is_trained=start is not None,
        )
        for (_, seed), model in zip(seeds, models, strict=True)
    ]
    with ExitStack() as held:
        runs = [held.enter_context(_open_run_of(each, train)) for each in configs]
        logs = [
            held.enter_context(closing(_EpochLog(run, each)))
            for each, run in zip(configs, runs, strict=True)
        ]

        def follow(number: int, result: EpochResult) -> None:
            run, seed = seeds[number]
            logs[run].write(result, seed=seed)
            on_epoch(run, result)

        started = time.perf_counter()
        fitted = fit_together(trainings, config.fit, follow)
        again = _refit(configs, parts, device) if config.refit else [None] * len(configs)
        seconds = time.perf_counter() - started
        results = [
            _write_run(
                _describe_run(each, join_members(own), parts, start),
                run,
                own_fits,
                parts,
                seconds,
                refitted=whole,
                draw=draw(each),
            )
            for each, own, run, own_fits, whole in zip(
                configs,
                _by_run(configs, models),
                runs,
                _by_run(configs, fitted),
                again,
                strict=True,
            )
        ]
        for each_log, result in zip(logs, results, strict=True):
            each_log.write_scores(result)
        return results


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Refitted:
    """A model trained on all of train."""

    model: Fusion
    train: FusionData


def _refit(
    configs: Sequence[TrainConfig], parts: Parts, device: torch.device
) -> list[_Refitted | None]:
    """New models on all of train, for all epochs: nothing is left that could choose one, and the
    learning rate has fallen to zero at the end."""
    whole = pool_splits([parts.train, parts.dev])
    soft = _soft_targets(configs[0], whole)
    seeds = [seed for each in configs for seed in _seeds_of(each)]
    models = [build_model(whole, configs[0].model, seed=seed).to(device) for seed in seeds]
    trainings = [
        Training(
            model=model,
            train=(rows := Rows.prepare(model, whole, device, soft)),
            dev=rows,
            seed=seed,
            chooses_epoch=False,
        )
        for seed, model in zip(seeds, models, strict=True)
    ]
    fit_together(trainings, configs[0].fit)
    return [
        _Refitted(model=join_members(members), train=whole) for members in _by_run(configs, models)
    ]


def _soft_targets(config: TrainConfig, train: FusionData) -> SoftTargets | None:
    if config.distil is None:
        return None
    return soft_targets(config.distil, train, config.fit.loss.teacher_temperature)


def _seeds_of(config: TrainConfig) -> range:
    return range(config.seed, config.seed + config.ensemble)


def _by_run(configs: Sequence[TrainConfig], each: Sequence[Value]) -> list[list[Value]]:
    """Those of all members, run after run -> a list for each run."""
    rest = iter(each)
    return [[next(rest) for _ in range(config.ensemble)] for config in configs]


def _first_model(
    config: TrainConfig, train: FusionData, start: Checkpoint | None, *, seed: int
) -> FusionModel:
    """Before its first step: random weights, or those of the run to go on from."""
    model = build_model(train, config.model, seed=seed)
    if start is not None:
        check_shape(start.dims, model.dims)
        assert isinstance(start.model, FusionModel)  # checked: one member
        check_recipe(start.recipe, start.projection_hash, train)
        take_weights(model, start.model)
    return model


def _open_run_of(config: TrainConfig, train: FusionData) -> AbstractContextManager[Path]:
    name = f"{'+'.join(train.modalities)}-{train.input}-seed{config.seed}"
    named = (config.features, config.start, config.distil)
    inputs = [path for path in named if path is not None]
    return open_run(config.out, overwrite=config.overwrite, name=name, inputs=inputs)


def _write_run(
    described: Checkpoint,
    run: Path,
    fits: Sequence[FitResult],
    parts: Parts,
    seconds: float,
    *,
    refitted: _Refitted | None,
    draw: bool,
) -> TrainResult:
    """Measures a fitted model and writes its run; the checkpoint last, which makes it one.

    fits: of its members; of one model alone where it is no ensemble
    refitted: the model that the run gets instead. It cannot be measured on what it was trained on:
        scores and decoding are those of the fitted one, whose dialogues were held out.
    """
    train, dev = parts.train, parts.dev
    checkpoint = _with_decoding(described, train, dev)
    history = mean_history([each.history for each in fits])
    best = max(history, key=lambda each: each.score)
    seed = described.settings["seed"]
    result = TrainResult(
        run=run,
        epochs=history[-1].epoch,
        best_epoch=best.epoch,
        seconds=seconds,
        train=report_of(checkpoint, predict_rows(checkpoint, train, run=run.name)),
        dev=report_subsets(checkpoint, predict_subsets(checkpoint, dev, run=run.name)),
        has_test=(checkpoint.require_features() / "test.h5").is_file(),
        rows_refitted=None if refitted is None else len(refitted.train),
        members=tuple(
            Member(seed=seed + number, best=each.best) for number, each in enumerate(fits)
        )
        if len(fits) > 1
        else (),
    )
    write_whole(run / METRICS, _metrics_json(result, best))
    if draw:
        from fusion.evaluation.plots import plot_report
        from fusion.training.curves import plot_history  # matplotlib takes seconds to load

        plot_report(result.dev, run)
        plot_history(history, run / "training.png", title=run.name)
    if refitted is not None:
        emotion, sentiment = count_train_labels(refitted.train)
        checkpoint = dataclasses.replace(
            checkpoint,
            model=refitted.model,
            emotion_counts=emotion,
            sentiment_counts=sentiment,
            set_aside=None,  # it has seen them
        )
    write_checkpoint(run, checkpoint)
    return result


class _EpochLog:
    """One line per epoch in `history.jsonl`, and what the run's trackers are told. Of an ensemble
    that is the mean of its members, whose own epochs are in `members.jsonl`.

    Its methods raise StorageError.
    """

    def __init__(self, run: Path, config: TrainConfig) -> None:
        self._run = run
        self._is_ensemble = config.ensemble > 1
        self._waiting: list[EpochResult] = []  # what members found in the epoch that is going on
        self._trackers = open_trackers(config.tracker, run, to_values(describe_config(config)))

    def write(self, result: EpochResult, *, seed: int = 0) -> None:
        if not self._is_ensemble:
            self._write_mean(result)
            return
        if self._waiting and self._waiting[0].epoch != result.epoch:
            self._write_waiting()
        self._waiting.append(result)
        self._append(MEMBER_HISTORY, {"seed": seed} | dataclasses.asdict(result))

    def _write_waiting(self) -> None:
        if self._waiting:
            self._write_mean(mean_of(self._waiting))
            self._waiting = []

    def _write_mean(self, result: EpochResult) -> None:
        self._append(HISTORY, dataclasses.asdict(result))
        for tracker in self._trackers:
            tracker.add_epoch(result)

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        try:
            with (self._run / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:
            raise StorageError(f"{self._run}: cannot write the training log: {error}") from error

    def write_scores(self, result: TrainResult) -> None:
        self._write_waiting()
        for tracker in self._trackers:
            tracker.add_tables(final_tables(result.train, result.dev))

    def close(self) -> None:
        with ExitStack() as closed:
            for tracker in self._trackers:
                closed.callback(tracker.close)


def _describe_run(
    config: TrainConfig, model: Fusion, parts: Parts, start: Checkpoint | None
) -> Checkpoint:
    train = parts.train
    said = dataclasses.replace(
        config,
        start=config.start and config.start.absolute(),
        distil=config.distil and config.distil.absolute(),
        dev_share=None if parts.set_aside is None else parts.set_aside.share,
    )
    emotion, sentiment = count_train_labels(train, start)
    return Checkpoint(
        dims=model.dims,
        model=model,
        recipe=train.recipe,
        projection_hash=train.projection_hash,
        emotion_counts=emotion,
        sentiment_counts=sentiment,
        settings=describe_config(said),
        features=config.features.absolute(),
        encoders_run=train.encoders_run,
        untrained=parts.untrained,
        set_aside=parts.set_aside,
    )


def count_train_labels(
    train: FusionData, start: Checkpoint | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rows of each emotion and each sentiment that a head learned from: of train, or of what the
    start was trained on where train has no such label."""
    emotion = tuple(count_labels(train.emotion, len(EMOTIONS)).tolist())
    sentiment = tuple(count_labels(train.sentiment, len(SENTIMENTS)).tolist())
    if start is None:
        return emotion, sentiment
    return (
        emotion if any(emotion) else start.emotion_counts,
        sentiment if any(sentiment) else start.sentiment_counts,
    )


def _with_decoding(checkpoint: Checkpoint, train: FusionData, dev: FusionData) -> Checkpoint:
    allowed = allowed_pairs(train.emotion.numpy(), train.sentiment.numpy(), checkpoint.untrained)
    predictions = predict_rows(checkpoint, dev, run="")
    return dataclasses.replace(checkpoint, decoding=fit_decoding(predictions, allowed))


def _metrics_json(result: TrainResult, best: EpochResult) -> bytes:
    values = {
        "run": result.run.name,
        "best": dataclasses.asdict(best),
        "members": to_values(result)["members"],
        "epochs": result.epochs,
        "seconds": result.seconds,
        "set_aside": to_values(result.dev.set_aside),
        "train": result.train.to_dict(),
        "dev": result.dev.to_dict(),
    }
    return json_bytes(values)
