"""What `meld report` wrote."""

from collections.abc import Sequence

from console.printing import print_json
from fusion.reporting.gather import RunReport
from fusion.reporting.html import HtmlReportConfig


def show_page(reports: Sequence[RunReport], config: HtmlReportConfig, as_json: bool) -> None:
    if as_json:
        runs = [each.evaluation.to_dict() for each in reports]
        print_json({"out": str(config.out), "runs": runs})
        return
    print(f"{config.out}: {', '.join(each.name for each in reports)} on {config.split}")
