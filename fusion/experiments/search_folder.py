"""The folder of a search, and the file of each draw's trainings in it.

trials/         what each draw's trainings found: <hash of what decides them>.json
search.json, best.toml, search.html
"""

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from fusion.experiments.result_folder import ResultFolder
from fusion.training.history import EpochResult
from pipeline.errors import CacheCorrupt, StorageError
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED, json_bytes

RESULT, BEST, PAGE = "search.json", "best.toml", "search.html"
TRIALS = "trials"
_HASH_DIGITS = 16
_MOST = {
    **dict.fromkeys(("score", "dev_emotion_f1", "dev_sentiment_f1"), 1.0),
    **dict.fromkeys(("train_loss", "learning_rate", "seconds"), sys.float_info.max),
}
_MAY_BE_MISSING = ("dev_emotion_f1", "dev_sentiment_f1")
SEARCH = ResultFolder(
    kind="search",
    parts=TRIALS,
    part=re.compile(rf"[0-9a-f]{{{_HASH_DIGITS}}}\.json"),
    results=(RESULT, BEST, PAGE),
)


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
    except MALFORMED as error:
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
