"""Projections on disk: read back for the recipe they belong to, refused where damaged."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cache.projection import Projection, read_projections, write_projections
from tests.pipeline.cache.planted import make_recipe, refusal, replace_dataset, set_text_attribute


def make_projection(seed: int = 0) -> Projection:
    random = np.random.default_rng(seed)
    return Projection(
        mean=random.standard_normal(24),
        scale=random.random(24) + 1,
        components=random.standard_normal((128, 24)),
        explained_variance=random.random(128),
        num_rows=77,
    )


def test_projections_survive_and_belong_to_one_recipe(path: Path) -> None:
    written = {"text": make_projection(), "audio": make_projection(1)}
    write_projections(path, written, make_recipe())
    read = read_projections(path, make_recipe())
    assert read is not None
    assert list(read) == ["text", "audio"]
    for name, projection in read.items():
        assert projection.num_rows == 77
        assert np.array_equal(projection.components, written[name].components)
    assert read_projections(path, make_recipe("text")) is None
    assert read_projections(path.with_name("other.h5"), make_recipe()) is None


def _wrong_shape(file: h5py.File) -> None:
    replace_dataset(file, "text/components", data=np.zeros((64, 24)))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["text"].attrs.__delitem__("num_rows"),
        lambda file: file["text"].attrs.__setitem__("num_rows", "many"),
        lambda file: file.__delitem__("text/mean"),
        lambda file: replace_dataset(file, "text/mean", data=np.zeros(24, "f4")),
        lambda file: set_text_attribute(file, "format", "meld-features"),
        _wrong_shape,
    ],
)
def test_damaged_projections_are_refused(path: Path, change: Callable[[h5py.File], object]) -> None:
    write_projections(path, {"text": make_projection()}, make_recipe())
    with h5py.File(path, "r+") as file:
        change(file)
    refusal(path, lambda path: read_projections(path, make_recipe()))


def test_a_projection_of_another_shape_is_none() -> None:
    with pytest.raises(ValueError, match="components must be"):
        dataclasses.replace(make_projection(), mean=np.zeros(7))
