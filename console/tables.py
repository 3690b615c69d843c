"""What each command found, as it is printed: a table and a few lines, or one JSON object.

In the order of the commands. A library that draws is imported by the function that needs it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from console.printing import print_json, print_rich

if TYPE_CHECKING:
    from fusion.ablation import AblationReport
    from fusion.compare import Comparison
    from fusion.crossval import CrossvalReport
    from fusion.demo import DemoReport
    from fusion.finetune import FinetuneResult
    from fusion.html_report import HtmlReportConfig
    from fusion.metrics import EvalReport
    from fusion.run_report import RunReport
    from fusion.train import TrainResult
    from pipeline.doctor.machine import Machine
    from pipeline.doctor.report import DoctorReport
    from pipeline.download.download import DownloadReport
    from pipeline.extract import ExtractPlan, ExtractReport
    from pipeline.info import CacheInfo
    from pipeline.sample.corpus import SampleResult


def show_sample(result: "SampleResult", as_json: bool) -> None:
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


def show_download(report: "DownloadReport", as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    for split, clips in report.clips.items():
        how = "used where it lies" if split in report.linked else ""
        how = "was there" if split in report.there else how
        print(f"{split}: {clips:,} clips{f', {how}' if how else ''}")
    if report.found is not None:
        found = report.found
        print(
            f"{found.corrected} corrected cuts of test clips; dropped: {found.apple_double:,} "
            f"AppleDouble files, {found.others:,} others"
            + (f" such as {found.first_other!r}" if found.others else "")
        )
    if report.sha256:
        print(f"from {report.origin}, SHA-256 {report.sha256}")
    print(f"{report.out}: {report.seconds:.0f} s; next: meld doctor --data {report.out}")


def show_plan(plan: "ExtractPlan", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "fingerprint": plan.recipe.fingerprint,
                "recipe": json.loads(plan.recipe.to_json()),
                "device": plan.device,
                "rows": plan.rows,
                "rows_done": plan.rows_done,
                "clips_missing": plan.clips_missing,
            }
        )
        return
    for split, rows in plan.rows.items():
        print(
            f"{split}: {rows} rows, {plan.rows_done[split]} done, "
            f"{plan.clips_missing[split]} without a clip"
        )
    for spec in plan.recipe.encoders:
        print(f"{spec.modality}: {spec.name}, weights {spec.weights}, {spec.precision}")
    _print_test_clips(plan.recipe.test_clips)
    print(f"on {plan.device}; recipe {plan.recipe.fingerprint[:12]}; nothing was done")


def show_extraction(report: "ExtractReport", as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    from rich.table import Table

    from pipeline.info import count_failures

    table = Table(title=f"features, recipe {report.recipe.fingerprint[:12]}")
    for name in ("split", "rows", "done before", *report.recipe.modalities, "accidents", "file"):
        table.add_column(name)
    for split in report.splits:
        present = [f"{split.present[name]}" for name in report.recipe.modalities]
        counts = [str(split.rows), str(split.rows_resumed), *present, str(len(split.failures))]
        table.add_row(split.split, *counts, str(split.path))
    print_rich(table)
    failures = [failure for split in report.splits for failure in split.failures]
    for reason, count in count_failures(failures).items():
        print(f"  {count} x {reason}")
    _print_random(report.recipe.random_modalities)
    _print_test_clips(report.recipe.test_clips)
    if report.explained_variance is None:
        print("128-d embeddings follow when the train split is extracted")
    else:
        kept = ", ".join(f"{name} {share:.3f}" for name, share in report.explained_variance.items())
        print(f"variance kept by the 128-d embeddings: {kept}")
    print(f"{report.seconds:.1f} s")


def show_machine(machine: "Machine") -> None:
    """For people, before the clips are looked at; as JSON it is a part of the report."""
    from pipeline.doctor.tables import render_machine

    print_rich(render_machine(machine))


def show_checkup(report: "DoctorReport", as_json: bool) -> None:
    """The corpus alone for people, who have seen the machine already."""
    if as_json:
        print_json(report.to_dict())
        return
    from pipeline.doctor.tables import render_corpus

    print_rich(render_corpus(report))


def show_info(described: "CacheInfo", as_json: bool) -> None:
    if as_json:
        print_json(described.to_dict())
        return
    print(f"{described.path}: {described.split}, {described.rows} rows, {described.size_bytes:,} B")
    print(f"fingerprint {described.recipe.fingerprint}")
    for spec in described.recipe.encoders:
        shape = described.shapes.get(f"raw/{spec.modality}")
        print(
            f"  {spec.modality}: {described.present[spec.modality]} rows present, {spec.name}, "
            f"weights {spec.weights} ({spec.weights_hash[:19]}), {spec.pooling}"
            f"{f', context of {spec.context} utterances' if spec.context else ''}"
            f"{f', started from {spec.started_from}' if spec.started_from else ''}, "
            f"{spec.precision}, raw {list(shape) if shape else 'none'}"
        )
    if described.recipe.decode is not None:
        decode = described.recipe.decode
        print(
            f"  decoded: {decode.num_frames} frames {decode.frame_height}x{decode.frame_width}, "
            f"{decode.sample_rate_hz} Hz, {decode.channel}, first {decode.max_duration_s:g} s, "
            f"test clips {decode.test_clips}"
        )
    print(f"  128-d embeddings: {'yes' if described.has_embedding else 'not yet (extract train)'}")
    for title, counts in (("emotion", described.emotions), ("sentiment", described.sentiments)):
        print(f"  {title}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"  accidents: {sum(described.failures.values())} in {described.rows_with_failures} rows")
    for reason, count in described.failures.items():
        print(f"    {count} x {reason}")
    _print_random(described.recipe.random_modalities)
    if described.damaged == ():
        print("  every checksum holds")


def show_training(result: "TrainResult", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "run": str(result.run),
                "epochs": result.epochs,
                "best_epoch": result.best_epoch,
                "seconds": result.seconds,
                "train": json.loads(result.train.to_json()),
                "dev": json.loads(result.dev.to_json()),
            }
        )
        return
    from fusion.report import render_report

    print_rich(render_report(result.dev))
    print(
        f"{result.run}: {_tell_best(result.best_epoch, result.epochs)}, {result.seconds:.1f} s; "
        f"next: meld evaluate {result.run}"
    )


def show_finetuning(result: "FinetuneResult", as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    from fusion.report import render_report

    print_rich(render_report(result.dev))
    print(
        f"{result.run}: {_tell_best(result.best.epoch, len(result.history) - 1)}, "
        f"{result.seconds:.0f} s; next: meld evaluate {result.run}"
    )


def show_evaluation(report: "EvalReport", run: Path, as_json: bool, *, errors: bool) -> None:
    if as_json:
        print_json(json.loads(report.to_json()))
        return
    from fusion.report import render_report

    print_rich(render_report(report))
    if errors and report.errors is not None:
        from fusion.error_analysis import render_errors

        print_rich(render_errors(report.errors))
    print(f"written: {run}/evaluation-{report.split}.json and plots beside it")


def show_comparison(comparison: "Comparison", as_json: bool) -> None:
    if as_json:
        print_json(json.loads(comparison.to_json()))
        return
    from fusion.compare import render_comparison

    print_rich(render_comparison(comparison))


def show_page(reports: "Sequence[RunReport]", config: "HtmlReportConfig", as_json: bool) -> None:
    if as_json:
        told = [json.loads(each.evaluation.to_json()) for each in reports]
        print_json({"out": str(config.out), "runs": told})
        return
    print(f"{config.out}: {', '.join(each.name for each in reports)} on {config.split}")


def show_crossval(report: "CrossvalReport", out: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(json.loads(report.to_json()))
        return
    from fusion.crossval import render_crossval

    print_rich(render_crossval(report))
    print(f"{report.seconds:.1f} s" + (f"; written: {out}" if out else ""))


def show_ablation(result: "AblationReport", as_json: bool) -> None:
    if as_json:
        print_json(json.loads(result.to_json()))
        return
    from fusion.ablation import render_ablation

    print_rich(render_ablation(result))
    print(
        f"{result.out}: ablation.json and ablation.png; {result.reused} cells stood there already"
    )


def show_demo(report: "DemoReport", as_json: bool) -> None:
    if as_json:
        print_json(report.to_dict())
        return
    from fusion.demo import render_demo

    print_rich(render_demo(report))


def _print_test_clips(test_clips: str | None) -> None:
    if test_clips is not None:
        print(f"test clips: {test_clips}")


def _print_random(modalities: tuple[str, ...]) -> None:
    for modality in modalities:
        print(f"{modality}: RANDOM WEIGHTS, asked for by name; these features are untrained")


def _tell_best(best: int, epochs: int) -> str:
    if best == 0:
        return f"none of {epochs} epochs was better on dev than the start, which was kept"
    return f"best epoch {best} of {epochs}"
