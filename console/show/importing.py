"""What `meld import` read, and what it could not use."""

from collections.abc import Sequence

from console.printing import print_json
from console.show.recipe import print_foreign
from pipeline.importing.report import ImportReport, SplitImport

_SHOWN = 3
# What a code of the ledger means for a row.
_TOLD = {
    "missing": "missing: nothing was found",
    "doubled": "doubled: several different features were found",
    "not_finite": "NaN or infinite values",
    "no_frames": "without a frame that can be used",
    "other_shape": "of another shape than most",
    "unreadable": "unreadable",
}


def show_import(report: ImportReport, as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    layers, dim = report.shape
    print(
        f"{report.modality}: {layers} x {dim} by {report.name}, pooled over frames: "
        f"{report.pooling}; recipe {report.recipe.fingerprint[:12]}"
    )
    if report.left_out:
        print(f"  columns without numbers are left out: {_some(report.left_out)}")
    for each in report.splits:
        _show_split(each)
        print(f"written: {report.out / f'{each.split}.h5'}")
    kept = report.variance
    if kept is None:
        print("without a train cache there are no 128-d embeddings; train on raw features")
    else:
        print(f"128-d embeddings keep {kept:.1%} of the variance of {report.modality}")
    print_foreign(report.recipe.foreign)


def _show_split(split: SplitImport) -> None:
    print(f"{split.split}: {split.imported} of {split.rows} rows have it now")
    for code, failures in split.by_code().items():
        told = _some([f"{each.key} ({each.message})" for each in failures])
        rows = "1 row" if len(failures) == 1 else f"{len(failures)} rows"
        print(f"  {rows} {_TOLD[code]}: {told}")
    if split.not_matched:
        found = _some(split.not_matched)
        print(f"  {len(split.not_matched)} found that are no clip of {split.split}: {found}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
