"""Files of `meld convert` whose rows somebody sorted, cut or doubled before converting back."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipeline.cache.format import FeatureCache, read_cache, write_cache
from pipeline.errors import InputError
from pipeline.exchange.convert import ConvertConfig, Format, convert
from tests.pipeline.exchange.conftest import tied

BACK: tuple[Format, ...] = ("parquet", "npz")


def pick(file: Path, rows: Sequence[int]) -> None:
    """The file with these of its rows alone, in this order, its header as it was."""
    if file.suffix == ".parquet":
        table = pyarrow.parquet.read_table(file, arrow_extensions_enabled=False)
        pyarrow.parquet.write_table(table.take(pa.array(rows, pa.int64())), file)
        return
    with np.load(file) as arrays:
        whole = dict(arrays)
    picked = {name: each[list(rows)] if each.ndim else each for name, each in whole.items()}
    np.savez(file, allow_pickle=False, **picked)


def back(cache: FeatureCache, to: Format, folder: Path, rows: Sequence[int]) -> FeatureCache:
    """What comes back of a cache whose rows were picked on the way."""
    source = folder / f"{cache.split}.h5"
    write_cache(source, cache)
    [file, *_] = convert(ConvertConfig(source=source, to=to, out=folder / "there")).files
    pick(file, rows)
    convert(ConvertConfig(source=file, to="cache", out=folder / "back"))
    return read_cache(folder / f"back/{cache.split}.h5")


@pytest.mark.parametrize("to", BACK)
@pytest.mark.parametrize("rows", [[3, 2, 6, 0], [6, 5, 4, 3, 2, 1, 0], [0, 1]])
def test_rows_that_were_sorted_or_cut_keep_what_is_theirs_and_are_tied_to_themselves(
    plant_cache: Callable[..., FeatureCache], tmp_path: Path, to: Format, rows: list[int]
) -> None:
    cache = plant_cache("train")
    after = back(cache, to, tmp_path, rows)
    assert after.keys == tuple(cache.keys[row] for row in rows)
    assert after.emotion == [cache.emotion[row] for row in rows]
    assert np.array_equal(after.raw["text"], cache.raw["text"][rows])
    assert after.rows_hash == tied(after).rows_hash != cache.rows_hash
    # The failures are those of row 1.
    assert after.failures == (cache.failures if 1 in rows else ())


def test_a_modality_that_no_row_is_left_of_is_no_array_of_zeros(
    plant_cache: Callable[..., FeatureCache], tmp_path: Path
) -> None:
    after = back(plant_cache("train"), "npz", tmp_path, [1])  # which has no audio
    assert set(after.raw) == {"text", "video"}
    assert set(after.embedding) == {"text"}
    assert after.present["audio"].tolist() == [False]


@pytest.mark.parametrize("to", BACK)
def test_features_of_a_row_in_its_dialogue_are_tied_to_no_rows_once_some_are_gone(
    plant_cache: Callable[..., FeatureCache], tmp_path: Path, to: Format
) -> None:
    cache = plant_cache("train")
    text, *others = cache.recipe.encoders
    recipe = replace(cache.recipe, encoders=(replace(text, context=2), *others))
    after = back(replace(cache, recipe=recipe), to, tmp_path, [1, 2, 3])
    assert after.rows_hash not in (tied(after).rows_hash, cache.rows_hash)


@pytest.mark.parametrize("to", BACK)
def test_doubled_rows_are_refused(
    plant_cache: Callable[..., FeatureCache], tmp_path: Path, to: Format
) -> None:
    wanted = rf"train\.{to}: train dia0_utt2 occurs more than once \(4 such rows in all\); one row "
    with pytest.raises(InputError, match=wanted):
        back(plant_cache("train"), to, tmp_path, [0, 2, 1, 2, 1])
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("to", BACK)
@pytest.mark.parametrize("number", [-(2**62), -1, 10**18])
def test_numbers_that_no_annotations_have_are_refused(
    plant_cache: Callable[..., FeatureCache], tmp_path: Path, to: Format, number: int
) -> None:
    cache = plant_cache("train")
    cache.dialogue_id[3] = number
    with pytest.raises(InputError, match=f"dialogue_id {number}: numbers from 0, of at most 18"):
        back(cache, to, tmp_path, range(7))
