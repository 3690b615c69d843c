"""What features of another tool to import, into which caches."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.importing.items import Pooling
from pipeline.schema import SPLITS, Modality, Split

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+ -]{0,79}")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What to import.

    modality: modality that the features become
    name: name of the tool that made them, as reports shall call it
    source: where they lie: a path, or "train=PATH" for each split
    features: folder of the caches
    out: folder to write the caches to; None replaces them
    pool: of the frames of a clip: mean; mean_std, which has the standard deviation as well; or
        none, where a clip has layers instead of frames. None takes the mean where there are frames
    suffix: what follows the clip's name in the names that are read: _rgb of dia0_utt3_rgb.npy
    column: column of a Parquet file, or array of an .npz, that holds the features
    overwrite: replace the modality where the caches have it, or the caches in `out`
    """

    modality: Modality
    name: str
    source: tuple[str, ...]
    features: Path = Path("features")
    out: Path | None = None
    pool: Pooling | None = None
    suffix: str | None = None
    column: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"--name {self.name!r}: letters, digits, spaces and . _ + - alone, 80 at most"
            )
        if not self.paths or (len(self.source) > 1 and None in self.paths):
            raise UsageError("--from takes one path, or one for each split: --from train=PATH")
        if len(self.paths) < len(self.source):
            raise UsageError(f"--from {self.source[-1]}: a split is named twice")

    @property
    def paths(self) -> dict[Split | None, Path]:
        """By split, in order; under None one that may hold all."""
        said = dict(map(_split_path, self.source))
        splits: list[Split | None] = [*SPLITS, None]
        return {split: said[split] for split in splits if split in said}

    @property
    def is_elsewhere(self) -> bool:
        """Whether the caches that are read are left as they are."""
        return self.out is not None and self.out.resolve() != self.features.resolve()


def _split_path(said: str) -> tuple[str | None, Path]:
    """ "train=PATH" -> both; a path that happens to have = in it is one.

    Raises UsageError where another word stands before a path that is there.
    """
    before, sign, path = said.partition("=")
    if sign and before not in SPLITS and Path(path).exists() and not Path(said).exists():
        raise UsageError(f"--from {said}: {before} is no split; there are {', '.join(SPLITS)}")
    return (before, Path(path)) if sign and before in SPLITS else (None, Path(said))
