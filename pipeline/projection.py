"""Raw features to 128-d embeddings: a PCA fitted on the train split.

An untrained projection layer would only shuffle the features at random; this one keeps what
varies most and says how much that is.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from pipeline.cache import FeatureCache, Projection
from pipeline.schema import EMBEDDING_DIM, Modality

_MIN_SCALE = 1e-6
_MIN_EXPLAINED = 1e-12


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
        from sklearn.decomposition import PCA  # slow to import, and only fitting needs it

        pca = PCA(n_components=rank, svd_solver="covariance_eigh").fit((values - mean) / scale)
        # Beyond the true rank, components are rounding noise in directions nothing varied in.
        kept = int((pca.explained_variance_ratio_ > _MIN_EXPLAINED).sum())
        components[:kept] = pca.components_[:kept]
        explained[:kept] = pca.explained_variance_ratio_[:kept]
    return Projection(
        mean=mean,
        scale=scale,
        components=components,
        explained_variance=explained,
        num_rows=len(values),
    )


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
