"""What `meld convert` wrote."""

from console.printing import print_json
from console.show.recipe import print_foreign, print_random
from pipeline.exchange.convert import ConvertReport


def show_converted(report: ConvertReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    rows = ", ".join(f"{split} {count}" for split, count in report.rows.items())
    print(f"{rows} rows; recipe {report.recipe.fingerprint[:12]}")
    for split, count in report.left_out.items():
        print(f"  {split}: {count} rows without a sentiment are left out, which MMSA trains on")
    for path in report.files:
        print(f"written: {path}")
    print_random(report.recipe.random_modalities)
    print_foreign(report.recipe.foreign)
