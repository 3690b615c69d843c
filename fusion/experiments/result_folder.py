"""A folder of results that are made part by part (a search, an ablation), opened for one writer.

.meld-<kind>       held while it is written; stays, so that the folder is known for its kind
<parts>/           a file of each part, so that the same command goes on where it stopped
and its results
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StorageError, UsageError
from pipeline.system import locks
from pipeline.system.files import remove_temporaries


@dataclass(frozen=True, kw_only=True)
class ResultFolder:
    """kind: as messages call it; parts: name of the folder of parts; part: how its files are named;
    results: names of the files that are made of them"""

    kind: str
    parts: str
    part: re.Pattern[str]
    results: tuple[str, ...]

    @contextmanager
    def open(self, out: Path) -> Iterator[None]:
        """Holds `out`, new or to go on with, for the length of the block; temporary files of a
        killed process are removed.

        Raises UsageError as `refuse_other`, CacheBusy where another process writes it, or
        StorageError.
        """
        self.refuse_other(out)
        with locks.hold(out / self._marker, f"the {self.kind} {out}"):
            try:
                (out / self.parts).mkdir(exist_ok=True)
                for name in self.results:
                    remove_temporaries(out / name)
                for path in (out / self.parts).iterdir():
                    name = path.name.removeprefix(".").rsplit(".", 2)[0]
                    if path.name.endswith(".tmp") and self.part.fullmatch(name):
                        path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"cannot prepare {out}: {error}") from error
            yield

    def refuse_other(self, out: Path) -> None:
        """Makes nothing. Raises UsageError where `out` has something in it and is none of this
        kind, or has something in the way of a result; StorageError where it cannot be read."""
        try:
            has_something = out.exists() and any(out.iterdir())
            if has_something and not (out / self._marker).is_file():
                raise UsageError(
                    f"{out} is not empty and holds no {self.kind} of meld, so nothing is written "
                    "into it; name another --out"
                )
            for name in self.results:
                if (out / name).is_dir():
                    raise UsageError(
                        f"{out / name} is in the way: it is a folder; move it away, or name "
                        "another --out"
                    )
        except (OSError, RuntimeError) as error:  # Runtime: a link that leads back to itself
            raise StorageError(f"cannot read the folder of the {self.kind}: {error}") from error

    @property
    def _marker(self) -> str:
        return f".meld-{self.kind}"
