"""One utterance of 100 kB does not widen every row; its bytes and their ends have to fit."""

import dataclasses
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cache.format import FeatureCache, read_cache, verify, write_cache
from tests.pipeline.cache.planted import (
    TEXTS,
    failure,
    make_cache,
    refusal,
    refusal_of_descriptions,
    replace_dataset,
)


def make_long_cache(rows: int = 1000) -> FeatureCache:
    """One utterance is of 100 kB, in characters of three bytes; a speaker is of none."""
    cache = make_cache(rows)
    text = list(cache.text)
    text[rows // 2] = "\N{SNOWMAN}" * 33_000
    message = "\N{SNOWMAN}" * 33_000
    failures = (failure(1), dataclasses.replace(failure(2), message=message))
    return dataclasses.replace(
        cache, text=text, speaker=["", *cache.speaker[1:]], failures=failures
    )


def test_one_long_utterance_does_not_widen_every_row(path: Path) -> None:
    """A lecture in one cell, 1,000 rows: as wide as the longest they would take 100 MB."""
    cache = make_long_cache()
    tracemalloc.start()
    try:
        write_cache(path, cache)
        read = read_cache(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (read.text, read.speaker, read.failures) == (cache.text, cache.speaker, cache.failures)
    assert path.stat().st_size < 2 << 20
    assert peak_bytes < 16 << 20


def test_ordinary_strings_are_readable_with_h5py_alone(path: Path) -> None:
    write_cache(path, make_cache())
    with h5py.File(path) as file:
        assert file["text"].asstr()[2] == TEXTS[2]
        assert "text_ends" not in file


LONG_HOSTILE: dict[str, Callable[[NDArray[np.int64]], NDArray[Any]]] = {
    "backwards": lambda ends: ends[::-1],
    "negative": lambda ends: np.where(np.arange(len(ends)) == 0, -1, ends),
    "beyond": lambda ends: ends + 1,
    "not to the end": lambda ends: np.minimum(ends, ends[-1] - 3),
    "wrapped": lambda ends: np.where(np.arange(len(ends)) == 3, np.iinfo(np.int64).min, ends),
    "within a character": lambda ends: np.where(np.arange(len(ends)) == 500, ends - 1, ends),
    "fewer rows": lambda ends: ends[1:],
    "none": lambda ends: ends[:0],
    "doubles": lambda ends: ends.astype(np.float64),
    "two axes": lambda ends: ends[:, None],
}


@pytest.mark.parametrize("what", LONG_HOSTILE)
def test_long_strings_that_do_not_fit_their_bytes_are_refused(path: Path, what: str) -> None:
    write_cache(path, make_long_cache())
    with h5py.File(path, "r+") as file:
        replace_dataset(file, "text_ends", data=LONG_HOSTILE[what](file["text_ends"][()]))
    refusal(path)
    refusal_of_descriptions(path)


def test_long_strings_without_their_ends_are_refused(path: Path) -> None:
    write_cache(path, make_long_cache())
    with h5py.File(path, "r+") as file:
        del file["text_ends"]
    assert "dataset text_ends is missing" in refusal(path)


def test_a_flipped_bit_in_a_long_string_is_named(path: Path) -> None:
    write_cache(path, make_long_cache())
    content = bytearray(path.read_bytes())
    content[content.index("\N{SNOWMAN}".encode() * 1000) + 1500] ^= 1
    path.write_bytes(content)
    assert verify(path)
    assert "checksum" in refusal(path)
