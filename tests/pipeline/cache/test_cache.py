"""The cache on disk: written and read back, joined from shards, whole or not there."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cache import format as cache_module
from pipeline.cache import hdf5
from pipeline.cache.format import (
    FeatureCache,
    concatenate,
    read_cache,
    read_header,
    verify,
    write_cache,
)
from pipeline.errors import CacheCorrupt, StorageError
from pipeline.schema import EMOTIONS, SENTIMENTS
from tests.conftest import ROOT
from tests.pipeline.cache.planted import DIMS, failure, first_difference, make_cache

# --------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "cache",
    [
        make_cache(),
        make_cache(embedded=True),
        make_cache(rows=1),
        make_cache(failures=()),
        make_cache(modalities=("text",)),
        make_cache(modalities=()),
        make_cache(rows=3000),
    ],
    ids=["plain", "embedded", "one-row", "no-failures", "text-only", "nothing", "many-chunks"],
)
def test_what_was_written_is_read_back(path: Path, cache: FeatureCache) -> None:
    write_cache(path, cache)
    assert first_difference(read_cache(path), cache) is None
    header = read_header(path)
    assert (header.split, header.recipe, header.rows_hash) == ("dev", cache.recipe, "abc")
    assert (header.num_rows, header.projection_hash) == (len(cache), cache.projection_hash)
    assert verify(path) == []


def test_only_what_is_asked_for_is_read(path: Path) -> None:
    cache = make_cache(embedded=True)
    write_cache(path, cache)
    some = read_cache(path, modalities=["audio"], want=["embedding"])
    assert some.raw == {}
    assert list(some.embedding) == list(some.present) == ["audio"]
    assert np.array_equal(some.embedding["audio"], cache.embedding["audio"])


def test_writing_twice_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_cache(path, make_cache(embedded=True))
    write_cache(tmp_path / "again.h5", make_cache(embedded=True))
    assert path.read_bytes() == (tmp_path / "again.h5").read_bytes()


def test_anyone_with_h5py_can_read_it(path: Path) -> None:
    cache = make_cache(embedded=True)
    write_cache(path, cache)
    with h5py.File(path) as file:
        assert file.attrs["format"].decode() == "meld-features"
        assert file.attrs["split"].decode() == "dev"
        assert json.loads(file.attrs["recipe"])["encoders"][0]["name"] == "planted-text"
        assert json.loads(file["label"].attrs["emotion_names"]) == list(EMOTIONS)
        assert json.loads(file["label"].attrs["sentiment_names"]) == list(SENTIMENTS)
        assert file["text"].asstr()[:].tolist() == cache.text
        assert file["label/emotion"].asstr()[:].tolist() == cache.emotion
        assert file["failures/message"].asstr()[0] == cache.failures[0].message
        assert np.array_equal(file["raw/video"][:], cache.raw["video"])
        assert np.array_equal(file["embedding/text"][:], cache.embedding["text"])
        assert file["present/audio"].dtype == np.bool_
        assert file["key/utterance_id"][:].tolist() == list(range(6))


def test_a_message_with_a_path_that_is_not_utf8_can_be_kept(path: Path) -> None:
    strange = dataclasses.replace(failure(1), message=os.fsdecode(b"no file caf\xe9"))
    write_cache(path, make_cache(failures=(strange,)))
    [kept] = read_cache(path).failures
    assert kept.message == "no file caf\\udce9"


def test_rows_of_different_length_are_no_cache() -> None:
    with pytest.raises(ValueError, match="same number of rows"):
        dataclasses.replace(make_cache(), text=["one"])


# -------------------------------------------------------------------------------------- shards


def test_shards_are_joined_in_order() -> None:
    shards = [make_cache(4), make_cache(3, first=4), make_cache(1, first=7)]
    whole = concatenate(shards)
    assert whole.utterance_id.tolist() == list(range(8))
    assert whole.text == [text for shard in shards for text in shard.text]
    assert len(whole.failures) == 6
    for name in DIMS:
        joined = np.concatenate([shard.raw[name] for shard in shards])
        assert np.array_equal(whole.raw[name], joined)


def test_a_shard_without_a_modality_gets_rows_that_are_marked_absent(path: Path) -> None:
    shards = [make_cache(3, modalities=("text",)), make_cache(3, first=3), make_cache(2, first=6)]
    write_cache(path, concatenate(shards))
    whole = read_cache(path)
    assert whole.raw["video"].shape == (8, *DIMS["video"])
    assert not whole.raw["video"][:3].any()
    assert whole.present["video"].tolist() == [False] * 3 + [False, True, True, False, True]


def test_a_modality_that_no_shard_has_stays_absent(path: Path) -> None:
    shards = [make_cache(2, first=2 * i, modalities=("text",)) for i in range(3)]
    write_cache(path, concatenate(shards))
    whole = read_cache(path)
    assert list(whole.raw) == ["text"]
    assert not whole.present["audio"].any()
    assert first_difference(concatenate([make_cache()]), make_cache()) is None


# ----------------------------------------------------------------- what cannot be written or read


@pytest.mark.heavy
def test_a_full_disk_leaves_the_old_file_and_no_other(path: Path) -> None:
    """The limit on file size stands for the full disk; the kernel refuses in the same way."""
    write_cache(path, make_cache())
    before = path.read_bytes()
    script = (
        "import resource, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from pipeline.cache.format import write_cache\n"
        "from pipeline.errors import StorageError\n"
        "from tests.pipeline.cache.planted import make_cache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    write_cache(Path(sys.argv[1]), make_cache(rows=5000))\n"
        "except StorageError as error:\n"
        "    print('refused', error)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, str(path), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.stdout.startswith(f"refused cannot write {path}: "), finished.stderr
    assert finished.returncode == 0
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["dev.h5"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_any_failure_while_writing_leaves_no_temporary_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    write_cache(path, make_cache())
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(cache_module, "write_failures", fail)
    with pytest.raises((StorageError, KeyboardInterrupt)):
        write_cache(path, make_cache(rows=20))
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["dev.h5"]


def no_permission(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "dev.h5", tmp_path / ("long" * 80) / "dev.h5"):
        with pytest.raises(StorageError, match="cannot write"):
            write_cache(place, make_cache())

    monkeypatch.setattr(hdf5.h5py, "File", no_permission)
    with pytest.raises(StorageError, match="Permission denied"):
        write_cache(tmp_path / "dev.h5", make_cache())


def test_a_cache_that_may_not_be_read_is_not_called_corrupt(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes what is corrupt must not delete this."""
    write_cache(path, make_cache())

    monkeypatch.setattr(hdf5.h5py, "File", no_permission)
    with pytest.raises(StorageError, match="no permission") as caught:
        read_cache(path)
    assert not isinstance(caught.value, CacheCorrupt)
