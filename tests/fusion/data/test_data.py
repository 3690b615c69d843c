"""Loading a split: what is there comes whole and in order; what is not is named."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fusion.data.load import load_split
from fusion.data.split import check_recipe, check_trainable
from fusion.labels import UNLABELLED
from pipeline.cache.format import write_cache
from pipeline.errors import CacheCorrupt, InputError, RecipeMismatch
from pipeline.schema import EMOTIONS, ClipKey


def test_a_split_comes_as_tensors_in_row_order(write_split, features):
    cache = write_split("dev", 12)
    data = load_split(features, "dev", modalities=None, input="raw")
    assert data.modalities == ("text", "audio")
    assert torch.equal(data.features["text"], torch.from_numpy(cache.raw["text"]))
    assert data.present.all()
    assert data.present.shape == (12, 2)
    assert [EMOTIONS[index] for index in data.emotion] == cache.emotion
    assert data.keys[7] == ClipKey("dev", 1, 2)
    assert data.text[3] == "line 3"


def test_the_order_of_modalities_is_the_askers(write_split, features):
    write_split("dev", 6)
    data = load_split(features, "dev", modalities=["audio", "text"], input="raw")
    assert data.modalities == ("audio", "text")


def test_embeddings_have_one_layer(write_split, features):
    write_split("dev", 6, embedded=True)
    data = load_split(features, "dev", modalities=None, input="embedding")
    assert data.features["audio"].shape == (6, 1, 128)


def test_a_missing_cache_names_the_command_that_makes_it(features):
    with pytest.raises(InputError, match="meld extract --split dev"):
        load_split(features, "dev", modalities=None, input="raw")


def test_a_modality_not_cached_is_refused_with_those_that_are(write_split, features):
    write_split("dev", 6)
    with pytest.raises(InputError, match="no video; it has text, audio"):
        load_split(features, "dev", modalities=["text", "video"], input="raw")


def test_embeddings_not_made_yet_send_to_extracting_train(write_split, features):
    write_split("dev", 6)
    with pytest.raises(InputError, match="meld extract --split train"):
        load_split(features, "dev", modalities=None, input="embedding")


def test_unlabelled_rows_are_marked_and_none_labelled_is_refused(write_split, features: Path):
    cache = write_split("dev", 6)
    some = dataclasses.replace(cache, emotion=["", *cache.emotion[1:]])
    write_cache(features / "dev.h5", some)
    data = load_split(features, "dev", modalities=None, input="raw")
    assert data.emotion[0] == UNLABELLED
    assert (data.emotion[1:] != UNLABELLED).all()
    none = dataclasses.replace(cache, emotion=[""] * 6, sentiment=[""] * 6)
    write_cache(features / "dev.h5", none)
    with pytest.raises(InputError, match="none of 6 rows"):
        load_split(features, "dev", modalities=None, input="raw")


def test_features_that_are_no_numbers_are_refused_with_the_row(write_split, features: Path):
    cache = write_split("dev", 6)
    cache.raw["audio"][4, 0, 2] = np.nan
    write_cache(features / "dev.h5", cache)
    with pytest.raises(CacheCorrupt, match=r"audio.*dev dia0_utt4"):
        load_split(features, "dev", modalities=None, input="raw")


@pytest.mark.parametrize("shape", [(6, 0, 20), (6, 1, 0)])
def test_features_without_a_layer_or_a_dimension_are_refused(write_split, features: Path, shape):
    cache = write_split("dev", 6)
    empty = {**cache.raw, "audio": np.zeros(shape, np.float32)}
    write_cache(features / "dev.h5", dataclasses.replace(cache, raw=empty))
    with pytest.raises(CacheCorrupt, match=r"dev\.h5: audio features .* extract"):
        load_split(features, "dev", modalities=None, input="raw")


def test_another_recipe_for_dev_is_refused_and_the_field_named(load_planted, planted_recipe):
    train = load_planted("train", 10)
    dev = load_planted("dev", 10, recipe=planted_recipe(["text", "audio"], num_frames=8))
    with pytest.raises(RecipeMismatch, match=r"decode.num_frames: 16 != 8"):
        check_trainable(train, dev)


def test_another_projection_is_another_recipe(load_planted):
    data = load_planted("dev", 10)
    with pytest.raises(RecipeMismatch, match="projection: abc != none"):
        check_recipe(data.recipe, "abc", data)


def test_a_modality_absent_in_all_of_train_is_refused(write_split, load_planted, features):
    cache = write_split("train", 10)
    cache.present["audio"][:] = False
    write_cache(features / "train.h5", cache)
    train = load_split(features, "train", modalities=None, input="raw")
    with pytest.raises(InputError, match="audio is absent in all 10 rows of train"):
        check_trainable(train, load_planted("dev", 10))
