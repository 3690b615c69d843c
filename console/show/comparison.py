"""Two runs side by side (`meld compare`)."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from console.printing import print_json, print_rich
from fusion.evaluation.bootstrap import Interval
from fusion.evaluation.test_evaluations import describe_evaluations
from fusion.experiments.compare import Comparison, HeadComparison

_ROWS = (
    *("A", "B", "B - A [95 % interval]"),
    *("B alone is right", "A alone is right", "both are right", "both are wrong"),
)


def show_comparison(comparison: Comparison, as_json: bool) -> None:
    if as_json:
        print_json(comparison.to_dict())
        return
    print_rich(render_comparison(comparison))


def render_comparison(comparison: Comparison) -> RenderableType:
    """The scores side by side, B minus A with its interval, and what that means in a sentence."""
    head = (
        f"A: {comparison.run_a}   B: {comparison.run_b}   on {comparison.split}: "
        f"{comparison.rows} rows, {comparison.dialogues} dialogues"
    )
    heads = {"emotion": comparison.emotion, "sentiment": comparison.sentiment}
    columns = [_column(each) for each in heads.values()]
    table = Table("", *heads, title="weighted F1, and rows right", title_justify="left")
    for name, *cells in zip(_ROWS, *columns, strict=True):
        table.add_row(name, *map(Text, cells))  # "[...]" is no markup here
    lines = [Text(f"{name}: {each.verdict}", style="bold") for name, each in heads.items()]
    sides = (("A", comparison.test_clips_a), ("B", comparison.test_clips_b))
    dev = (("A", comparison.set_aside_a), ("B", comparison.set_aside_b))
    if comparison.split != "test":
        lines += [Text(f"{side}: {aside}") for side, aside in dev if aside is not None]
    lines += [Text(f"{side}: test clips {clips}") for side, clips in sides if clips is not None]
    if comparison.split == "test":
        counts = (("A", comparison.test_evaluations_a), ("B", comparison.test_evaluations_b))
        lines += [Text(f"{side}: {describe_evaluations(count)}") for side, count in counts]
    return Group(Text(head), table, *lines)


def _column(head: HeadComparison) -> list[str]:
    """One cell for each of _ROWS."""
    scores = ["-" if value is None else f"{value:.3f}" for value in (head.a, head.b)]
    counts = (head.won, head.lost, head.both_right, head.both_wrong)
    rows = map(str, counts) if head.rows else ("-" for _ in counts)
    return [*scores, _signed(head.difference), *rows]


def _signed(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval.value:+z.3f} [{interval.low:+z.3f}, {interval.high:+z.3f}]"
