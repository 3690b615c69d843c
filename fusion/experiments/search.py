"""`meld search`: which settings of `train-fusion` are best on dev.

    settings drawn at random ── train, 1 seed each ── the best third ── 3 seeds ── ... ──> best.toml

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) over seeds: what is drawn is
noise for the most part, a training takes seconds on cached features, and a mean over more seeds is
what tells settings apart. The seeds of a draw are trained side by side as one batched model. The
first draw is the defaults, so that the result says what the search gained. Dev measures, and test
is not read.

Every draw's trainings are a file in `trials/`, so that the same command goes on where it stopped.
Every draw is built from what its `best.toml` would say, before the first training, so that
`train-fusion` takes whichever is best.
Not by Ray Tune: trainings would each be a process that loads the features, and start slower than
they train.
"""

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from fusion.data.batches import Rows
from fusion.data.set_aside import check_share
from fusion.data.split import FusionData
from fusion.experiments.search_folder import (
    BEST,
    PAGE,
    RESULT,
    SEARCH,
    Trained,
    read_trial,
    trial_path,
    write_trial,
)
from fusion.experiments.search_page import render_search
from fusion.experiments.search_report import FailedTrial, SearchReport, Trial, what_mattered
from fusion.experiments.search_space import Draw, draw_settings, open_settings
from fusion.model.dims import InputKind, ModelConfig
from fusion.model.joins import JOINS
from fusion.training.build import build_model, choose_device
from fusion.training.config import (
    TrainConfig,
    check_layers,
    check_modalities,
    check_modality_dropout,
)
from fusion.training.fit import FitConfig, Training, fit_together
from fusion.training.history import EpochResult
from fusion.training.losses import check_teacher
from fusion.training.parts import Parts, load_parts
from pipeline.errors import LossNotFinite, UsageError
from pipeline.schema import Modality
from pipeline.settings import build_config, describe_config, flatten, toml_value
from pipeline.system.files import write_whole
from pipeline.system.json_values import json_bytes
from pipeline.system.resources import num_cores

_FEWER = 3  # one in so many goes on, with so many times the seeds
_OWN = ("out", "seed")  # of the search, where train-fusion has others of the name


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is searched, and on which caches.

    features: folder of the feature caches
    modalities: modalities that the model gets; None takes all that the caches have
    input: raw features, or their 128-d embeddings
    trials: number of settings that are drawn, the defaults among them
    seed: random seed of what is drawn; trainings have seeds from 0 on
    dev_share: share of train's dialogues that is held out as dev, as in train-fusion; None takes
        the dev cache or, where there is none, 0.1
    out: folder of the search
    device: "auto" uses a GPU if there is one
    fixed: settings that are not searched, as "fit.epochs"; those of [fit] and [model] that differ
        from the defaults are not either
    """

    features: Path = Path("features")
    modalities: tuple[Modality, ...] | None = None
    input: InputKind = "raw"
    trials: int = 27
    seed: int = 0
    dev_share: float | None = None
    out: Path = Path("runs/search")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    fixed: tuple[str, ...] | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        if self.dev_share is not None:
            check_share(self.dev_share)
        check_teacher(self.fit.loss, None, "fit.loss")
        if not 1 <= self.trials <= 10_000:
            raise ValueError(f"trials must be 1 to 10000, not {self.trials}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), not {self.seed}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "SearchConfig":
        """From a TOML file's tables: `[fit]`, `[fit.loss]`, `[model]`. Raises UsageError, also
        where `train-fusion` would refuse these settings."""
        config = build_config(cls, values)
        read_best(best_toml(config, {}))
        return config

    @property
    def kept(self) -> tuple[str, ...]:
        """The settings that are not searched."""
        said = flatten({"fit": describe_config(self.fit), "model": describe_config(self.model)})
        usual = flatten(
            {"fit": describe_config(FitConfig()), "model": describe_config(ModelConfig())}
        )
        return tuple(sorted({*(self.fixed or ()), *(n for n, v in said.items() if v != usual[n])}))


OnProgress = Callable[[int, int, float | None], None]  # trainings done, in all, best score so far


def search(config: SearchConfig, on_progress: OnProgress = lambda *_: None) -> SearchReport:
    """A draw whose loss becomes no number counts as a bad one; that of the defaults is an error.

    Raises UsageError, InputError, StorageError, CacheCorrupt or MismatchError.
    """
    SEARCH.refuse_other(config.out)
    parts = load_parts(
        config.features,
        modalities=config.modalities,
        input=config.input,
        dev_share=config.dev_share,
        loss=config.fit.loss,
    )
    check_modality_dropout(parts.train.modalities, config.fit.modality_dropout)
    check_layers(parts.train.features, config.model)
    space = open_settings(parts.train.modalities, config.kept, config.model)
    if not space:
        raise UsageError("every setting is fixed, and nothing is left to search")
    draws = draw_settings(
        space, config.trials, config.seed, check=lambda draw: read_best(best_toml(config, draw))
    )
    device = choose_device(config.device)
    with SEARCH.open(config.out):
        work = _Work(config, parts, draws, device, on_progress)
        for rung, (count, seeds) in enumerate(_rungs(len(draws))):
            work.train_rung(rung, count, seeds)
        report = SearchReport(
            out=config.out,
            trials=tuple(
                sorted(work.trials, key=lambda each: (each.rung, each.score), reverse=True)
            ),
            failed=tuple(work.failed),
            mattered=tuple(what_mattered(work.first, space)),
            reused=work.reused,
            rows=len(parts.dev),
            fingerprint=parts.train.recipe.fingerprint,
        )
        write_whole(config.out / RESULT, json_bytes(report.to_dict()))
        write_whole(config.out / BEST, best_toml(config, report.best.settings))
        write_whole(config.out / PAGE, render_search(report).encode())
    return report


def _rungs(trials: int) -> list[tuple[int, int]]:
    """(draws, seeds of each) of each rung, down to one to three draws."""
    rungs = [(trials, 1)]
    while rungs[-1][0] >= _FEWER:
        count, seeds = rungs[-1]
        rungs.append((max(1, count // _FEWER), seeds * _FEWER))
    return rungs


class _Work:
    """The trainings of a search."""

    def __init__(
        self,
        config: SearchConfig,
        parts: Parts,
        draws: Sequence[Draw],
        device: torch.device,
        on_progress: OnProgress,
    ) -> None:
        self.parts, self.draws, self.device = parts, draws, device
        self.out, self.on_progress = config.out, on_progress
        self.configs = [read_best(best_toml(config, draw)) for draw in draws]
        self.reused = 0
        self.first: list[Trial] = []  # as of the first rung
        self.failed: list[FailedTrial] = []
        self._by_number: dict[int, Trial] = {}
        self._done = 0
        rungs = _rungs(len(draws))
        extra = sum(seeds for _, seeds in rungs[1:])  # the defaults may go on beside the best
        self._in_all = sum(count * seeds for count, seeds in rungs) + extra
        self._data = _hash_data(parts.train, parts.dev)

    @property
    def trials(self) -> list[Trial]:
        """But for those that failed."""
        return list(self._by_number.values())

    def train_rung(self, rung: int, count: int, seeds: int) -> None:
        """The best `count` of the rung before, and the defaults; the next best in the place of one
        that fails."""
        before = [trial for trial in self.trials if trial.rung == rung - 1]
        ranked = sorted(before, key=lambda trial: trial.score, reverse=True)
        waiting = [trial.number for trial in ranked] if rung else list(range(count))
        while waiting and count:
            count -= self._train(waiting.pop(0), seeds=seeds, rung=rung)
        if 0 in waiting:  # to compare with
            self._train(0, seeds=seeds, rung=rung)

    def _train(self, number: int, *, seeds: int, rung: int) -> bool:
        """Of seeds 0 to `seeds`, those that an earlier rung has not; False where it fails."""
        model, fit = self.configs[number].model, self.configs[number].fit
        known = self._by_number.get(number)
        best = known.best if known else ()
        wanted = range(len(best), seeds)
        told = [self._data, describe_config(model), describe_config(fit), wanted.start, seeds]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        path = trial_path(self.out, digest)
        stored = read_trial(path, len(wanted))
        found = stored or self._try(model, fit, wanted)
        if found.failure is not None and number == 0:  # of the defaults
            raise LossNotFinite(found.failure)
        if stored is None:
            write_trial(path, found)
        else:
            self.reused += len(wanted)
        settings = self.draws[number]
        if found.failure is not None:
            self._by_number.pop(number, None)
            self.failed.append(
                FailedTrial(number=number, settings=settings, seeds=seeds, reason=found.failure)
            )
        else:
            trial = Trial(number=number, settings=settings, best=(*best, *found.best), rung=rung)
            self._by_number[number] = trial
            if rung == 0:
                self.first.append(trial)
        self._done += seeds
        of_rung = [each.score for each in self.trials if each.rung == rung]
        self.on_progress(min(self._done, self._in_all), self._in_all, max(of_rung, default=None))
        return found.failure is None

    def _try(self, model: ModelConfig, fit: FitConfig, seeds: Sequence[int]) -> Trained:
        try:
            return Trained(best=tuple(self._fit(model, fit, seeds)))
        except LossNotFinite as error:
            return Trained(failure=str(error))

    def _fit(self, model: ModelConfig, fit: FitConfig, seeds: Sequence[int]) -> list[EpochResult]:
        models = [build_model(self.parts.train, model, seed=seed).to(self.device) for seed in seeds]
        train, dev = (
            Rows.prepare(models[0], data, self.device)
            for data in (self.parts.train, self.parts.dev)
        )
        trainings = [
            Training(model=each, train=train, dev=dev, seed=seed)
            for seed, each in zip(seeds, models, strict=True)
        ]
        return [each.best for each in fit_together(trainings, fit, cores=num_cores())]


def _hash_data(*splits: FusionData) -> str:
    digest = hashlib.sha256()
    for data in splits:
        digest.update(data.recipe.fingerprint.encode())
        digest.update(json.dumps([list(map(str, data.keys)), data.speaker]).encode())
        for values in (data.present, data.emotion, data.sentiment, *data.features.values()):
            digest.update(values.contiguous().numpy().data)
    return digest.hexdigest()


def best_toml(config: SearchConfig, draw: Draw) -> bytes:
    """Of `meld train-fusion --config`: what differs from its defaults, so that it trains on what
    was searched, and all that was drawn; no projection of a fusion that was drawn and projects
    nothing.

    Raises UsageError where TOML cannot say it.
    """
    said, usual = flatten(describe_config(config)), flatten(describe_config(TrainConfig()))
    values = {name: said[name] for name in usual if name in said and name not in _OWN}
    values |= draw
    if "model.fusion" in draw and not JOINS[values["model.fusion"]].projects:
        del values["model.projection"]
    by_table: dict[str, list[str]] = {"": []}
    for name, value in values.items():
        if value is not None and (name in draw or value != usual[name]):
            table, _, leaf = name.rpartition(".")
            by_table.setdefault(table, []).append(f"{leaf} = {toml_value(value)}")
    lines = ["# Found by meld search; meld train-fusion --config takes it.", *by_table.pop("")]
    for table in sorted(by_table):
        lines += ["", f"[{table}]", *by_table[table]]
    try:
        return ("\n".join(lines) + "\n").encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"--features {str(config.features)!r}: {BEST} could not name it, as it is no UTF-8; "
            "rename the folder"
        ) from error


def read_best(content: bytes) -> TrainConfig:
    """As `train-fusion` would: what is trained is what the file says. Raises UsageError."""
    return TrainConfig.from_mapping(tomllib.loads(content.decode()))
