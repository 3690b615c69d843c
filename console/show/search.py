"""What `meld search` found."""

import json

from rich.table import Table

from console.printing import print_json, print_rich
from fusion.experiments.search_report import SearchReport

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
    print("what mattered, share of the spread that it explains beyond chance:")
    for each in report.mattered[:_SHOWN]:
        print(f"  {each.setting}: {100 * each.share:+.0f} %")
    gained = 100 * (report.best.score - report.defaults.score)
    print(f"the best gains {gained:+.2f} points on the defaults; dev chose it, so it is optimistic")
    print(
        f"{report.out}: best.toml, search.html, search.json; {report.reused} trainings were "
        f"reused; next: meld train-fusion --config {json.dumps(str(report.out / 'best.toml'))}"
    )
