"""The cache on disk: whole or not there, readable by anyone, and never silently wrong."""

import dataclasses
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cache import format as cache_module
from pipeline.cache import hdf5
from pipeline.cache.format import (
    FeatureCache,
    concatenate,
    read_cache,
    read_header,
    require_cache,
    verify,
    write_cache,
)
from pipeline.cache.projection import Projection, read_projections, write_projections
from pipeline.errors import CacheCorrupt, InputError, StorageError
from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipFailure, ClipKey, Modality

DIMS: dict[Modality, tuple[int, int]] = {"text": (2, 24), "video": (1, 32), "audio": (1, 16)}
TEXTS = ["Joey doesn't share food!", "", "ünïcødé \U0001f355 你好", 'quotes " and,', " ", "x"]
ROOT = Path(__file__).resolve().parents[3]


def make_recipe(*modalities: Modality) -> FeatureRecipe:
    encoders = tuple(
        EncoderSpec(
            modality=modality,
            name=f"planted-{modality}",
            weights="pretrained",
            weights_hash="0",
            pooling="mean",
            precision="float32",
            layers=tuple(range(DIMS[modality][0])),
        )
        for modality in modalities or tuple(DIMS)
    )
    return FeatureRecipe(encoders=encoders, decode=DecodeConfig())


def failure(number: int, modality: Modality = "video", *, lost: bool = True) -> ClipFailure:
    return ClipFailure(
        key=ClipKey("dev", 3, number),
        modality=modality,
        stage="decode",
        code="unreadable",
        message=f"clip {number}: größer als \N{SNOWMAN}",
        lost=lost,
    )


def make_cache(
    rows: int = 6,
    *,
    first: int = 0,
    modalities: Sequence[Modality] = ("text", "video", "audio"),
    failures: tuple[ClipFailure, ...] = (failure(1), failure(2, "audio", lost=False)),
    embedded: bool = False,
) -> FeatureCache:
    random = np.random.default_rng(first)
    raw = {name: random.random((rows, *DIMS[name]), np.float32) for name in modalities}
    present = {
        name: (np.arange(rows) % 4 > 0) if name in modalities else np.zeros(rows, np.bool_)
        for name in DIMS
    }
    embedding = {name: random.random((rows, 128), np.float32) for name in modalities}
    return FeatureCache(
        split="dev",
        recipe=make_recipe(),
        rows_hash="abc",
        dialogue_id=np.full(rows, 3),
        utterance_id=np.arange(first, first + rows),
        text=[TEXTS[i % len(TEXTS)] for i in range(rows)],
        speaker=["Ross", "Zoë"] * (rows // 2) + ["Joey"] * (rows % 2),
        emotion=[(*EMOTIONS, "")[i % 8] for i in range(rows)],
        sentiment=[(*SENTIMENTS, "")[i % 4] for i in range(rows)],
        raw=raw,
        present=present,
        embedding=embedding if embedded else {},
        failures=failures,
        projection_hash="f00" if embedded else None,
    )


def first_difference(mine: FeatureCache, theirs: FeatureCache) -> str | None:
    for field in dataclasses.fields(FeatureCache):
        left, right = getattr(mine, field.name), getattr(theirs, field.name)
        if isinstance(left, dict):
            same = left.keys() == right.keys() and all(
                left[key].dtype == right[key].dtype and np.array_equal(left[key], right[key])
                for key in left
            )
        elif isinstance(left, np.ndarray):
            same = np.array_equal(left, right)
        else:
            same = left == right
        if not same:
            return field.name
    return None


def refusal(path: Path, read: Callable[[Path], Any] = read_cache) -> str:
    with pytest.raises(CacheCorrupt) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "dev.h5"


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


# -------------------------------------------------------------------------------------- damage


@pytest.mark.heavy
def test_no_flipped_bit_is_ever_read_as_features(path: Path) -> None:
    """Anywhere in the file: the same content, or CacheCorrupt; nothing else, nothing new."""
    cache = make_cache(embedded=True)
    write_cache(path, cache)
    intact = path.read_bytes()
    random = np.random.default_rng(0)
    refusals = []
    for at in random.choice(len(intact), 100, replace=False):
        damaged = bytearray(intact)
        damaged[at] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            assert first_difference(read_cache(path), cache) is None
        except CacheCorrupt as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert not any("\n" in message for message in refusals)


@pytest.mark.parametrize(
    "name", ["raw/text", "text", "label/emotion", "present/video", "key/utterance_id"]
)
def test_a_flipped_bit_in_a_dataset_names_the_dataset(path: Path, name: str) -> None:
    write_cache(path, make_cache())
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 4
    path.write_bytes(content)
    assert f"dataset {name}" in refusal(path)
    assert verify(path) == [name]


@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
def test_a_file_cut_off_is_refused(path: Path, share: float) -> None:
    write_cache(path, make_cache())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    refusal(path)
    refusal(path, read_header)
    refusal(path, verify)


def test_other_files_are_distinguished_from_absent_ones(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such file"):
        read_cache(tmp_path / "nowhere.h5")
    with pytest.raises(StorageError, match="no such file"):
        read_cache(tmp_path)
    (tmp_path / "text.h5").write_text("Just some words")
    assert "not a readable HDF5 file" in refusal(tmp_path / "text.h5")
    with pytest.raises(InputError, match="meld extract --split dev"):
        require_cache(tmp_path, "dev")


# ------------------------------------------------------------------------------- hostile files


def _set_text(file: h5py.File, name: str, value: str) -> None:
    file.attrs[name] = np.array(value.encode(), h5py.string_dtype("utf-8", len(value)))


def _replace(file: h5py.File, name: str, **arguments: Any) -> None:
    del file[name]
    file.create_dataset(name, **arguments)


def _with_other_fingerprint(file: h5py.File) -> None:
    _set_text(file, "fingerprint", "0" * 64)


def _with_deep_recipe(file: h5py.File) -> None:
    _set_text(file, "recipe", "[" * 30_000)


def _external_link(file: h5py.File) -> None:
    del file["text"]
    file["text"] = h5py.ExternalLink("/etc/hostname", "/text")


def _soft_link(file: h5py.File) -> None:
    del file["raw/text"]
    file["raw/text"] = h5py.SoftLink("/raw/video")


def _external_storage(file: h5py.File) -> None:
    _replace(file, "raw/text", shape=(6, 2, 24), dtype="f4", external=[("/etc/hostname", 0, 1152)])


def _virtual(file: h5py.File) -> None:
    del file["raw/text"]
    layout = h5py.VirtualLayout(shape=(6, 2, 24), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(6, 2, 24))
    file.create_virtual_dataset("raw/text", layout)


def _four_terabytes(file: h5py.File) -> None:
    _replace(file, "raw/text", shape=(1 << 20, 1 << 10, 1 << 10), dtype="f4", chunks=(1, 64, 64))


def _strings_of_any_length(file: h5py.File) -> None:
    _replace(file, "text", data=["Hi"] * 6, dtype=h5py.string_dtype())


def _not_utf8(file: h5py.File) -> None:
    _replace(file, "text", data=np.array([b"\xff\xfe"] * 6, "S2"))


def _loop(file: h5py.File) -> None:
    file["raw/again"] = file["raw"]


def _root_loop(file: h5py.File) -> None:
    file["again"] = file["/"]


def _type_in_place_of_a_group(file: h5py.File) -> None:
    file["again"] = np.dtype("f8")


HOSTILE: dict[str, Callable[[h5py.File], object]] = {
    "other format": lambda file: _set_text(file, "format", "other-format"),
    "format of numbers": lambda file: file.attrs.__setitem__("format", np.arange(3)),
    "no format": lambda file: file.attrs.__delitem__("format"),
    "future version": lambda file: file.attrs.__setitem__("format_version", 3),
    "version in words": lambda file: file.attrs.__setitem__("format_version", "one"),
    "versions": lambda file: file.attrs.__setitem__("format_version", np.arange(3)),
    "no version": lambda file: file.attrs.__delitem__("format_version"),
    "no split": lambda file: file.attrs.__delitem__("split"),
    "unknown split": lambda file: _set_text(file, "split", "../x"),
    "split of any length": lambda file: file.attrs.__setitem__("split", "dev"),
    "no rows hash": lambda file: file.attrs.__delitem__("rows_hash"),
    "rows hash number": lambda file: file.attrs.__setitem__("rows_hash", 7.5),
    "no projection hash": lambda file: file.attrs.__delitem__("projection_hash"),
    "no recipe": lambda file: file.attrs.__delitem__("recipe"),
    "recipe no json": lambda file: _set_text(file, "recipe", "{"),
    "recipe a list": lambda file: _set_text(file, "recipe", "[]"),
    "recipe deep": _with_deep_recipe,
    "other fingerprint": _with_other_fingerprint,
    "fingerprint number": lambda file: file.attrs.__setitem__("fingerprint", np.arange(2)),
    "external link": _external_link,
    "soft link": _soft_link,
    "external storage": _external_storage,
    "virtual dataset": _virtual,
    "four terabytes": _four_terabytes,
    "group in a group": lambda file: file.create_group("raw/deep/deeper"),
    "loop": _loop,
    "root loop": _root_loop,
    "named type": _type_in_place_of_a_group,
    "raw a dataset": lambda file: _replace(file, "raw", data=np.zeros(6)),
    "raw integers": lambda file: _replace(file, "raw/text", data=np.zeros((6, 2, 24), "i4")),
    "raw doubles": lambda file: _replace(file, "raw/text", data=np.zeros((6, 2, 24))),
    "raw flat": lambda file: _replace(file, "raw/text", data=np.zeros((6, 24), "f4")),
    "raw scalar": lambda file: _replace(file, "raw/text", data=np.float32(1)),
    "raw short": lambda file: _replace(file, "raw/text", data=np.zeros((5, 2, 24), "f4")),
    "raw empty": lambda file: _replace(file, "raw/text", data=h5py.Empty("f4")),
    "compound": lambda file: _replace(file, "raw/text", data=np.zeros(6, "f4,i8")),
    "references": lambda file: _replace(file, "text", shape=(6,), dtype=h5py.ref_dtype),
    "present numbers": lambda file: _replace(file, "present/text", data=np.ones(6, "i8")),
    "keys in words": lambda file: _replace(file, "key/dialogue_id", data=np.array([b"3"] * 6)),
    "text numbers": lambda file: _replace(file, "text", data=np.zeros(6)),
    "text any length": _strings_of_any_length,
    "text not UTF-8": _not_utf8,
    "text a group": lambda file: (file.__delitem__("text"), file.create_group("text")),
    "text missing": lambda file: file.__delitem__("text"),
    "key missing": lambda file: file.__delitem__("key/dialogue_id"),
    "ledger missing": lambda file: file.__delitem__("failures"),
    "ledger ragged": lambda file: _replace(file, "failures/lost", data=np.ones(1, np.bool_)),
    "label unknown": lambda file: _replace(file, "label/emotion", data=np.array([b"bored"] * 6)),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_foreign_or_hostile_file_is_refused_in_one_line(path: Path, what: str) -> None:
    write_cache(path, make_cache())
    with h5py.File(path, "r+") as file:
        HOSTILE[what](file)
    refusal(path)
    refusal_of_descriptions(path)


def refusal_of_descriptions(path: Path) -> None:
    """Header and verification may find nothing wrong, but never raise anything else."""
    for read in (read_header, verify):
        with suppress(CacheCorrupt):
            read(path)


def test_a_newer_version_is_named(path: Path) -> None:
    write_cache(path, make_cache())
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 3
    assert "format version 3, this program reads 2" in refusal(path)


# ------------------------------------------------------------------------------- long strings


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
        _replace(file, "text_ends", data=LONG_HOSTILE[what](file["text_ends"][()]))
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


# ------------------------------------------------------------------------------------ failures


@pytest.mark.heavy
def test_a_full_disk_leaves_the_old_file_and_no_other(path: Path) -> None:
    """The limit on file size stands for the full disk; the kernel refuses in the same way."""
    write_cache(path, make_cache())
    before = path.read_bytes()
    script = (
        "import resource, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from test_cache import StorageError, make_cache, write_cache\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    write_cache(Path(sys.argv[1]), make_cache(rows=5000))\n"
        "except StorageError as error:\n"
        "    print('refused', error)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", script, str(path), str(ROOT), str(Path(__file__).parent)],
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


def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "dev.h5", tmp_path / ("long" * 80) / "dev.h5"):
        with pytest.raises(StorageError, match="cannot write"):
            write_cache(place, make_cache())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hdf5.h5py, "File", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        write_cache(tmp_path / "dev.h5", make_cache())


def test_a_cache_that_may_not_be_read_is_not_called_corrupt(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever deletes what is corrupt must not delete this."""
    write_cache(path, make_cache())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hdf5.h5py, "File", refuse)
    with pytest.raises(StorageError, match="no permission") as caught:
        read_cache(path)
    assert not isinstance(caught.value, CacheCorrupt)


# --------------------------------------------------------------------------------- projections


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
    _replace(file, "text/components", data=np.zeros((64, 24)))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file["text"].attrs.__delitem__("num_rows"),
        lambda file: file["text"].attrs.__setitem__("num_rows", "many"),
        lambda file: file.__delitem__("text/mean"),
        lambda file: _replace(file, "text/mean", data=np.zeros(24, "f4")),
        lambda file: _set_text(file, "format", "meld-features"),
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
