"""`meld report`: measures runs and writes one self-contained HTML file.

Text from a corpus, a path or a file may be hostile: the template escapes all of it, and the page's
policy forbids loading or running anything.
"""

import json
import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion.evaluation.report import HeadReport, describe_fitted, describe_measured
from fusion.experiments.ablation import StoredAblation, read_ablation
from fusion.experiments.compare import Comparison, compare_predictions, match_rows
from fusion.inference.predictions import Predictions
from fusion.reporting.gather import RunReport, gather
from fusion.reporting.run_charts import draw_charts
from pipeline.errors import InputError, MismatchError
from pipeline.html.page import BEGINS, page_environment
from pipeline.schema import SPLITS, Split
from pipeline.system.files import check_out, write_whole

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int, int], None]


@dataclass(frozen=True, kw_only=True)
class HtmlReportConfig:
    """data: the corpus folder, for a frame of the clips that are shown

    ablation: JSON of `meld ablate`
    """

    runs: tuple[Path, ...]
    split: Split = "test"
    out: Path = Path("report.html")
    data: Path | None = None
    ablation: Path | None = None

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("a report needs at least one run")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {self.split!r}")


def write_html_report(
    config: HtmlReportConfig, on_progress: OnProgress = lambda *_: None
) -> tuple[RunReport, ...]:
    """Measures the runs and writes the page.

    Raises StorageError or UsageError where it cannot be written, and what reading the runs raises.
    """
    _check_paths(config)
    ablation = read_ablation(config.ablation) if config.ablation else None
    runs = gather(config.runs, config.split, config.data, on_progress)
    page = render_page(runs, split=config.split, ablation=ablation, command=_command(config))
    write_whole(config.out, page.encode("utf-8", "replace"))  # a path may hold what is no UTF-8
    log.info("wrote %s", config.out)
    return runs


def render_page(
    runs: Sequence[RunReport],
    *,
    split: Split,
    ablation: StoredAblation | None = None,
    command: str = "",
) -> str:
    """command: the one that reproduces the page."""
    environment = page_environment("fusion.reporting", "page_templates")
    environment.filters.update(
        number=lambda value: "–" if value is None else f"{value:.3f}",
        signed=lambda value: f"{value:+z.3f}".replace("-", "−"),
        percent=lambda share: f"{share:.0%}",
        mean_spread=_mean_spread,
        flat=_flat,
    )
    return environment.get_template("page.html.jinja").render(
        runs=runs,
        names=_names(runs),
        split=split,
        ablation=ablation,
        command_for_page=command,
        charts=[draw_charts(run) for run in runs],
        scale=_scale(runs),
        differences=_differences(runs),
        not_compared=describe_not_compared(runs),
        measured=[describe_measured(run.evaluation) for run in runs],
        fitted_here=[describe_fitted(run.evaluation) for run in runs],
    )


def _command(config: HtmlReportConfig) -> str:
    words = ["meld", "report", *map(str, config.runs), "--split", config.split]
    for name in ("data", "ablation", "out"):
        value = getattr(config, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)


def _check_paths(config: HtmlReportConfig) -> None:
    """Before minutes of work, and before test is evaluated for nothing."""
    check_out(config.out, begins=BEGINS)
    if config.data is not None and not config.data.is_dir():
        raise InputError(f"{config.data}: no such folder; --data takes the folder with the clips")


def _names(runs: Sequence[RunReport]) -> list[str]:
    """Folder names, and whole paths where two are called the same."""
    names = [run.name for run in runs]
    return [
        str(run.path) if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def _scale(runs: Sequence[RunReport]) -> tuple[float, float]:
    """Which F1s the strips beside the numbers reach from and to, the same for all runs."""
    values = [
        value
        for run in runs
        for _, head in run.evaluation.heads
        for value in (head.model.weighted_f1, head.majority.weighted_f1, *_bounds(head))
        if value is not None
    ]
    if not values:
        return (0.0, 1.0)
    low, high = math.floor(10 * min(values)) / 10, min(1.0, math.ceil(10 * max(values)) / 10)
    low = min(low, high - 0.1)  # where all are the same
    return (low, high) if low >= 0 else (0.0, 0.1)


def _differences(runs: Sequence[RunReport]) -> list[Comparison | None]:
    """Of each run to the first: None for the first itself, and for runs that were measured on
    other rows. Empty where none can be compared."""
    found: list[Comparison | None] = [None]
    for run in runs[1:]:
        other = _matched(runs[0], run)
        if isinstance(other, str):
            found.append(None)
        else:
            found.append(compare_predictions(runs[0].predictions, other))
    return found if any(found) else []


def describe_not_compared(runs: Sequence[RunReport]) -> tuple[str, ...]:
    """A sentence for each run that was measured on other rows than the first, with the reason."""
    names = _names(runs)
    told = ((name, _matched(runs[0], run)) for name, run in zip(names, runs, strict=True))
    return tuple(
        f"{name} is not compared with {names[0]}: {why}"
        for name, why in told
        if isinstance(why, str)
    )


def _matched(first: RunReport, run: RunReport) -> Predictions | str:
    """A run's predictions in the order of the first's rows, or why these are not the same rows."""
    try:
        return match_rows(first.predictions, run.predictions)
    except MismatchError as error:
        return str(error)


def _bounds(head: HeadReport) -> tuple[float, ...]:
    interval = head.weighted_f1_interval
    return () if interval is None else (interval.low, interval.high)


def _mean_spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {np.std(values):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """("fit.epochs", "20"), as they would be written in a settings file."""
    flat = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((f"{prefix}{name}", _said(value)))
    return flat


def _said(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "all"
    return json.dumps(value) if isinstance(value, bool) else str(value)
