"""What `meld search` found."""

from rich.table import Table

from console.printing import print_json, print_rich
from fusion.experiments.search_report import FEWEST_DRAWS, SearchReport

_SHOWN = 5


def show_search(report: SearchReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    table = Table(title="mean of both weighted F1s on dev", title_justify="left")
    for column in ("score", "seeds", "settings that are not the defaults"):
        table.add_column(column)
    for trial in report.trials[:_SHOWN]:
        changed = ", ".join(
            f"{name.rpartition('.')[2]} {value}"
            for name, value in trial.settings.items()
            if value != report.defaults.settings[name]
        )
        table.add_row(f"{trial.score:.4f}", str(len(trial.best)), changed or "none: the defaults")
    print_rich(table)
    if report.failed:
        first = report.failed[0]
        print(
            f"{len(report.failed)} of {report.num_draws} draws failed; the first "
            f"(draw {first.number}): {first.reason}"
        )
    if report.by_chance is not None:
        print(
            "what mattered, share of the spread that it explains beyond chance (of "
            f"{report.compared} draws; below {100 * report.by_chance:.0f} % it may be chance):"
        )
        for each in report.mattered[:_SHOWN]:
            if each.share is not None:
                print(f"  {each.setting}: {100 * each.share:+.0f} %")
    elif len(report.trials) > 1:
        print(
            f"{report.compared} draws are too few to tell what mattered, which takes "
            f"{FEWEST_DRAWS}: --trials"
        )
    if len(report.trials) == 1:
        print("nothing was compared: the defaults are the only draw that was trained")
    elif report.best.number == 0:
        print("no draw is better on dev than the defaults")
    else:
        gained = 100 * (report.best.score - report.defaults.score)
        print(
            f"the best gains {gained:+.2f} points on the defaults; dev chose it, so it is "
            "optimistic"
        )
    print(
        f"{report.out}: best.toml, search.html, search.json; {report.reused} trainings were "
        f"reused; next: {report.next_command}"
    )
