"""What `meld sample` made."""

from console.printing import print_json
from pipeline.sample.corpus import SampleResult


def show_sample(result: SampleResult, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    rows = ", ".join(f"{count} {split}" for split, count in result.rows.items())
    print(f"{result.root}: {rows} clips")
    for item in result.defects:
        print(f"  planted {item.kind}: {item.key} ({item.what})")
