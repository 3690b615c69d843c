"""Where a training is followed beside its own files: TensorBoard, and Weights & Biases.

Both are told the same: the settings, every epoch, and the final scores as tables. The only file
that imports wandb.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fusion.evaluation.report import EvalReport
from fusion.training.history import EpochResult
from pipeline.errors import StorageError, UsageError
from pipeline.system.extras import needs_extra
from pipeline.system.one_line import is_utf_8

log = logging.getLogger(__name__)

TrackerName = Literal["tensorboard", "wandb"]
# Of Weights & Biases, in the run's folder: what `wandb sync` uploads.
WANDB_FOLDER = "wandb"
_PROJECT = "meld"


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """One table of final scores; an empty cell is None."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]


class Tracker(Protocol):
    """Follows one run. Every method raises StorageError where it cannot write."""

    def add_epoch(self, result: EpochResult) -> None: ...

    def add_tables(self, tables: Sequence[ScoreTable]) -> None:
        """The last thing of a run that is done."""

    def close(self) -> None:
        """Always called; without tables, the run has failed."""


def open_trackers(name: TrackerName, run: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """TensorBoard where it is installed and can write, and beside it what `name` asks for.

    Raises UsageError where that is not installed or cannot be set up, StorageError.
    """
    trackers: list[Tracker] = []
    with ExitStack() as opened:
        try:
            # Optional and slow to import: only a training pays for it.
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            log.info("no TensorBoard events: the package tensorboard is not installed")
        else:
            if is_utf_8(str(run)):
                trackers.append(TensorBoardTracker(SummaryWriter, run, settings))
                opened.callback(trackers[-1].close)
            else:
                log.info("no TensorBoard events: it takes no folder whose name is no UTF-8")
        if name == "wandb":
            trackers.append(WandbTracker(run, settings))
        opened.pop_all()
    return trackers


def final_tables(*reports: EvalReport) -> tuple[ScoreTable, ...]:
    """Both heads beside the majority baseline, and every class, of each report."""
    heads, classes = [], []
    for report in reports:
        for name, head in report.heads:
            model, majority = head.model, head.majority
            scores = (model.accuracy, model.weighted_f1, model.macro_f1, majority.weighted_f1)
            heads.append((report.split, name, *scores, head.rows))
            classes += [
                (report.split, name, each.label, each.precision, each.recall, each.f1, each.support)
                for each in model.classes
            ]
    scores_of = ("accuracy", "weighted_f1", "macro_f1", "majority_weighted_f1", "rows")
    of_class = ("label", "precision", "recall", "f1", "rows")
    return (
        ScoreTable(title="scores", columns=("split", "head", *scores_of), rows=tuple(heads)),
        ScoreTable(title="classes", columns=("split", "head", *of_class), rows=tuple(classes)),
    )


class TensorBoardTracker:
    """Event files in the run's folder: scalars by epoch, settings and tables as texts."""

    def __init__(self, writer: Any, run: Path, settings: Mapping[str, Any]) -> None:
        self._run = run
        with self._told_as_ours():
            self._events = writer(str(run))
            self._events.add_text("settings", f"```\n{json.dumps(settings, indent=2)}\n```")

    def add_epoch(self, result: EpochResult) -> None:
        with self._told_as_ours():
            for name, value in _curves(result).items():
                self._events.add_scalar(name, value, result.epoch)

    def add_tables(self, tables: Sequence[ScoreTable]) -> None:
        with self._told_as_ours():
            for table in tables:
                self._events.add_text(table.title, _markdown(table))

    def close(self) -> None:
        with self._told_as_ours():
            self._events.close()

    @contextmanager
    def _told_as_ours(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._run}: cannot write TensorBoard's events: {error}"
            ) from error


class WandbTracker:
    """A run of Weights & Biases in the run's folder. It is offline, and `wandb sync` uploads it,
    unless the environment says WANDB_MODE=online.

    Neither the machine, its user, its command line nor the code is recorded.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        with needs_extra("wandb"):
            import wandb
        self._wandb = wandb
        self._run = run
        self._is_done = False
        mode = os.environ.get("WANDB_MODE") or "offline"
        with self._told_as_ours():
            self._tracked = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or _PROJECT,
                name=run.resolve().name,
                dir=str(run),
                config=dict(settings),
                reinit="create_new",  # runs that are trained side by side
                settings=wandb.Settings(
                    mode=mode,
                    host="-",
                    silent=True,
                    console="off",
                    save_code=False,
                    disable_git=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_disable_machine_info=True,
                    x_save_requirements=False,
                ),
            )
        if mode == "offline":
            log.info("Weights & Biases: offline; wandb sync %s uploads it", self._tracked.dir)

    def add_epoch(self, result: EpochResult) -> None:
        with self._told_as_ours():
            self._tracked.log(_curves(result), step=result.epoch)

    def add_tables(self, tables: Sequence[ScoreTable]) -> None:
        with self._told_as_ours():
            values: dict[str, Any] = {}
            for table in tables:
                rows = [list(row) for row in table.rows]
                values[table.title] = self._wandb.Table(columns=list(table.columns), data=rows)
            self._tracked.log(values)
        self._is_done = True

    def close(self) -> None:
        with self._told_as_ours():
            self._tracked.finish(exit_code=0 if self._is_done else 1)

    @contextmanager
    def _told_as_ours(self) -> Iterator[None]:
        try:
            yield
        except self._wandb.errors.UsageError as error:  # no key to log in with, for one
            raise UsageError(f"Weights & Biases: {_line(error)}") from error
        except (self._wandb.errors.Error, OSError) as error:
            raise StorageError(f"{self._run}: Weights & Biases: {_line(error)}") from error


def _curves(result: EpochResult) -> dict[str, float]:
    values = dataclasses.asdict(result)
    return {name: each for name, each in values.items() if name != "epoch" and each is not None}


def _markdown(table: ScoreTable) -> str:
    lines = [table.columns, ("---",) * len(table.columns)]
    lines += [tuple(map(_cell, row)) for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | int | float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
