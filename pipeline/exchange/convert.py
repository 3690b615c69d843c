"""`meld convert`: feature caches -> Parquet, npz or MMSA's pickle; and back from the first two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.cache.format import FeatureCache, check_replaceable, read_cache, write_cache
from pipeline.errors import InputError, RecipeMismatch, StorageError, UsageError
from pipeline.exchange import npz
from pipeline.exchange.arrays import read_bytes
from pipeline.exchange.card import SplitFacts, is_card, write_card
from pipeline.exchange.mmsa import write_mmsa
from pipeline.exchange.npz import read_npz, write_npz
from pipeline.exchange.rows import settle_rows
from pipeline.recipe import FeatureRecipe
from pipeline.schema import SPLITS, Split
from pipeline.system import locks
from pipeline.system.extras import needs_extra
from pipeline.system.files import remove_temporaries, write_whole

Format = Literal["parquet", "npz", "mmsa", "cache"]
CARD = "README.md"
MMSA_FILE = "mmsa.pkl"


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert.

    source: a cache, a .npz or .parquet file that was converted from one, or a folder of such files
    to: format to write: parquet, npz, mmsa or cache
    out: folder to write to
    overwrite: replace files that are there
    """

    source: Path
    to: Format
    out: Path
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """rows: of each split, as read; left_out: rows that the format cannot hold"""

    to: Format
    files: tuple[Path, ...]
    recipe: FeatureRecipe
    rows: Mapping[Split, int]
    left_out: Mapping[Split, int]

    def to_dict(self) -> dict[str, Any]:
        return {
            "to": self.to,
            "files": [str(path) for path in self.files],
            "fingerprint": self.recipe.fingerprint,
            "random_weights": list(self.recipe.random_modalities),
            "rows": dict(self.rows),
            "left_out": dict(self.left_out),
        }


def convert(config: ConvertConfig) -> ConvertReport:
    """Reads every split and writes it in the other format; each file appears whole.

    Raises:
        UsageError: a file is in the way, or an extra is not installed.
        InputError, StorageError: a file cannot be read, has a row twice, or lacks what the format
            needs.
        RecipeMismatch: the splits were not made alike, or not as Parquet files that are there.
        CacheBusy: another process writes there.
    """
    sources = find_sources(config.source)
    _check_targets(config)
    caches = [_read(path) for path in sources]
    _check_alike(sources, caches)
    files = _targets(config, caches)
    for path in files:
        _check_replaceable(path, config.to)
    if config.to == "cache":
        for path, cache in zip(files, caches, strict=True):
            _write_cache(path, cache)
        left_out: dict[Split, int] = {}
    else:
        with locks.hold_folder(config.out, f"what is in {config.out}") as is_alone:
            files, left_out = _write(config, sources[0], files, caches, is_alone=is_alone)
    return ConvertReport(
        to=config.to,
        files=tuple(files),
        recipe=caches[0].recipe,
        rows={cache.split: len(cache) for cache in caches},
        left_out={split: count for split, count in left_out.items() if count},
    )


def find_sources(source: Path) -> list[Path]:
    """The files to read, in the order of the splits. Raises UsageError or StorageError."""
    if source.is_file():
        if source.suffix not in _READERS:
            raise UsageError(f"{source}: a file that ends in {', '.join(_READERS)}, or a folder")
        return [source]
    if not source.is_dir():
        raise StorageError(f"{source}: no such file or folder")
    kinds = {
        suffix: [path for split in SPLITS if (path := source / f"{split}{suffix}").is_file()]
        for suffix in _READERS
    }
    there = {suffix: paths for suffix, paths in kinds.items() if paths}
    if not there:
        names = " or ".join(f"train{suffix}" for suffix in _READERS)
        raise InputError(f"{source}: no {names}, and no such file of another split")
    if len(there) > 1:
        raise UsageError(f"{source} holds {' and '.join(there)} files; name one file of them")
    [paths] = there.values()
    return paths


def _check_targets(config: ConvertConfig) -> None:
    """Before anything is read: nothing is replaced unasked, and a card of somebody else never."""
    names = [f"{split}{_SUFFIXES[config.to]}" for split in SPLITS if config.to in _SUFFIXES]
    names += {"parquet": [CARD], "mmsa": [MMSA_FILE]}.get(config.to, [])
    for name in names:
        path = config.out / name
        if not path.exists():
            continue
        if not path.is_file():
            raise UsageError(f"{path} is in the way and is no file; name another --out")
        if name == CARD and not is_card(read_bytes(path)):
            raise UsageError(
                f"{path} is no card of meld convert and is left as it is; name another --out"
            )
        if not config.overwrite:
            raise UsageError(
                f"{path} is there already; name another --out, or replace it with --overwrite"
            )


def _check_replaceable(path: Path, to: Format) -> None:
    """Raises UsageError for a file that is there and of somebody else. Of MMSA's pickle that is not
    asked: to read one is to trust it."""
    if not path.exists() or to == "mmsa":
        return
    if to == "cache":
        check_replaceable(path)
        return
    if to == "parquet":
        with needs_extra("parquet"):
            from pipeline.exchange import arrow
        is_of_others = arrow.is_of_others(path)
    else:
        is_of_others = npz.is_of_others(path)
    if is_of_others:
        raise UsageError(
            f"{path} was not written by meld convert and is left as it is; move it away, or name "
            "another --out"
        )


def _read(path: Path) -> FeatureCache:
    return settle_rows(_READERS[path.suffix](path), str(path))


def _check_alike(paths: list[Path], caches: list[FeatureCache]) -> None:
    for path, cache in zip(paths, caches, strict=True):
        if len(paths) > 1 and cache.split != path.stem:
            raise InputError(f"{path} holds {cache.split}; name it {cache.split}{path.suffix}")
        _check_recipe(path, cache.recipe, paths[0], caches[0].recipe)
        for name, values in cache.raw.items():
            if 0 in values.shape[1:]:
                raise InputError(f"{path}: {name} features of {list(values.shape[1:])} are empty")


def _check_recipe(path: Path, recipe: FeatureRecipe, first: Path, wanted: FeatureRecipe) -> None:
    differing = recipe.differences(wanted)
    if differing:
        raise RecipeMismatch(
            f"{path} and {first} were made with different recipes ({'; '.join(differing)}); "
            "convert them into folders of their own"
        )


def _targets(config: ConvertConfig, caches: Sequence[FeatureCache]) -> list[Path]:
    """The files to write, but for the card."""
    if config.to == "mmsa":
        return [config.out / MMSA_FILE]
    return [config.out / f"{cache.split}{_SUFFIXES[config.to]}" for cache in caches]


def _write_cache(path: Path, cache: FeatureCache) -> None:
    with locks.hold_split(path.parent, cache.split):
        _tidy([path])
        write_cache(path, cache)


def _write(
    config: ConvertConfig,
    first: Path,
    files: list[Path],
    caches: list[FeatureCache],
    *,
    is_alone: bool,
) -> tuple[list[Path], dict[Split, int]]:
    """All that was written, and the rows of each split that are not in it; `first` was read
    first."""
    out = config.out
    if is_alone:
        _tidy([*files, out / CARD] if config.to == "parquet" else files)
    if config.to == "mmsa":
        return files, write_mmsa(files[0], caches)
    if config.to == "npz":
        for path, cache in zip(files, caches, strict=True):
            write_npz(path, cache)
        return files, {}
    return [*files, _write_parquet(out, first, files, caches)], {}


def _tidy(paths: Sequence[Path]) -> None:
    """Removes what killed writers of these files left. Raises StorageError."""
    try:
        for path in paths:
            remove_temporaries(path)
    except OSError as error:
        raise StorageError(f"{error.filename}: cannot be removed: {error.strerror}") from error


def _write_parquet(
    out: Path, first: Path, files: Sequence[Path], caches: Sequence[FeatureCache]
) -> Path:
    """Writes the files and returns the card, which tells of files from before too."""
    with needs_extra("parquet"):
        from pipeline.exchange.arrow import write_parquet
    facts = {cache.split: _facts(cache) for cache in caches}
    facts |= _facts_from_before(out, first, caches)
    for path, cache in zip(files, caches, strict=True):
        write_parquet(path, cache)
    in_order = [facts[split] for split in SPLITS if split in facts]
    write_whole(out / CARD, write_card(caches[0].recipe, in_order).encode())
    return out / CARD


def _facts_from_before(
    out: Path, first: Path, caches: Sequence[FeatureCache]
) -> dict[Split, SplitFacts]:
    """Of our files of other splits in that folder. Raises RecipeMismatch, or what reading them
    raises."""
    from pipeline.exchange.arrow import is_ours

    facts = {}
    for split in SPLITS:
        path = out / f"{split}.parquet"
        if any(cache.split == split for cache in caches) or not path.is_file():
            continue
        if is_ours(path):
            cache = _read(path)
            _check_recipe(path, cache.recipe, first, caches[0].recipe)
            if cache.split != split:
                raise InputError(f"{path} holds {cache.split}; name it {cache.split}.parquet")
            facts[split] = _facts(cache)
    return facts


def _facts(cache: FeatureCache) -> SplitFacts:
    return SplitFacts(
        split=cache.split,
        file=f"{cache.split}.parquet",
        rows=len(cache),
        shapes={f"{name}_raw": values.shape[1:] for name, values in cache.raw.items()}
        | {f"{name}_embedding": each.shape[1:] for name, each in cache.embedding.items()},
        present={name: int(there.sum()) for name, there in cache.present.items()},
    )


def _read_parquet(path: Path) -> FeatureCache:
    with needs_extra("parquet"):
        from pipeline.exchange.arrow import read_parquet
    return read_parquet(path)


_READERS: dict[str, Callable[[Path], FeatureCache]] = {
    ".h5": read_cache,
    ".npz": read_npz,
    ".parquet": _read_parquet,
}
_SUFFIXES: dict[str, str] = {"cache": ".h5", "npz": ".npz", "parquet": ".parquet"}
