"""What `meld report` wrote."""

from collections.abc import Sequence

from console.printing import print_json
from fusion.reporting.gather import RunReport
from fusion.reporting.html import HtmlReportConfig, describe_not_compared


def show_page(reports: Sequence[RunReport], config: HtmlReportConfig, as_json: bool) -> None:
    if as_json:
        runs = [each.evaluation.to_dict() for each in reports]
        not_compared = list(describe_not_compared(reports))
        print_json({"out": str(config.out), "runs": runs, "not_compared": not_compared})
        return
    print(f"{config.out}: {', '.join(each.name for each in reports)} on {config.split}")
    for line in describe_not_compared(reports):
        print(f"  {line}")
