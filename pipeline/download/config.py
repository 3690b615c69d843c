"""The configuration of `meld download`. All defaults are defined here."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline.download.fetch import Patience
from pipeline.errors import UsageError
from pipeline.schema import SPLITS, Split
from pipeline.system.one_line import without_secrets

Stage = Literal["fetching", "checking", "unpacking"]
OnBytes = Callable[[Stage, int, int | None], None]  # bytes done, bytes in all where known

# Under `out`: what is unfinished.
WORK_FOLDER = ".download"


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Where MELD comes from and goes to.

    out:    folder to write CSVs and clips to
    url:    another URL of the archive; None takes the public ones
    source: archive or folder to use instead of downloading (`--from`)
    splits: splits to unpack
    keep_archive: keep the downloaded archive in `out`
    sha256: SHA-256 of the archive, if it is not the published one
    """

    out: Path = Path("data")
    url: str | None = None
    source: Path | None = None
    splits: tuple[Split, ...] = SPLITS
    keep_archive: bool = False
    sha256: str | None = None
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if self.url is not None and self.source is not None:
            raise UsageError("--url and --from: an address or a file, not both")
        if self.keep_archive and self.source is not None:
            raise UsageError("--keep-archive: nothing is fetched with --from; leave it out")
        if self.patience != Patience() and self.source is not None:
            raise UsageError(
                "patience is for servers, and with --from nothing is fetched; leave one of the two "
                "out"
            )
        if self.url is not None and not _is_address(self.url):
            raise UsageError(
                f"--url {without_secrets(self.url)}: takes an address like https://..."
            )
        if self.sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise UsageError(f"--sha256 {self.sha256}: takes 64 hexadecimal digits")
        if not self.splits:
            raise UsageError("--splits: at least one of train, dev, test")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # half a bracket
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
