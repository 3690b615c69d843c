"""Line charts as inline SVG: the page's font and colours, text that can be selected.

Colours are classes that the page's style sheet gives a meaning (`ink-model`), so that a chart
follows the reader's light or dark setting and prints dark on white.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

Ink = Literal["model", "second", "third", "quiet"]
Range = tuple[float, float]

_WIDTH, _HEIGHT = 380, 250  # about a phone's width: text keeps its size there
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 10, 40
_DASHES = {"model": "", "second": "6 3", "third": "2 3", "quiet": "1 4"}  # colour is not all


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line: points are (x, y), left to right.

    sizes: what each point stands for, as a share of all; empty draws no dots
    """

    name: str
    points: tuple[tuple[float, float], ...]
    ink: Ink = "model"
    sizes: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line that says something about one x."""

    name: str
    x: float


def draw_lines(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: Range | None = None,
    y_range: Range | None = None,
    mark: Mark | None = None,
) -> Markup:
    """A `<figure>`: caption, drawing, legend. Ranges default to what the points take.

    Every word is escaped; the drawing's description for readers who cannot see it names the
    lines and where they end.
    """
    xs = [x for each in series for x, _ in each.points]
    ys = [y for each in series for _, y in each.points]
    frame = _Frame(x_range or _span(xs), y_range or _span(ys, room=0.06))
    drawn = Markup().join(
        [
            _grid(frame, x_label, y_label, whole_x=all(x == int(x) for x in xs)),
            *([_vertical(frame, mark)] if mark else []),
            *(_line(frame, each) for each in series),
        ]
    )
    return Markup(
        '<figure class="chart"><figcaption>{title}</figcaption>'
        '<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{drawn}</svg>'
        '<ul class="legend">{legend}</ul></figure>'
    ).format(
        title=title,
        width=_WIDTH,
        height=_HEIGHT,
        label=_told(series, title),
        drawn=drawn,
        legend=_legend(series, mark),
    )


@dataclass(frozen=True)
class _Frame:
    """Values to places in the drawing."""

    x_range: Range
    y_range: Range

    def x(self, value: float) -> float:
        return round(_LEFT + self._share(value, self.x_range) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        return round(_TOP + (1 - self._share(value, self.y_range)) * height, 1)

    @staticmethod
    def _share(value: float, span: Range) -> float:
        return (value - span[0]) / (span[1] - span[0])


def _span(values: Sequence[float], room: float = 0.0) -> Range:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    margin = (high - low) * room
    return (low - margin, high + margin) if high > low else (low - 0.5, high + 0.5)


def _ticks(span: Range, whole: bool = False) -> list[float]:
    ticks = MaxNLocator(nbins=6, integer=whole, steps=[1, 2, 5, 10]).tick_values(*span)
    slack = (span[1] - span[0]) * 1e-6
    return [float(tick) for tick in ticks if span[0] - slack <= tick <= span[1] + slack]


def _grid(frame: _Frame, x_label: str, y_label: str, *, whole_x: bool) -> Markup:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [
        Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, right, y, y)
        + _text(f"{tick:.4g}", x=_LEFT - 6, y=y + 4, anchor="end")
        for tick in _ticks(frame.y_range)
        for y in [frame.y(tick)]
    ]
    parts += [
        _text(f"{tick:.4g}", x=frame.x(tick), y=bottom + 16)
        for tick in _ticks(frame.x_range, whole=whole_x and frame.x_range != (0.0, 1.0))
    ]
    parts.append(
        Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            _LEFT, right, bottom, bottom
        )
    )
    parts.append(_text(x_label, x=(_LEFT + right) / 2, y=_HEIGHT - 6))
    parts.append(
        Markup('<text class="upright" text-anchor="middle" transform="translate(11 {}) ').format(
            (_TOP + bottom) / 2
        )
        + Markup('rotate(-90)">{}</text>').format(y_label)
    )
    return Markup().join(parts)


def _text(words: str, *, x: float, y: float, anchor: str = "middle") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
        round(x, 1), round(y, 1), anchor, words
    )


def _vertical(frame: _Frame, mark: Mark) -> Markup:
    x = frame.x(mark.x)
    return Markup('<line class="mark" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
        x, x, _TOP, _HEIGHT - _BOTTOM
    )


def _line(frame: _Frame, series: Series) -> Markup:
    places = [(frame.x(x), frame.y(y)) for x, y in series.points]
    line = Markup('<polyline class="line ink-{}" points="{}" {}/>').format(
        series.ink, " ".join(f"{x},{y}" for x, y in places), _dash(series.ink)
    )
    sizes = series.sizes or ((0.0,) if len(places) == 1 else ())  # a line of one point is none
    dot = Markup('<circle class="dot ink-{}" cx="{}" cy="{}" r="{:.1f}"/>')
    return line + Markup().join(
        dot.format(series.ink, x, y, 2 + 8 * size**0.5)  # area goes with the share
        for (x, y), size in zip(places, sizes, strict=bool(sizes))
    )


def _dash(ink: Ink) -> Markup:
    return Markup('stroke-dasharray="{}"').format(_DASHES[ink]) if _DASHES[ink] else Markup()


def _legend(series: Sequence[Series], mark: Mark | None) -> Markup:
    swatch = Markup(
        '<li><svg viewBox="0 0 26 8" aria-hidden="true"><line class="{}" x1="0" x2="26" y1="4" '
        'y2="4" {}/></svg>{}</li>'
    )
    items = [swatch.format(f"line ink-{each.ink}", _dash(each.ink), each.name) for each in series]
    if mark:
        items.append(swatch.format("mark", "", mark.name))
    return Markup().join(items)


def _told(series: Sequence[Series], title: str) -> str:
    ends = [
        f"{each.name} from {each.points[0][1]:.3g} to {each.points[-1][1]:.3g}"
        for each in series
        if each.points
    ]
    return f"{title}: {'; '.join(ends)}"
