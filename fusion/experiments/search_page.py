"""The page of a search: what was best, and which settings mattered. One file without scripts."""

from markupsafe import Markup

from fusion.experiments.search_report import FEWEST_DRAWS, Mattered, SearchReport
from pipeline.html.page import page_environment

_WIDTH, _HEIGHT, _EDGE = 300, 120, 14
_SHOWN = 15


def render_search(report: SearchReport) -> str:
    """HTML."""
    environment = page_environment("fusion.experiments", "search_page_parts")
    return environment.get_template("search.html.jinja").render(
        report=report,
        trials=report.trials[:_SHOWN],
        fewest=FEWEST_DRAWS,
        space=[each.setting for each in report.mattered],
        drawings={each.setting: _draw(each) for each in report.mattered},
    )


def _draw(setting: Mattered) -> Markup:
    """A dot for each draw: its value across, its score up; and what the edges are."""
    xs = [x for x, _ in setting.points]
    ys = [y for _, y in setting.points]
    dots = Markup().join(
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
            _EDGE + (_WIDTH - 2 * _EDGE) * _place(x, xs),
            _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * _place(y, ys),
        )
        for x, y in setting.points
    )
    told = f"{setting.setting}: scores of {min(ys):.3f} to {max(ys):.3f} on dev"
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><g class="dots">{}</g></svg>'
    ).format(_WIDTH, _HEIGHT, told, dots)


def _place(value: float, values: list[float]) -> float:
    """0 at the lowest, 1 at the highest."""
    low, high = min(values), max(values)
    return 0.5 if low == high else (value - low) / (high - low)
