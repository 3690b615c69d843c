"""Raw features to 128-d embeddings: a PCA fitted on the train split.

An untrained projection layer would only shuffle the features at random; this one keeps what
varies most and says how much that is.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from pipeline.cache import FeatureCache, Projection
from pipeline.schema import EMBEDDING_DIM, Modality

_MIN_SCALE = 1e-6


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
    With fewer rows or dimensions than 128 the remaining components are zero.
    """
    values = raw.mean(axis=1, dtype=np.float64)  # [rows, dim]
    mean = values.mean(axis=0)
    scale = np.maximum(values.std(axis=0), _MIN_SCALE)
    rank = min(EMBEDDING_DIM, len(values) - 1, values.shape[1])
    components = np.zeros((EMBEDDING_DIM, values.shape[1]))
    explained = np.zeros(EMBEDDING_DIM)
    if rank > 0:
        pca = PCA(n_components=rank, svd_solver="covariance_eigh").fit((values - mean) / scale)
        components[:rank] = pca.components_
        explained[:rank] = pca.explained_variance_ratio_
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
