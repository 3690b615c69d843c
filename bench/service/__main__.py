"""Trials of `meld serve`. Each starts it as a process, simulates clients, network faults or
crashes, and prints its measurements and whether they meet their goals.

    python -m bench.service [TRIAL ...] [--out bench/out/service] [--model RUN]

Without TRIAL, all but the long ones run, and `replicas`, which needs `pip install 'ray[serve]'`.
Clips are those of the generated corpus. The load generator runs on the same machine and uses some
of its CPU time. The exit status is 3 if a goal is missed.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.service.comparing import peer, same, throughput
from bench.service.crashing import crashes, hour, sigterm, soak
from bench.service.disconnecting import disconnects, slow
from bench.service.figures import Figure
from bench.service.inputs import make_clips
from bench.service.load import burst, clients
from bench.service.replicas import replicas
from bench.service.settings import Setting
from bench.service.wrong_key import key

Trial = Callable[[Setting], Coroutine[Any, Any, list[Figure]]]
TRIALS: dict[str, Trial] = {
    "key": key,
    "burst": burst,
    "disconnects": disconnects,
    "slow": slow,
    "clients": clients,
    "crashes": crashes,
    "sigterm": sigterm,
    "same": same,
    "throughput": throughput,
    "peer": peer,
    "hour": hour,
    "soak": soak,
    "replicas": replicas,
}
NAMED_ALONE = ("hour", "soak", "replicas")  # long, or in need of more


def main() -> None:
    arguments = _parse()
    work: Path = arguments.out
    work.mkdir(parents=True, exist_ok=True)
    model = () if arguments.model is None else ("--model", str(arguments.model.absolute()))
    setting = Setting(
        work=work.absolute(),
        clips=make_clips(work),
        options=model,
        seed=arguments.seed,
        kills=arguments.kills,
        rounds=arguments.rounds,
        num_clips=arguments.clips,
        soak_s=arguments.soak,
        minutes=arguments.minutes,
    )
    names = arguments.trials or [name for name in TRIALS if name not in NAMED_ALONE]
    is_met = True
    for name in names:
        shutil.rmtree(work / name, ignore_errors=True)  # jobs of an earlier run of the trial
        load = os.getloadavg()[0]
        began = time.monotonic()
        figures = asyncio.run(TRIALS[name](setting))
        results = {
            "trial": name,
            "load_before": load,
            "load_after": os.getloadavg()[0],
            "cores": len(os.sched_getaffinity(0)),
            "seconds": time.monotonic() - began,
            "figures": [each.to_dict() for each in figures],
        }
        (work / f"{name}.json").write_text(json.dumps(results, indent=2))
        Console().print(_table(name, load, figures))
        is_met &= all(each.is_met is not False for each in figures)
    sys.exit(0 if is_met else 3)


def _table(name: str, load: float, figures: list[Figure]) -> Table:
    about = (TRIALS[name].__doc__ or "").partition("\n")[0]
    table = Table(title=f"{name}: {about} Load before: {load:.1f}", title_justify="left")
    for column in ("what", "measured", "unit", "goal", ""):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for each in figures:
        verdict = {None: "", True: "met", False: "MISSED"}[each.is_met]
        table.add_row(each.name, f"{each.value:,.3g}", each.unit, each.goal, verdict)
    return table


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=", ".join(TRIALS))
    parser.add_argument("--out", type=Path, default=Path("bench/out/service"))
    parser.add_argument("--model", type=Path, help="a run; without it the bundled model")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3, help="of what is timed")
    parser.add_argument("--clips", type=int, default=12, help="of same and throughput")
    parser.add_argument("--soak", type=float, default=600, help="seconds")
    parser.add_argument("--minutes", type=float, default=60, help="of the long file")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.trials if name not in TRIALS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(TRIALS)}")
    return arguments


if __name__ == "__main__":
    main()
