"""The projection of raw features to 128-d embeddings: a PCA fitted on the train split.

An untrained projection layer would only mix the features at random; a PCA keeps the directions of
the largest variance and reports its share.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.format import FeatureCache, read_recipe, write_recipe
from pipeline.cache.hdf5 import Reader, Writer, open_hdf5, write_hdf5
from pipeline.recipe import FeatureRecipe
from pipeline.schema import EMBEDDING_DIM, MODALITIES, Modality

FORMAT = "meld-projection"
FORMAT_VERSION = 1

_MIN_SCALE = 1e-6
_MIN_EXPLAINED = 1e-12
_AXES = {"mean": 1, "scale": 1, "components": 2, "explained_variance": 1}


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Raw features of one modality to 128: standardise, then principal components.

    mean, scale:        float64 [dim], of the train rows (features averaged over layers)
    components:         float64 [128, dim]; rows beyond the rank are zero
    explained_variance: float64 [128], share of the standardised variance
    num_rows:           train rows it was fitted on
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    components: NDArray[np.float64]
    explained_variance: NDArray[np.float64]
    num_rows: int

    def __post_init__(self) -> None:
        if self.components.shape != (EMBEDDING_DIM, len(self.mean)):
            raise ValueError(f"components must be [{EMBEDDING_DIM}, dim]: {self.components.shape}")


def fit_projections(train: FeatureCache) -> dict[Modality, Projection]:
    """One projection for each modality that some train row has."""
    return {
        modality: fit_projection(raw[train.present[modality]])
        for modality, raw in train.raw.items()
        if train.present[modality].any()
    }


def fit_projection(raw: NDArray[np.float32]) -> Projection:
    """Fits on float32 [rows, layers, dim]; layers are averaged.

    Features are standardised first, or the few loudest dimensions would be all there is.
    With fewer rows or dimensions than 128, or dimensions that never vary, the remaining
    components are zero.
    """
    values = raw.mean(axis=1, dtype=np.float64)  # [rows, dim]
    mean = values.mean(axis=0)
    spread = values.std(axis=0)
    # What is constant in train has weight 0; dividing by its spread would blow it up elsewhere.
    scale = np.where(spread > _MIN_SCALE, spread, 1.0)
    rank = min(EMBEDDING_DIM, len(values) - 1, values.shape[1])
    components = np.zeros((EMBEDDING_DIM, values.shape[1]))
    explained = np.zeros(EMBEDDING_DIM)
    if rank > 0 and (spread > _MIN_SCALE).any():
        directions, shares = _principal_components((values - mean) / scale)
        # Beyond the true rank, components are rounding noise in directions nothing varied in.
        kept = int((shares[:rank] > _MIN_EXPLAINED).sum())
        components[:kept], explained[:kept] = directions[:kept], shares[:kept]
    return Projection(
        mean=mean,
        scale=scale,
        components=components,
        explained_variance=explained,
        num_rows=len(values),
    )


def _principal_components(
    centred: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[rows, dim] -> [dim, dim] of unit length, largest first, and [dim], their shares of variance.

    By the covariance's eigenvectors, each with its largest entry positive: what scikit-learn's PCA
    does with svd_solver="covariance_eigh" (a test compares), without the two seconds that importing
    it costs every extraction.
    """
    covariance = centred.T @ centred / (len(centred) - 1)
    variances, vectors = np.linalg.eigh(covariance)  # smallest first
    variances, directions = variances[::-1].clip(min=0), vectors[:, ::-1].T
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return directions * signs[:, None], variances / variances.sum()


def project(raw: NDArray[np.float32], projection: Projection) -> NDArray[np.float32]:
    """float32 [rows, layers, dim] -> [rows, 128]."""
    values = raw.mean(axis=1, dtype=np.float64)
    standardised = (values - projection.mean) / projection.scale
    return (standardised @ projection.components.T).astype(np.float32)


def hash_projections(projections: dict[Modality, Projection]) -> str:
    """SHA-256 over all arrays: ties embeddings to the projection that made them."""
    digest = hashlib.sha256()
    for modality in sorted(projections):
        projection = projections[modality]
        digest.update(modality.encode())
        for values in (projection.mean, projection.scale, projection.components):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------------------ on the disk


def write_projections(
    path: Path, projections: dict[Modality, Projection], recipe: FeatureRecipe
) -> None:
    """Writes the projections beside the caches; raises StorageError."""

    def fill(writer: Writer) -> None:
        write_recipe(writer, recipe)
        for modality, projection in projections.items():
            for name in _AXES:
                writer.array(f"{modality}/{name}", getattr(projection, name))
            writer.number("num_rows", projection.num_rows, at=modality)

    write_hdf5(path, FORMAT, FORMAT_VERSION, fill)


def read_projections(path: Path, recipe: FeatureRecipe) -> dict[Modality, Projection] | None:
    """The projections that belong to a recipe; None where there are none for it.

    Raises:
        CacheCorrupt: the file is damaged.
    """
    if not path.is_file():
        return None
    with open_hdf5(path, FORMAT, FORMAT_VERSION) as reader:
        if read_recipe(reader) != recipe:
            return None
        return {name: _read_projection(reader, name) for name in MODALITIES if name in reader}


def _read_projection(reader: Reader, modality: Modality) -> Projection:
    arrays = {
        name: reader.array(f"{modality}/{name}", np.float64, num_axes)
        for name, num_axes in _AXES.items()
    }
    return Projection(**arrays, num_rows=reader.number("num_rows", at=modality))
