"""Who fits the projection, and who brings which cache up to it: always under the cache's lock."""

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache.embeddings import complete_embeddings, projection_path
from pipeline.cache.format import read_cache, write_cache
from pipeline.extract.shards import merge, write_shard
from pipeline.recipe import FeatureRecipe
from pipeline.schema import Split
from pipeline.system.locks import hold_split

Finish = Callable[[Split], Path]


@pytest.fixture
def finish(plant_split: Any, encode_planted: Any, planted_recipe: FeatureRecipe) -> Finish:
    """finish("dev") writes the split's cache, without embeddings as yet."""

    def write(split: Split) -> Path:
        work = plant_split(split)
        for index in range(work.num_shards):
            write_shard(work, encode_planted(work, index), planted_recipe)
        merge(work)
        return work.path

    return write


def test_every_split_is_brought_up_to_the_projection_of_train(
    finish: Finish, planted_recipe: FeatureRecipe
) -> None:
    train, dev = finish("train"), finish("dev")
    kept = complete_embeddings(train.parent, planted_recipe, ())
    assert kept == {"text": pytest.approx(1.0)}  # six rows vary in five directions at most
    assert read_cache(dev).embedding["text"].shape == (6, 128)
    assert read_cache(dev).projection_hash == read_cache(train).projection_hash


def test_while_another_run_writes_train_embeddings_are_left_to_it(
    finish: Finish, planted_recipe: FeatureRecipe
) -> None:
    features = finish("train").parent
    dev = finish("dev")
    with hold_split(features, "train"):
        assert complete_embeddings(features, planted_recipe, {"dev"}) is None
        assert not projection_path(features).exists()
        assert read_cache(dev).embedding == {}
        # The holder itself is not kept out by its own lock, and completes what was left to it.
        assert complete_embeddings(features, planted_recipe, {"train"}) is not None
    assert "text" in read_cache(dev).embedding


@pytest.mark.heavy
def test_a_split_that_another_run_writes_is_left_to_it_and_the_others_completed(
    finish: Finish, planted_recipe: FeatureRecipe
) -> None:
    features = finish("train").parent
    dev, test = finish("dev"), finish("test")
    with hold_split(features, "dev"):
        complete_embeddings(features, planted_recipe, {"train"})
        assert read_cache(dev).embedding == {}
        assert "text" in read_cache(test).embedding
    complete_embeddings(features, planted_recipe, {"dev"})
    assert read_cache(dev).projection_hash == read_cache(test).projection_hash


@pytest.mark.heavy
@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_cache_that_was_replaced_before_its_lock_was_had_is_left_alone(
    finish: Finish,
    planted_recipe: FeatureRecipe,
    monkeypatch: pytest.MonkeyPatch,
    split: Split,
) -> None:
    """Another run with another recipe came in between looking and locking."""
    features = finish("train").parent
    finish("dev")
    spec = dataclasses.replace(planted_recipe.encoders[0], name="other")
    other = dataclasses.replace(planted_recipe, encoders=(spec,))

    def replaced(_: Path, asked: Split) -> AbstractContextManager[None]:
        if asked == split:
            path = features / f"{split}.h5"
            write_cache(path, dataclasses.replace(read_cache(path), recipe=other))
        return nullcontext()

    monkeypatch.setattr("pipeline.cache.embeddings.locks.hold_split", replaced)
    complete_embeddings(features, planted_recipe, ())
    assert read_cache(features / f"{split}.h5").recipe == other
    assert read_cache(features / f"{split}.h5").embedding == {}
    assert projection_path(features).exists() == (split != "train")


def test_without_train_there_is_nothing_to_fit(
    finish: Finish, planted_recipe: FeatureRecipe
) -> None:
    features = finish("dev").parent
    assert complete_embeddings(features, planted_recipe, {"dev"}) is None
    assert not projection_path(features).exists()


def test_a_new_train_makes_an_earlier_projection_void(
    finish: Finish, planted_recipe: FeatureRecipe
) -> None:
    features = finish("train").parent
    complete_embeddings(features, planted_recipe, {"train"})
    finish("train")
    assert not projection_path(features).exists()
