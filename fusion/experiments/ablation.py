"""`meld ablate`: every subset of modalities x every fusion type x seeds, as one table and a plot.

Each cell of the table is a file that is written atomically, so a stopped ablation is resumed.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fusion.data.batches import Rows
from fusion.data.load import load_split
from fusion.data.set_aside import SetAside, check_share
from fusion.data.split import FusionData, check_recipe
from fusion.evaluation.bootstrap import Interval, mean_interval
from fusion.evaluation.scores import weighted_f1
from fusion.evaluation.test_evaluations import record_evaluation
from fusion.experiments.result_folder import ResultFolder
from fusion.inference.predict import predict
from fusion.inference.subsets import choose_subsets
from fusion.labels import Head, Labels
from fusion.model.dims import FusionType, InputKind, ModelConfig
from fusion.model.joins import JOINS
from fusion.training.build import build_model, choose_device
from fusion.training.config import (
    check_layers,
    check_modalities,
    check_modality_dropout,
    check_projection,
)
from fusion.training.fit import FitConfig, Training, fit_together
from fusion.training.losses import check_teacher
from fusion.training.parts import Parts, load_parts
from pipeline.errors import CacheCorrupt, InputError, StorageError, UsageError
from pipeline.recipe import TestClips
from pipeline.schema import EMOTIONS, SENTIMENTS, Modality
from pipeline.settings import build_config, describe_config
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED, json_bytes, to_values
from pipeline.system.resources import num_cores

RESULT, PICTURE, CELLS = "ablation.json", "ablation.png", "cells"
ABLATION = ResultFolder(
    kind="ablation",
    parts=CELLS,
    part=re.compile(r"[a-z+]+-[a-z]+-[0-9a-f]{12}\.json"),
    results=(RESULT, PICTURE),
)

_NO_SINGLE_FUSION = "model.fusion: an ablation trains several; name them with --fusion, or fusions"

Bar = tuple[float, float, float]  # a mean and its bounds
OnProgress = Callable[[int, int], None]  # cells done, cells in all


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """Which models to train, and what they are measured on.

    features: folder of the feature caches
    modalities: modalities whose subsets are trained; None takes all that the caches have
    fusions: fusion types; None takes all five. They replace model.fusion, which is refused
    input: raw features, or their 128-d embeddings
    split: split to measure on. dev also chooses the epochs, which makes all cells optimistic alike;
        each run that measures on test is recorded in `out` as one test evaluation
    seeds: number of seeds of each cell
    dev_share: share of train's dialogues that is held out as dev: it chooses the epoch and is not
        trained on; None takes the dev cache or, where there is none, 0.1
    out: folder to write the results to
    device: "auto" uses a GPU if there is one
    """

    features: Path = Path("features")
    modalities: tuple[Modality, ...] | None = None
    fusions: tuple[FusionType, ...] | None = None
    input: InputKind = "raw"
    split: Literal["dev", "test"] = "dev"
    seeds: int = 5
    dev_share: float | None = None
    out: Path = Path("runs/ablation")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    model: ModelConfig = field(default_factory=ModelConfig)
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        if self.dev_share is not None:
            check_share(self.dev_share)
        check_teacher(self.fit.loss, None, "fit.loss")
        if self.model.fusion != ModelConfig().fusion:
            raise ValueError(_NO_SINGLE_FUSION)
        for name in self.fusions or ():
            if name not in JOINS:
                raise ValueError(f"fusions are {', '.join(JOINS)}, not {name!r}")
        if self.fusions is not None and len(set(self.fusions)) != len(self.fusions):
            raise ValueError(f"each fusion once, not {', '.join(self.fusions)}")
        if self.fusions == ():
            raise ValueError("at least one fusion")
        if not 1 <= self.seeds <= 1000:  # all of them are in memory at once
            raise ValueError(f"seeds must be in 1 to 1000, not {self.seeds}")
        if self.split not in ("dev", "test"):
            raise ValueError(f"split must be dev or test, not {self.split!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "AblateConfig":
        """From a TOML file's tables: `[fit]`, `[fit.loss]`, `[model]`. Raises UsageError."""
        config = build_config(cls, values)
        if "fusion" in values.get("model", {}):
            raise UsageError(f"settings: {_NO_SINGLE_FUSION}")
        check_projection(config.fusions or tuple(JOINS), config.model)
        if config.modalities is not None:
            check_modality_dropout(config.modalities, config.fit.modality_dropout)
        return config


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One subset with one fusion: weighted F1 of each seed; intervals of their means over other
    dialogues, None where there is one dialogue or no label."""

    modalities: tuple[Modality, ...]
    fusion: FusionType
    emotion_f1: tuple[float, ...]
    sentiment_f1: tuple[float, ...]
    emotion_interval: Interval | None
    sentiment_interval: Interval | None

    @property
    def name(self) -> str:
        return "+".join(self.modalities)

    @property
    def emotion_mean(self) -> float | None:
        """None without labels."""
        return float(np.mean(self.emotion_f1)) if self.emotion_f1 else None

    @property
    def sentiment_mean(self) -> float | None:
        return float(np.mean(self.sentiment_f1)) if self.sentiment_f1 else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Cell":
        """Raises AttributeError, KeyError, TypeError or ValueError where `values` is no such
        thing."""
        intervals = {
            name: None
            if values[name] is None
            else Interval(**{bound: float(value) for bound, value in values[name].items()})
            for name in ("emotion_interval", "sentiment_interval")
        }
        return cls(
            modalities=tuple(values["modalities"]),
            fusion=values["fusion"],
            emotion_f1=tuple(map(float, values["emotion_f1"])),
            sentiment_f1=tuple(map(float, values["sentiment_f1"])),
            **intervals,
        )


@dataclass(frozen=True, kw_only=True)
class StoredAblation:
    """What `ablation.json` says, for a report."""

    split: str
    cells: tuple[Cell, ...]


def read_ablation(path: Path) -> StoredAblation:
    """Raises InputError where it is no such file."""
    try:
        values = json.loads(path.read_bytes())
        cells = tuple(Cell.from_dict(row) for row in values["rows"])
        return StoredAblation(split=str(values["split"]), cells=cells)
    except OSError as error:
        raise InputError(f"--ablation {path}: {error.strerror}") from error
    except MALFORMED as error:
        raise InputError(f"--ablation {path}: not what meld ablate writes ({error!r})") from error


@dataclass(frozen=True, kw_only=True)
class AblationReport:
    """cells: subset by subset, the smallest first. reused: number of cells that an earlier run
    computed.

    set_aside: the dialogues of train that are dev; None where dev has a cache
    foreign: modalities whose features were imported, and the tool that made them
    """

    out: Path
    split: str
    rows: int
    seeds: int
    fingerprint: str
    random_modalities: tuple[Modality, ...]
    test_clips: TestClips | None
    cells: tuple[Cell, ...]
    reused: int
    test_evaluations: int
    set_aside: SetAside | None = None
    foreign: Mapping[Modality, str] = field(default_factory=dict)

    @property
    def best(self) -> Cell | None:
        """By emotion or, where none is measured, by sentiment; None where neither is."""
        for name in ("emotion_mean", "sentiment_mean"):
            measured = [cell for cell in self.cells if getattr(cell, name) is not None]
            if measured:
                return max(measured, key=attrgetter(name))
        return None

    def to_dict(self) -> dict[str, Any]:
        """As `ablation.json`: only what a repeated run says again."""
        return {
            "split": self.split,
            "rows_measured": self.rows,
            "seeds": self.seeds,
            "fingerprint": self.fingerprint,
            "random_modalities": list(self.random_modalities),
            "foreign": dict(self.foreign),
            "test_clips": self.test_clips,
            "test_evaluations": self.test_evaluations,
            "set_aside": to_values(self.set_aside),
            "rows": [to_values(cell) for cell in self.cells],
        }


def ablate(config: AblateConfig, on_progress: OnProgress = lambda *_: None) -> AblationReport:
    """Raises UsageError, InputError, StorageError or RecipeMismatch."""
    ABLATION.refuse_other(config.out)
    parts, measured = _load(config)
    with ABLATION.open(config.out):
        return _ablate(config, parts, measured, on_progress)


def _ablate(
    config: AblateConfig, parts: Parts, measured: FusionData, on_progress: OnProgress
) -> AblationReport:
    train, dev = parts.train, parts.dev
    cells = [
        (subset, fusion)
        for subset in choose_subsets(train.modalities)
        for fusion in config.fusions or tuple(JOINS)
    ]
    hashes = _hash_cells(config, (train, dev, measured))
    done: list[Cell] = []
    reused = 0
    num_evaluations = record_evaluation(config.out, "ablate") if config.split == "test" else 0
    for number, (subset, fusion) in enumerate(cells):
        on_progress(number, len(cells))
        path = config.out / CELLS / f"{'+'.join(subset)}-{fusion}-{hashes[subset][:12]}.json"
        cell = _read_cell(path, subset, fusion)
        if cell is None:
            selected = [data.select(subset) for data in (train, dev, measured)]
            cell = _measure_cell(config, fusion, *selected)
            write_whole(path, json_bytes(to_values(cell)))
        else:
            reused += 1
        done.append(cell)
    on_progress(len(cells), len(cells))
    report = AblationReport(
        out=config.out,
        split=config.split,
        rows=len(measured),
        seeds=config.seeds,
        fingerprint=train.recipe.fingerprint,
        random_modalities=tuple(
            name for name in train.recipe.random_modalities if name in train.modalities
        ),
        foreign={
            name: tool for name, tool in train.recipe.foreign.items() if name in train.modalities
        },
        test_clips=train.recipe.test_clips,
        cells=tuple(done),
        reused=reused,
        test_evaluations=num_evaluations,
        set_aside=parts.set_aside,
    )
    write_whole(config.out / RESULT, json_bytes(report.to_dict()))
    from fusion.evaluation.plots import plot_bars  # matplotlib takes seconds to load

    head: Head = "emotion" if any(cell.emotion_f1 for cell in report.cells) else "sentiment"
    series: dict[str, list[Bar | None]] = {}
    for cell in report.cells:
        series.setdefault(cell.fusion, []).append(_bar(cell, head))
    plot_bars(
        list(dict.fromkeys(cell.name for cell in report.cells)),
        series,
        config.out / PICTURE,
        title=f"on {report.split}, mean of {report.seeds} seeds, 95 % interval over dialogues",
        measured=f"{head} weighted F1",
    )
    return report


def _load(config: AblateConfig) -> tuple[Parts, FusionData]:
    """The rows to train on, to choose the epoch on and to measure on; labels of untrained heads are
    removed, so that they are not measured."""
    parts = load_parts(
        config.features,
        modalities=config.modalities,
        input=config.input,
        dev_share=config.dev_share,
        loss=config.fit.loss,
    )
    train = parts.train
    check_modality_dropout(train.modalities, config.fit.modality_dropout)
    check_layers(train.features, config.model)
    if config.split == "dev":
        return parts, parts.dev
    test = load_split(config.features, "test", modalities=train.modalities, input=config.input)
    check_recipe(train.recipe, train.projection_hash, test)
    return parts, test.without_labels(parts.untrained)


def _hash_cells(
    config: AblateConfig, splits: Sequence[FusionData]
) -> dict[tuple[Modality, ...], str]:
    """Of each subset: all that decides its cells but the fusion. Settings, rows and features."""
    unsaid = replace(config, out=Path(), features=Path(), modalities=None, fusions=None)
    rows = [
        [list(map(str, data.keys)), data.speaker, data.emotion.tolist(), data.sentiment.tolist()]
        for data in splits
    ]
    made = [splits[0].recipe.fingerprint, splits[0].projection_hash]
    told = json.dumps([describe_config(unsaid), made, rows], sort_keys=True)
    modalities = splits[0].modalities
    features = {name: [_hash_features(data, name) for data in splits] for name in modalities}
    return {
        subset: hashlib.sha256(
            json.dumps([told, *(features[name] for name in subset)]).encode()
        ).hexdigest()
        for subset in choose_subsets(modalities)
    }


def _hash_features(data: FusionData, modality: Modality) -> str:
    present = data.present[:, data.modalities.index(modality)]
    digest = hashlib.sha256(present.numpy().tobytes())
    if modality in data.features:
        digest.update(data.features[modality].numpy().data)
    return digest.hexdigest()


def _read_cell(path: Path, subset: tuple[Modality, ...], fusion: FusionType) -> Cell | None:
    """None where it is not computed yet."""
    try:
        cell = Cell.from_dict(json.loads(path.read_bytes()))
        if (cell.modalities, cell.fusion) != (subset, fusion):
            raise ValueError(f"it is of {cell.name}, {cell.fusion}")
        return cell
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except MALFORMED as error:
        raise CacheCorrupt(f"{path}: no cell of an ablation ({error!r}); delete it") from error


def _measure_cell(
    config: AblateConfig,
    fusion: FusionType,
    train: FusionData,
    dev: FusionData,
    measured: FusionData,
) -> Cell:
    device = choose_device(config.device)
    model = replace(config.model, fusion=fusion)
    models = [build_model(train, model, seed=seed).to(device) for seed in range(config.seeds)]
    rows, chosen = (Rows.prepare(models[0], data, device) for data in (train, dev))
    trainings = [
        Training(model=each, train=rows, dev=chosen, seed=seed) for seed, each in enumerate(models)
    ]
    fit_together(trainings, config.fit, cores=num_cores())
    seen = chosen if measured is dev else Rows.prepare(models[0], measured, device)
    outputs = [predict(each, seen) for each in models]
    emotion = np.stack([each.emotion_logits.argmax(1).cpu().numpy() for each in outputs])
    sentiment = np.stack([each.sentiment_logits.argmax(1).cpu().numpy() for each in outputs])
    dialogue = measured.turns.dialogue.numpy()
    true = (measured.emotion.numpy(), measured.sentiment.numpy())
    return Cell(
        modalities=train.modalities,
        fusion=fusion,
        emotion_f1=_scores(true[0], emotion),
        sentiment_f1=_scores(true[1], sentiment),
        emotion_interval=mean_interval(true[0], emotion, dialogue, len(EMOTIONS)),
        sentiment_interval=mean_interval(true[1], sentiment, dialogue, len(SENTIMENTS)),
    )


def _scores(true: Labels, predicted: Labels) -> tuple[float, ...]:
    """Empty where there are no labels."""
    scores = [weighted_f1(true, labels) for labels in predicted]
    return tuple(score for score in scores if score is not None)


def _bar(cell: Cell, head: Head) -> Bar | None:
    """None where there are no labels; without an interval its bounds are the mean itself."""
    mean, bounds = getattr(cell, f"{head}_mean"), getattr(cell, f"{head}_interval")
    if mean is None:
        return None
    return (mean, mean, mean) if bounds is None else (mean, bounds.low, bounds.high)
