"""Charts of a run."""

import math
from collections.abc import Mapping

from markupsafe import Markup

from fusion.evaluation.calibration import HeadCalibration, Reliability
from fusion.reporting.gather import RunReport
from fusion.reporting.svg import Ink, Mark, Series, draw_lines


def draw_charts(run: RunReport) -> Mapping[str, Markup]:
    """By the name that the page knows each by; a chart without values has no key."""
    drawn = {}
    if run.history:
        drawn["losses"] = _losses(run)
        drawn["scores"] = _scores(run)
    if run.evaluation.calibration is not None:
        for name in ("emotion", "sentiment"):
            head = getattr(run.evaluation.calibration, name)
            if head is not None:
                drawn[f"calibration_{name}"] = _reliability(name, head)
    return drawn


def _losses(run: RunReport) -> Markup:
    return draw_lines(
        [
            Series(
                name="train",
                points=tuple(
                    (each.epoch, each.train_loss)
                    for each in run.history
                    if each.train_loss is not None
                ),
            ),
            Series(
                name="dev",
                points=tuple(
                    (each.epoch, each.dev_loss)
                    for each in run.history
                    if math.isfinite(each.dev_loss)
                ),
                ink="second",
            ),
        ],
        title="Loss of both heads together",
        x_label="epoch",
        y_label="loss",
        mark=_kept(run),
    )


def _scores(run: RunReport) -> Markup:
    inks: dict[str, Ink] = {"emotion": "model", "sentiment": "third"}
    series = []
    for head, ink in inks.items():
        points = tuple((each.epoch, getattr(each, f"dev_{head}_f1")) for each in run.history)
        if all(value is not None for _, value in points):
            series.append(Series(name=f"dev {head}", points=points, ink=ink))
    return draw_lines(
        series,
        title="Weighted F1 on dev",
        x_label="epoch",
        y_label="weighted F1",
        mark=_kept(run),
    )


def _kept(run: RunReport) -> Mark:
    kept = max(run.history, key=lambda each: each.score).epoch
    return Mark(name=f"kept: epoch {kept}", x=kept)


def _reliability(name: str, head: HeadCalibration) -> Markup:
    """Both lines would lie on the dotted one, if probabilities could be taken at their word."""

    def line(name: str, measured: Reliability, ink: Ink) -> Series:
        return Series(
            name=name,
            points=tuple((each.confidence, each.accuracy) for each in measured.bins),
            ink=ink,
            sizes=tuple(each.rows / head.rows for each in measured.bins),
        )

    series = [
        Series(name="ideal", points=((0.0, 0.0), (1.0, 1.0)), ink="quiet"),
        line("not scaled", head.before, "second"),
    ]
    if head.temperature.fitted:
        told = f"scaled, temperature {head.temperature.value:.2f}"
        series.append(line(told, head.after, "model"))
    return draw_lines(
        series,
        title=f"{name.capitalize()}: accuracy by probability; area of a dot: number of rows",
        x_label="probability of the predicted class",
        y_label="accuracy",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )
