"""What `meld extract` did, or would do."""

from shlex import quote

from rich.table import Table

from console.printing import print_json, print_rich
from console.show.recipe import print_random, print_test_clips
from pipeline.cache.info import count_failures
from pipeline.extract.extract import ExtractPlan, ExtractReport

_SHOWN = 5  # failures; the cache has all


def show_plan(plan: ExtractPlan, as_json: bool) -> None:
    if as_json:
        print_json(plan.to_dict())
        return
    for split, rows in plan.rows.items():
        print(
            f"{split}: {rows} rows, {plan.rows_done[split]} done, "
            f"{plan.clips_missing[split]} without a clip"
            + (f"; {stale} clips changed since" if (stale := plan.rows_stale[split]) else "")
        )
    for spec in plan.recipe.encoders:
        print(f"{spec.modality}: {spec.name}, weights {spec.weights}, {spec.precision}")
    print_test_clips(plan.recipe.test_clips)
    print(f"on {plan.device}; recipe {plan.recipe.fingerprint[:12]}; nothing was done")


def show_extraction(report: ExtractReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    table = Table(title=f"features, recipe {report.recipe.fingerprint[:12]}")
    for name in ("split", "rows", "cached before", *report.recipe.modalities, "failures", "file"):
        table.add_column(name)
    for split in report.splits:
        present = [f"{split.present[name]}" for name in report.recipe.modalities]
        counts = [str(split.rows), str(split.rows_resumed), *present, str(len(split.failures))]
        table.add_row(split.split, *counts, str(split.path))
    print_rich(table)
    failures = [failure for split in report.splits for failure in split.failures]
    for reason, count in count_failures(failures).items():
        print(f"  {count} x {reason}")
    for failure in failures[:_SHOWN]:
        print(f"    {failure.key}: {failure.modality}: {failure.message}")
    for split in report.splits:
        if split.failures:
            print(f"  meld info {quote(str(split.path))} --failures lists all of {split.split}")
    print_random(report.recipe.random_modalities)
    print_test_clips(report.recipe.test_clips)
    if report.explained_variance is None:
        print("128-d embeddings follow when the train split is extracted")
    else:
        kept = ", ".join(f"{name} {share:.3f}" for name, share in report.explained_variance.items())
        print(f"variance kept by the 128-d embeddings: {kept}")
    print(f"{report.seconds:.1f} s")
