"""What became of an import, as values."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.recipe import FeatureRecipe
from pipeline.schema import ClipFailure, Modality, Split


@dataclass(frozen=True, kw_only=True)
class SplitImport:
    """What became of a split.

    imported:   rows that have the modality now
    not_matched: names that are no clip of the split
    failures:   rows that have not, with the reason
    """

    split: Split
    rows: int
    imported: int
    not_matched: tuple[str, ...]
    failures: tuple[ClipFailure, ...]

    def by_code(self) -> dict[str, list[ClipFailure]]:
        """Failures by code, most frequent first."""
        codes = Counter(each.code for each in self.failures)
        return {
            code: [each for each in self.failures if each.code == code]
            for code, _ in codes.most_common()
        }


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """shape: (layers, dim) of a row; columns: names of the features, empty where they have none;
    left_out: columns that hold no numbers; variance: share that the embeddings keep, None without
    a train cache"""

    modality: Modality
    name: str
    out: Path
    recipe: FeatureRecipe
    shape: tuple[int, int]
    pooling: str
    columns: tuple[str, ...]
    left_out: tuple[str, ...]
    splits: tuple[SplitImport, ...]
    variance: float | None = None

    @property
    def num_failures(self) -> int:
        return sum(len(each.failures) for each in self.splits)

    def to_dict(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "name": self.name,
            "out": str(self.out),
            "fingerprint": self.recipe.fingerprint,
            "input_sha256": self.recipe.encoder_of(self.modality).weights_hash,
            "shape": list(self.shape),
            "pooling": self.pooling,
            "columns": list(self.columns),
            "left_out": list(self.left_out),
            "variance": self.variance,
            "splits": {
                each.split: {
                    "rows": each.rows,
                    "imported": each.imported,
                    "not_matched": list(each.not_matched),
                    "failures": {
                        code: [{"clip": str(one.key), "message": one.message} for one in failures]
                        for code, failures in each.by_code().items()
                    },
                }
                for each in self.splits
            },
        }
