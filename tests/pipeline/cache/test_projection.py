"""The 128-d embedding: a planted subspace is found, and its share of the variance is right."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from pipeline.cache.format import FeatureCache
from pipeline.cache.projection import fit_projection, fit_projections, hash_projections, project
from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe

Rows = NDArray[np.float32]


def planted(num_rows: int, dim: int, rank: int, *, noise: float = 0.0, seed: int = 0) -> Rows:
    """float32 [rows, 1, dim] that vary in `rank` directions, and a little everywhere."""
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((rank, dim))
    values = random.standard_normal((num_rows, rank)) @ directions
    values += noise * random.standard_normal((num_rows, dim))
    return values[:, None, :].astype(np.float32)


def cache(raw: Rows, present: NDArray[np.bool_]) -> FeatureCache:
    rows = len(raw)
    encoder = EncoderSpec(
        modality="audio",
        name="planted",
        weights="none",
        weights_hash="0",
        pooling="mean",
        precision="float32",
    )
    return FeatureCache(
        split="train",
        recipe=FeatureRecipe(encoders=(encoder,), decode=DecodeConfig()),
        rows_hash="0",
        dialogue_id=np.arange(rows),
        utterance_id=np.zeros(rows, np.int64),
        text=["Hi"] * rows,
        speaker=[""] * rows,
        emotion=["joy"] * rows,
        sentiment=["positive"] * rows,
        raw={"audio": raw},
        present={"audio": present},
    )


def test_a_planted_subspace_is_recovered() -> None:
    """Ten directions hold all there is: the embedding keeps every distance between rows."""
    raw = planted(400, 300, 10)
    projection = fit_projection(raw)
    embedding = project(raw, projection)
    assert embedding.shape == (400, 128)
    assert embedding.dtype == np.float32
    standardised = (raw[:, 0] - projection.mean) / projection.scale
    assert np.allclose(_distances(embedding), _distances(standardised), rtol=1e-3, atol=1e-3)
    assert projection.explained_variance[:10].sum() == pytest.approx(1, abs=1e-6)
    assert projection.explained_variance[10:].sum() == pytest.approx(0, abs=1e-6)


def _distances(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.linalg.norm(values[:50, None] - values[None, :50], axis=2)


@pytest.mark.heavy
def test_unseen_rows_of_the_subspace_are_kept_too() -> None:
    projection = fit_projection(planted(400, 300, 10))
    unseen = planted(50, 300, 10, seed=1)
    standardised = (unseen[:, 0] - projection.mean) / projection.scale
    embedding = project(unseen, projection)
    assert np.allclose(_distances(embedding), _distances(standardised), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("rows", "dim"), [(400, 200), (60, 200)])
def test_the_components_are_those_of_scikit_learn(rows: int, dim: int) -> None:
    raw = planted(rows, dim, 40, noise=0.3)
    fitted = fit_projection(raw)
    rank = min(128, rows - 1)
    standardised = (raw.mean(axis=1, dtype=np.float64) - fitted.mean) / fitted.scale
    theirs = PCA(n_components=rank, svd_solver="covariance_eigh").fit(standardised)
    np.testing.assert_allclose(fitted.components[:rank], theirs.components_, atol=1e-9)
    np.testing.assert_allclose(
        fitted.explained_variance[:rank], theirs.explained_variance_ratio_, atol=1e-12
    )


def test_explained_variance_is_the_share_of_the_whole() -> None:
    raw = planted(600, 200, 5, noise=0.5)
    projection = fit_projection(raw)
    values = raw[:, 0].astype(np.float64)
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(values.T))[::-1]
    assert np.allclose(projection.explained_variance, eigenvalues[:128] / 200, atol=1e-9)
    assert projection.explained_variance[:5].sum() > 0.8
    embedding = project(raw, projection).astype(np.float64)
    shares = embedding.var(axis=0) / 200
    assert np.allclose(shares, projection.explained_variance, atol=1e-5)


def test_loud_dimensions_do_not_drown_the_others() -> None:
    raw = planted(300, 40, 3)
    loud = raw.copy()
    loud[:, :, 7] *= 1e4
    assert np.allclose(
        np.abs(project(raw, fit_projection(raw))),
        np.abs(project(loud, fit_projection(loud))),
        atol=1e-2,
    )


def test_layers_are_averaged() -> None:
    first, second = planted(150, 30, 4), planted(150, 30, 4, seed=3)
    both = np.concatenate([first, second], axis=1)
    mean = (first + second) / 2
    assert np.allclose(
        project(both, fit_projection(both)), project(mean, fit_projection(mean)), atol=1e-4
    )


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("num_rows", "dim"), [(2, 300), (20, 300), (127, 300), (129, 300), (500, 6)]
)
def test_with_little_to_go_by_the_rest_is_zero(num_rows: int, dim: int) -> None:
    raw = planted(num_rows, dim, dim, noise=1.0)
    projection = fit_projection(raw)
    rank = min(128, num_rows - 1, dim)
    assert (projection.components[:rank] != 0).any(axis=1).all()
    assert not projection.components[rank:].any()
    assert not projection.explained_variance[rank:].any()
    assert np.isfinite(project(raw, projection)).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_rows", [1, 2, 200])
def test_features_that_never_vary_give_zeros(num_rows: int) -> None:
    raw = np.full((num_rows, 1, 50), 0.1, np.float32)
    projection = fit_projection(raw)
    assert np.isfinite(projection.explained_variance).all()
    assert not projection.components.any()
    assert not project(raw, projection).any()


def test_a_dimension_that_is_constant_in_train_cannot_blow_up_elsewhere() -> None:
    """A dead unit that wakes up on a test clip must not be divided by its spread of nothing."""
    raw = planted(300, 40, 40, noise=1.0)
    dead = np.concatenate([raw, np.full((300, 1, 100), 0.1, np.float32)], axis=2)
    projection = fit_projection(dead)
    woken = dead.copy()
    woken[:, :, 40:] += np.random.default_rng(0).random((300, 1, 100), np.float32)
    assert np.allclose(project(woken, projection), project(dead, projection), atol=1e-4)


def test_rows_that_lack_the_modality_are_not_fitted_on() -> None:
    raw = planted(200, 60, 10, noise=0.1)
    present = np.arange(200) % 3 > 0
    raw[~present] = 0
    without = fit_projections(cache(raw, present))["audio"]
    raw[~present] = 1e6
    with_rubbish = fit_projections(cache(raw, present))["audio"]
    alone = fit_projection(raw[present])
    for projection in (without, with_rubbish):
        assert projection.num_rows == present.sum()
        assert np.array_equal(projection.components, alone.components)
        assert np.array_equal(projection.mean, alone.mean)


def test_a_modality_that_no_row_has_gets_no_projection() -> None:
    assert fit_projections(cache(np.zeros((5, 1, 8), np.float32), np.zeros(5, np.bool_))) == {}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw * np.float32(1.001),
        lambda raw: raw[::-1] + np.float32(0.5),
        lambda raw: np.concatenate([raw, raw[:1]]),
    ],
)
def test_bits_and_hash_are_the_same_twice_and_differ_with_the_rows(
    change: Callable[[Rows], Rows],
) -> None:
    raw = planted(200, 150, 20, noise=0.3)
    first, second = fit_projection(raw), fit_projection(raw.copy())
    assert first.components.tobytes() == second.components.tobytes()
    assert project(raw, first).tobytes() == project(raw, second).tobytes()
    assert hash_projections({"audio": first}) == hash_projections({"audio": second})
    other = fit_projection(np.ascontiguousarray(change(raw)))
    assert hash_projections({"audio": first}) != hash_projections({"audio": other})
    assert hash_projections({"audio": first}) != hash_projections({"text": first})
