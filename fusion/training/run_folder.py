"""The folder of a run: opened for one writer, and cleared of an earlier run on request.

Only files that this program writes into a run or a bundle are removed, by name, and the folders
`encoders/` and `onnx/` as a whole, and only from a folder that is known to be a run.
`test-evaluations.jsonl` stays: it counts test evaluations, also those of the run that is replaced.
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fusion.inference.bundle import CARD, EXPORT, GOLDEN, GOLDEN_FILES, GRAPH_INDEX, GRAPHS
from fusion.inference.description import CHECKPOINTS, CONFIG, FORMAT, WEIGHTS, resume_command
from pipeline.cache.embeddings import projection_path
from pipeline.encoders.saved import FOLDER as ENCODERS
from pipeline.encoders.saved import INDEX_PATH
from pipeline.errors import StorageError, UsageError
from pipeline.extract.shards import clear_shards
from pipeline.schema import SPLITS
from pipeline.system import locks
from pipeline.system.files import remove_temporaries

HISTORY = "history.jsonl"
MEMBER_HISTORY = "members.jsonl"  # of an ensemble: the epochs of each member
METRICS = "metrics.json"
# Held while a run is written; stays, so that an unfinished run is known for one.
MARKER = ".meld-run"
MEMBERS = "members"  # of a fine-tuned ensemble that is not whole yet: a run of each seed
START = "start"  # the run that a fine-tuning trained first

_FILES = (
    *(CONFIG, WEIGHTS, METRICS, HISTORY, MEMBER_HISTORY, "training.png"),
    *(f"evaluation-{split}.json" for split in SPLITS),
    *(f"{split}-{plot}.png" for split in SPLITS for plot in ("confusion", "classes")),
)
_EVENTS = "events.out.tfevents.*"  # TensorBoard's
_WANDB = ("wandb/run-*", "wandb/offline-run-*")  # Weights & Biases'
_CHECKPOINT_FILES = ("settings.json", "step.json", "last.pt", "best.safetensors")


@contextmanager
def open_run(
    out: Path | None, *, overwrite: bool, name: str, inputs: Iterable[Path]
) -> Iterator[Path]:
    """Gives an empty folder for a run: `out`, or runs/<time>-<name>; it is locked during the block.

    overwrite: remove the files of an earlier run; refused if it contains `inputs` of the new run

    Raises:
        UsageError: the folder has something in it, and it is no run or `overwrite` was not said.
        CacheBusy: another process writes this run.
        StorageError: the folder cannot be made.
    """
    inputs = tuple(inputs)
    try:
        run = _new_run(name) if out is None else _check_run(out, overwrite, inputs)
    except (OSError, RuntimeError) as error:  # Runtime: a link that leads back to itself
        raise StorageError(f"cannot make the run's folder: {error}") from error
    with hold_run(run):
        try:
            _check_run(run, overwrite, inputs)  # another process may have finished one meanwhile
            clear_run(run)
        except OSError as error:
            raise StorageError(f"cannot clear {run}: {error}") from error
        yield run


def refuse_taken(out: Path, *, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Refuses at once a folder that `open_run` would refuse after the work; makes nothing.

    Raises UsageError, or StorageError where it cannot be read.
    """
    try:
        _check_place(out, overwrite, inputs)
    except (OSError, RuntimeError) as error:  # Runtime: a link that leads back to itself
        raise StorageError(f"cannot read the run's folder: {error}") from error


def hold_run(run: Path) -> AbstractContextManager[None]:
    """The one lock of a run. Raises CacheBusy or StorageError."""
    return locks.hold(run / MARKER, f"the run {run}")


def is_run(folder: Path) -> bool:
    """Whether this program wrote it, finished or not. Raises OSError.

    Where there is a config.json, that alone decides: a model folder of another program may have
    anything beside it.
    """
    if (folder / CONFIG).exists():
        return _read_table(folder / CONFIG).get("format") == FORMAT
    begun = _read_table(folder / CHECKPOINTS / "settings.json")
    return (folder / MARKER).is_file() or "tune" in begun


def _read_table(path: Path) -> dict[str, Any]:
    """Empty where there is no such file, or it is no table."""
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def clear_run(run: Path) -> None:
    """Removes what a run writes, its config first, and `encoders/` whole; other files stay, and
    links that lead out of it are not followed. Raises OSError."""
    for name in _FILES:
        _remove(run / name)
    if (run / EXPORT).is_file():  # else a README.md is not ours
        for name in (CARD, EXPORT):
            _remove(run / name)
    if _is_folder(run / GOLDEN):
        for name in GOLDEN_FILES:
            _remove(run / GOLDEN / name)
        _remove_if_empty(run / GOLDEN)
    if _is_folder(run / GRAPHS) and (run / GRAPH_INDEX).is_file():
        shutil.rmtree(run / GRAPHS)
    for path in run.glob(_EVENTS):
        path.unlink()
    if any(any(run.glob(pattern)) for pattern in _WANDB) and _is_folder(run / "wandb"):
        shutil.rmtree(run / "wandb")
    if _is_folder(run / ENCODERS) and (run / INDEX_PATH).is_file():
        shutil.rmtree(run / ENCODERS)
    start = run / START
    if _is_folder(start) and is_run(start):
        clear_run(start)
        (start / MARKER).unlink(missing_ok=True)
        _remove_if_empty(start)
    if _is_folder(run / MEMBERS):
        for member in (run / MEMBERS).iterdir():
            if _is_folder(member) and is_run(member):
                clear_run(member)
                (member / MARKER).unlink(missing_ok=True)
                _remove_if_empty(member)
        _remove_if_empty(run / MEMBERS)
    if _is_folder(run / CHECKPOINTS):
        for name in _CHECKPOINT_FILES:
            _remove(run / CHECKPOINTS / name)
        _remove_if_empty(run / CHECKPOINTS)
    features = run / "features"
    if _is_folder(features):
        for folder in (*features.glob("[0-9a-f]" * 12), features):
            if _is_folder(folder):
                _clear_caches(folder)


def _clear_caches(folder: Path) -> None:
    """Those that a fine-tuned run makes of the clips it is measured on. Lock files stay: whoever
    waits for one would hold a file that is no longer there.

    Raises CacheBusy where an extraction writes one of them.
    """
    work = folder / ".work"
    with ExitStack() as held:
        for split in SPLITS:
            if (work / f"{split}.lock").is_file():
                held.enter_context(locks.hold_split(folder, split))
        for path in (*(folder / f"{split}.h5" for split in SPLITS), projection_path(folder)):
            _remove(path)
        if _is_folder(work):
            for split in SPLITS:
                clear_shards(work / split)
            _remove_if_empty(work)
    _remove_if_empty(folder)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    remove_temporaries(path)


def _remove_if_empty(folder: Path) -> None:
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _check_run(out: Path, overwrite: bool, inputs: Iterable[Path]) -> Path:
    _check_place(out, overwrite, inputs)
    out.mkdir(parents=True, exist_ok=True)
    return out


def _check_place(out: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"{path} is needed and lies in {out}; name another --out")
    if not out.exists() or all(path.name == MARKER for path in out.iterdir()):
        return
    if not is_run(out):
        raise UsageError(
            f"{out} is not empty and holds no run of meld, so nothing in it is replaced; "
            "name another --out"
        )
    if not overwrite and not (out / CONFIG).exists() and (out / CHECKPOINTS).is_dir():
        raise UsageError(
            f"{out} holds an unfinished fine-tuning; resume it with {resume_command(out)}, name "
            "another --out, or replace it with --overwrite"
        )
    if not overwrite:
        raise UsageError(f"{out} holds a run; name another --out, or replace it with --overwrite")
    _refuse_what_is_in_the_way(out)


def _refuse_what_is_in_the_way(run: Path) -> None:
    """Before anything of the earlier run is removed. Raises UsageError."""
    in_the_way = [run / name for name in _FILES if (run / name).is_dir()]
    for name in (CHECKPOINTS, ENCODERS, START, MEMBERS, GOLDEN, GRAPHS, "features"):
        if (run / name).exists() and not (run / name).is_dir():
            in_the_way.append(run / name)
    start, encoders = run / START, run / ENCODERS
    if start.is_dir() and any(start.iterdir()) and not is_run(start):
        in_the_way.append(start)
    if encoders.is_dir() and any(encoders.iterdir()) and not (run / INDEX_PATH).is_file():
        in_the_way.append(encoders)
    if in_the_way:
        raise UsageError(
            f"{in_the_way[0]} is in the way: a run of meld writes something else there; move it "
            "away, or name another --out"
        )


def _new_run(name: str) -> Path:
    started = datetime.now().strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{count}" for count in range(2, 1000))):
        run = Path("runs") / f"{started}-{name}{suffix}"
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            continue
    raise StorageError(f"a thousand runs are named runs/{started}-{name}")
