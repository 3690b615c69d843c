"""`meld search`: which settings of `train-fusion` are best on dev.

    settings drawn at random ── train, 1 seed each ── the best third ── 3 seeds ── ... ──> best.toml

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) over seeds: what is drawn is
noise for the most part, a training takes seconds on cached features, and a mean over more seeds is
what tells settings apart. The seeds of a draw are trained side by side as one batched model. The
first draw is the defaults, so that the result says what the search gained. Dev measures, and test
is not read.

Every draw's trainings are a file in `trials/`, so that the same command goes on where it stopped.
Not by Ray Tune: trainings would each be a process that loads the features, and start slower than
they train.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fusion.data.batches import Rows
from fusion.data.set_aside import check_share
from fusion.data.split import FusionData
from fusion.experiments.search_page import render_search
from fusion.experiments.search_report import SearchReport, Trial, what_mattered
from fusion.experiments.search_space import Draw, draw_settings, open_settings
from fusion.model.dims import InputKind, ModelConfig
from fusion.training.fit import FitConfig, Training, fit_together
from fusion.training.history import EpochResult
from fusion.training.parts import Parts, load_parts
from fusion.training.train import build_model, check_modalities, choose_device
from pipeline.errors import CacheCorrupt, StorageError, UsageError
from pipeline.schema import Modality
from pipeline.settings import build_config, describe_config, flatten, merge_settings
from pipeline.system.files import write_whole
from pipeline.system.json_values import json_bytes
from pipeline.system.resources import num_cores

RESULT, BEST, PAGE = "search.json", "best.toml", "search.html"
_FEWER = 3  # one in so many goes on, with so many times the seeds


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
        if not 1 <= self.trials <= 10_000:
            raise ValueError(f"trials must be 1 to 10000, not {self.trials}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), not {self.seed}")

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
    """Raises UsageError, InputError, StorageError, CacheCorrupt or MismatchError."""
    parts = load_parts(
        config.features,
        modalities=config.modalities,
        input=config.input,
        dev_share=config.dev_share,
        loss=config.fit.loss,
    )
    space = open_settings(parts.train.modalities, config.kept, config.model)
    if not space:
        raise UsageError("every setting is fixed, and nothing is left to search")
    draws = draw_settings(space, config.trials, config.seed)
    work = _Work(config, parts, draws, on_progress)
    rungs = _rungs(len(draws))
    for rung, (count, seeds) in enumerate(rungs):
        before = [trial for trial in work.trials if trial.rung == rung - 1]
        ranked = sorted(before, key=lambda trial: trial.score, reverse=True)
        goes_on = [trial.number for trial in ranked[:count]] if rung else list(range(count))
        if rung and 0 not in goes_on:
            goes_on.append(0)  # the defaults, to compare with
        for number in goes_on:
            work.train(number, seeds=seeds, rung=rung)
    trials = sorted(work.trials, key=lambda trial: (trial.rung, trial.score), reverse=True)
    report = SearchReport(
        out=config.out,
        trials=tuple(trials),
        mattered=tuple(what_mattered(work.first, space)),
        reused=work.reused,
        rows=len(parts.dev),
        fingerprint=parts.train.recipe.fingerprint,
    )
    write_whole(config.out / RESULT, json_bytes(report.to_dict()))
    write_whole(config.out / BEST, _toml(config, report.best).encode())
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
    """The trainings of a search, and their files."""

    def __init__(
        self, config: SearchConfig, parts: Parts, draws: Sequence[Draw], on_progress: OnProgress
    ) -> None:
        self.config, self.parts, self.draws, self.on_progress = config, parts, draws, on_progress
        self.device = choose_device(config.device)
        self.reused = 0
        self._by_number: dict[int, Trial] = {}
        self.first: list[Trial] = []  # as of the first rung
        self._done = 0
        rungs = _rungs(len(draws))
        extra = sum(seeds for _, seeds in rungs[1:])  # the defaults may go on beside the best
        self._in_all = sum(count * seeds for count, seeds in rungs) + extra
        self._folder = config.out / "trials"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {self._folder}: {error}") from error
        self._data = _hash_data(parts.train, parts.dev)

    @property
    def trials(self) -> list[Trial]:
        return list(self._by_number.values())

    def train(self, number: int, *, seeds: int, rung: int) -> None:
        """Of seeds 0 to `seeds`, those that an earlier rung has not."""
        values = describe_config(self.config)
        nested = _nested(self.draws[number])
        model = build_config(ModelConfig, merge_settings(values["model"], nested.get("model", {})))
        fit = build_config(FitConfig, merge_settings(values["fit"], nested.get("fit", {})))
        known = self._by_number.get(number)
        best = list(known.best) if known else []
        wanted = range(len(best), seeds)
        told = [self._data, describe_config(model), describe_config(fit), wanted.start, seeds]
        name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
        path = self._folder / f"{name}.json"
        found = _read_results(path, len(wanted))
        if found is None:
            found = self._fit(model, fit, wanted)
            write_whole(path, json_bytes({"best": [asdict(each) for each in found]}))
        else:
            self.reused += len(found)
        trial = Trial(number=number, settings=self.draws[number], best=(*best, *found), rung=rung)
        self._by_number[number] = trial
        if rung == 0:
            self.first.append(trial)
        self._done += seeds
        of_rung = [each.score for each in self.trials if each.rung == rung]
        self.on_progress(min(self._done, self._in_all), self._in_all, max(of_rung))

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


def _read_results(path: Path, count: int) -> list[EpochResult] | None:
    """None where they are not trained yet."""
    try:
        results = [EpochResult(**values) for values in json.loads(path.read_bytes())["best"]]
        if len(results) != count or not all(math.isfinite(each.score) for each in results):
            raise ValueError(f"{len(results)} results, wanted {count}")
        return results
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: no trial of a search ({error!r}); delete it") from error


def _hash_data(*splits: FusionData) -> str:
    digest = hashlib.sha256()
    for data in splits:
        digest.update(data.recipe.fingerprint.encode())
        digest.update(json.dumps([list(map(str, data.keys)), data.speaker]).encode())
        for values in (data.present, data.emotion, data.sentiment, *data.features.values()):
            digest.update(values.contiguous().numpy().data)
    return digest.hexdigest()


def _nested(settings: Draw) -> dict[str, Any]:
    """{"fit.loss.label_smoothing": 0.1} -> {"fit": {"loss": {"label_smoothing": 0.1}}}"""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *tables, leaf = name.split(".")
        place = nested
        for table in tables:
            place = place.setdefault(table, {})
        place[leaf] = value
    return nested


def _toml(config: SearchConfig, best: Trial) -> str:
    """Of `meld train-fusion --config`."""
    settings = _nested(best.settings)
    values = describe_config(config)
    lines = ["# Found by meld search; meld train-fusion --config takes it."]
    if config.modalities is not None:
        lines.append(f"modalities = {json.dumps(list(config.modalities))}")
    lines.append(f"input = {json.dumps(config.input)}")
    for table, defaults in (("model", ModelConfig()), ("fit", FitConfig())):
        whole = flatten(merge_settings(values[table], settings.get(table, {})))
        plain = flatten(describe_config(defaults))
        changed = {
            name: value
            for name, value in whole.items()
            if value is not None and (value != plain[name] or f"{table}.{name}" in best.settings)
        }
        by_table: dict[str, list[str]] = {}
        for name, value in changed.items():
            inner, _, leaf = name.rpartition(".")
            by_table.setdefault(f"{table}.{inner}" if inner else table, []).append(
                f"{leaf} = {json.dumps(value)}"
            )
        for name, entries in by_table.items():
            lines += ["", f"[{name}]", *entries]
    return "\n".join(lines) + "\n"
