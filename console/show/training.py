"""What `meld train-fusion` and `meld finetune` found."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from console.printing import print_json, print_rich
from console.show.evaluation import render_report
from fusion.finetuning.finetune import FinetuneResult
from fusion.training.config import TrainConfig
from fusion.training.train import Member, TrainResult


def show_training(result: TrainResult, features: Path, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    print_rich(render_report(result.dev))
    refitted = result.rows_refitted
    again = "" if refitted is None else f", then trained again on all {refitted} rows of train"
    best = _tell_members(result.members, result.epochs) or _tell_best(
        result.best_epoch, result.epochs
    )
    print(f"{result.run}: {best}{again}, {result.seconds:.1f} s; next: {_next(result, features)}")


def _next(result: TrainResult, features: Path) -> str:
    if result.has_test:
        return shlex.join(["meld", "evaluate", str(result.run)])
    words = ["meld", "crossval"]
    if features != TrainConfig().features:
        words += ["--features", str(features)]
    return (
        f"{shlex.join(words)} (no test cache, and dev chose the epoch: these scores are optimistic)"
    )


def show_finetuning(result: FinetuneResult, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    print_rich(render_report(result.dev))
    epochs = len(result.history) - 1
    best = _tell_members(result.members, epochs) or _tell_best(result.best.epoch, epochs)
    next_words = ["meld", "evaluate", str(result.run)]
    print(f"{result.run}: {best}, {result.seconds:.0f} s; next: {shlex.join(next_words)}")


def _tell_members(members: Sequence[Member], epochs: int) -> str:
    """ "" where it is no ensemble"""
    if not members:
        return ""
    best = ", ".join(str(each.best.epoch) for each in members)
    return f"{len(members)} models averaged, best epochs {best} of {epochs}"


def _tell_best(best: int, epochs: int) -> str:
    if best == 0:
        return f"none of {epochs} epochs was better on dev than the start, which was kept"
    return f"best epoch {best} of {epochs}"
