"""What `meld sample` made."""

from console.printing import print_json
from pipeline.sample.corpus import SampleResult


def show_sample(result: SampleResult, as_json: bool) -> None:
    if as_json:
        accidents = [
            {"clip": str(item.key), "kind": item.kind, "what": item.what}
            for item in result.accidents
        ]
        print_json({"root": str(result.root), "rows": result.rows, "accidents": accidents})
        return
    rows = ", ".join(f"{count} {split}" for split, count in result.rows.items())
    print(f"{result.root}: {rows} clips")
    for item in result.accidents:
        print(f"  planted {item.kind}: {item.key} ({item.what})")
