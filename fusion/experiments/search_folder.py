"""The folder of a search, opened for one writer, and the file of each draw's trainings in it.

.meld-search    held while it is written; stays, so that the folder is known for a search's
trials/         what each draw's trainings found: <hash of what decides them>.json
search.json, best.toml, search.html
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from fusion.training.history import EpochResult
from fusion.training.run_folder import is_run
from pipeline.errors import CacheCorrupt, StorageError, UsageError
from pipeline.schema import SPLITS
from pipeline.system import locks
from pipeline.system.files import remove_temporaries, write_whole
from pipeline.system.json_values import json_bytes

RESULT, BEST, PAGE = "search.json", "best.toml", "search.html"
MARKER, TRIALS = ".meld-search", "trials"
_HASH_DIGITS = 16
_MOST = {
    **dict.fromkeys(("score", "dev_emotion_f1", "dev_sentiment_f1"), 1.0),
    **dict.fromkeys(("train_loss", "learning_rate", "seconds"), sys.float_info.max),
}
_MAY_BE_MISSING = ("dev_emotion_f1", "dev_sentiment_f1")
_TRIAL = re.compile(rf"[0-9a-f]{{{_HASH_DIGITS}}}\.json")


@contextmanager
def open_search(out: Path) -> Iterator[None]:
    """Holds the folder of a new search, or of one to go on with, for the length of the block;
    temporary files of a killed one are removed.

    Raises UsageError as `refuse_other_folder`, CacheBusy where another search writes it, or
    StorageError.
    """
    refuse_other_folder(out)
    with locks.hold(out / MARKER, f"the search {out}"):
        try:
            (out / TRIALS).mkdir(exist_ok=True)
            for name in (RESULT, BEST, PAGE):
                remove_temporaries(out / name)
            for temporary in (out / TRIALS).glob(f".{'[0-9a-f]' * _HASH_DIGITS}.json.*.tmp"):
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot prepare {out}: {error}") from error
        yield


def refuse_other_folder(out: Path) -> None:
    """Makes nothing. Raises UsageError where `out` has something in it and is no search, or has
    something in the way of a result; StorageError where it cannot be read."""
    try:
        there = {path.name for path in out.iterdir()} if out.exists() else set()
        if there and not (out / MARKER).is_file() and not _is_older_search(out, there):
            raise UsageError(
                f"{out} is not empty and holds no search of meld, so nothing is written into it; "
                "name another --out"
            )
        for name in (RESULT, BEST, PAGE):
            if (out / name).is_dir():
                raise UsageError(
                    f"{out / name} is in the way: it is a folder; move it away, or name another "
                    "--out"
                )
    except (OSError, RuntimeError) as error:  # Runtime: a link that leads back to itself
        raise StorageError(f"cannot read the search's folder: {error}") from error


def _is_older_search(out: Path, there: set[str]) -> bool:
    """Of before there was a marker: it has trials, and is neither a run nor a folder of caches.

    Raises OSError.
    """
    if not (out / TRIALS).is_dir() or is_run(out) or there & {f"{split}.h5" for split in SPLITS}:
        return False
    trials = [path.name for path in (out / TRIALS).iterdir() if not path.name.endswith(".tmp")]
    return bool(trials) and all(_TRIAL.fullmatch(name) for name in trials)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What some trainings of one draw found: the best epoch of each; or, where the loss of one
    became no number, that error's message."""

    best: tuple[EpochResult, ...] = ()
    failure: str | None = None


def trial_path(out: Path, digest: str) -> Path:
    """digest: hexadecimal, of what decides the trainings"""
    return out / TRIALS / f"{digest[:_HASH_DIGITS]}.json"


def write_trial(path: Path, trained: Trained) -> None:
    """Raises StorageError."""
    if trained.failure is not None:
        write_whole(path, json_bytes({"failed": trained.failure}))
    else:
        write_whole(path, json_bytes({"best": [asdict(each) for each in trained.best]}))


def read_trial(path: Path, count: int) -> Trained | None:
    """Of `count` trainings; None where they are not trained yet. Raises StorageError, CacheCorrupt
    where it cannot be what `write_trial` wrote."""
    try:
        values = json.loads(path.read_bytes())
        if "failed" in values:
            if not isinstance(values["failed"], str) or not values["failed"]:
                raise ValueError(f"failed: {values['failed']!r}")
            return Trained(failure=values["failed"])
        best = tuple(EpochResult(**each) for each in values["best"])
        if len(best) != count:
            raise ValueError(f"{len(best)} results, wanted {count}")
        for each in best:
            _check_result(each)
        return Trained(best=best)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: no trial of a search ({error!r}); delete it") from error


def _check_result(result: EpochResult) -> None:
    """Raises ValueError for what no training finds."""
    if type(result.epoch) is not int or result.epoch < 1:
        raise ValueError(f"epoch {result.epoch!r}")
    # Of dev a loss may be infinite, or no number, where the scores are fine.
    if type(result.dev_loss) not in (int, float):
        raise ValueError("dev_loss is no number")
    for name, most in _MOST.items():
        value = getattr(result, name)
        if value is None and name in _MAY_BE_MISSING:
            continue
        if type(value) not in (int, float) or not 0 <= value <= most:
            raise ValueError(f"{name} is none from 0 to {most:g}")
