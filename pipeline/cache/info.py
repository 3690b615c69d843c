"""Describes a cache without reading its features (`meld info`)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cache.format import FeatureCache, read_cache, verify
from pipeline.corpus.clips import locate_clips
from pipeline.corpus.sources import describe as describe_clip
from pipeline.corpus.sources import is_untouched, looks_alike
from pipeline.errors import InputError
from pipeline.recipe import FeatureRecipe
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipFailure, ClipKey, Modality, Split, Utterance


@dataclass(frozen=True, kw_only=True)
class StaleRows:
    """Rows whose clip under `data` is not the file that was read, by name, size and time.

    touched: rows whose file has another time or name and the same size: its bytes may be the
             same, which `meld extract` finds out
    """

    data: Path
    appeared: tuple[ClipKey, ...]
    went: tuple[ClipKey, ...]
    changed: tuple[ClipKey, ...]
    touched: tuple[ClipKey, ...]

    def to_dict(self) -> dict[str, Any]:
        names = ("appeared", "went", "changed", "touched")
        return {name: [str(key) for key in getattr(self, name)] for name in names}


@dataclass(frozen=True, kw_only=True)
class CacheInfo:
    """One cache file in numbers. `damaged` is None where checksums were not asked for, `stale`
    where no clips were compared.

    ledger:         every failure, in the order of rows
    failures:       entries of the ledger by kind
    first_failures: of each kind the first row that has it, and what the ledger says of that
    """

    path: Path
    split: Split
    rows: int
    size_bytes: int
    recipe: FeatureRecipe
    present: dict[Modality, int]
    shapes: dict[str, tuple[int, ...]]
    emotions: dict[str, int]
    sentiments: dict[str, int]
    ledger: tuple[ClipFailure, ...]
    failures: dict[str, int]
    first_failures: dict[str, str]
    rows_with_failures: int
    has_embedding: bool
    damaged: tuple[str, ...] | None
    stale: StaleRows | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "split": self.split,
            "rows": self.rows,
            "size_bytes": self.size_bytes,
            "fingerprint": self.recipe.fingerprint,
            "recipe": self.recipe.to_dict(),
            "random_weights": list(self.recipe.random_modalities),
            "present": self.present,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "emotions": self.emotions,
            "sentiments": self.sentiments,
            "failures": self.failures,
            "first_failures": self.first_failures,
            "ledger": [
                {
                    "clip": str(failure.key),
                    "modality": failure.modality,
                    "stage": failure.stage,
                    "code": failure.code,
                    "message": failure.message,
                    "lost": failure.lost,
                }
                for failure in self.ledger
            ],
            "rows_with_failures": self.rows_with_failures,
            "has_embedding": self.has_embedding,
            "damaged": None if self.damaged is None else list(self.damaged),
            "stale": None if self.stale is None else self.stale.to_dict(),
        }


def describe(path: Path, *, check: bool = False, data: Path | None = None) -> CacheInfo:
    """Reads a cache's labels, ledger and features' shapes; with `check`, every checksum.

    data: the corpus whose clips are compared with those that were read; None compares none

    Raises:
        InputError: no such corpus folder, or a folder of clips cannot be listed.
        StorageError, CacheCorrupt: not there, no cache, or too damaged to be described.
    """
    if data is not None and not data.is_dir():
        raise InputError(f"{data}: no such folder; --data takes the corpus to compare clips with")
    damaged = tuple(verify(path)) if check else None
    cache = read_cache(path, want=() if damaged else ("raw", "embedding"))
    shapes = {f"raw/{name}": values.shape for name, values in cache.raw.items()}
    shapes |= {f"embedding/{name}": values.shape for name, values in cache.embedding.items()}
    return CacheInfo(
        path=path,
        split=cache.split,
        rows=len(cache),
        size_bytes=path.stat().st_size,
        recipe=cache.recipe,
        present={name: int(present.sum()) for name, present in cache.present.items()},
        shapes=shapes,
        emotions=_count(cache.emotion, EMOTIONS),
        sentiments=_count(cache.sentiment, SENTIMENTS),
        ledger=cache.failures,
        failures=count_failures(cache.failures),
        first_failures={
            _kind(failure): f"{failure.key}: {failure.message}"
            for failure in reversed(cache.failures)
        },
        rows_with_failures=len({failure.key for failure in cache.failures}),
        has_embedding=bool(cache.embedding),
        damaged=damaged,
        stale=None if data is None or not cache.sources else _compare(cache, data),
    )


def _compare(cache: FeatureCache, data: Path) -> StaleRows:
    """Compares by name, size and time alone, without reading clips."""
    rows = [Utterance(key=cache.key(row), text="") for row in range(len(cache))]
    clips = locate_clips(data, cache.split, rows, cache.recipe.test_clips or "fixed")
    found: dict[str, list[ClipKey]] = {}
    for before, clip in zip(cache.sources, clips, strict=True):
        here = describe_clip(clip, data)
        if not is_untouched(before, here):
            kind = "touched" if looks_alike(before, here) else "changed"
            if not before.file or not here.file:
                kind = "appeared" if here.file else "went"
            found.setdefault(kind, []).append(clip.utterance.key)
    kinds = ("appeared", "went", "changed", "touched")
    return StaleRows(data=data, **{kind: tuple(found.get(kind, ())) for kind in kinds})


def _count(labels: list[str], names: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(labels)
    counted = {name: counts[name] for name in names}
    return counted | ({"unlabelled": counts[""]} if counts[""] else {})


def count_failures(failures: Sequence[ClipFailure]) -> dict[str, int]:
    """Failures by "modality stage code", most frequent first."""
    return dict(Counter(map(_kind, failures)).most_common())


def _kind(failure: ClipFailure) -> str:
    return f"{failure.modality} {failure.stage} {failure.code}"
