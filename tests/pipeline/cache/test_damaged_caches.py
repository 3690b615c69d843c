"""A damaged, foreign or hostile cache is refused in one line and never read as features."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.cache.format import read_cache, read_header, require_cache, verify, write_cache
from pipeline.errors import CacheCorrupt, InputError, StorageError
from tests.pipeline.cache.planted import (
    first_difference,
    make_cache,
    refusal,
    refusal_of_descriptions,
    replace_dataset,
    set_text_attribute,
)

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
    with pytest.raises(StorageError, match="a folder, not a file"):
        read_cache(tmp_path)
    (tmp_path / "text.h5").write_text("Just some words")
    assert "not a readable HDF5 file" in refusal(tmp_path / "text.h5")
    with pytest.raises(InputError, match="meld extract --split dev"):
        require_cache(tmp_path, "dev")


# ------------------------------------------------------------------------------- hostile files


def _with_other_fingerprint(file: h5py.File) -> None:
    set_text_attribute(file, "fingerprint", "0" * 64)


def _with_deep_recipe(file: h5py.File) -> None:
    set_text_attribute(file, "recipe", "[" * 30_000)


def _external_link(file: h5py.File) -> None:
    del file["text"]
    file["text"] = h5py.ExternalLink("/etc/hostname", "/text")


def _soft_link(file: h5py.File) -> None:
    del file["raw/text"]
    file["raw/text"] = h5py.SoftLink("/raw/video")


def _external_storage(file: h5py.File) -> None:
    replace_dataset(
        file, "raw/text", shape=(6, 2, 24), dtype="f4", external=[("/etc/hostname", 0, 1152)]
    )


def _virtual(file: h5py.File) -> None:
    del file["raw/text"]
    layout = h5py.VirtualLayout(shape=(6, 2, 24), dtype="f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(6, 2, 24))
    file.create_virtual_dataset("raw/text", layout)


def _four_terabytes(file: h5py.File) -> None:
    replace_dataset(
        file, "raw/text", shape=(1 << 20, 1 << 10, 1 << 10), dtype="f4", chunks=(1, 64, 64)
    )


def _strings_of_any_length(file: h5py.File) -> None:
    replace_dataset(file, "text", data=["Hi"] * 6, dtype=h5py.string_dtype())


def _not_utf8(file: h5py.File) -> None:
    replace_dataset(file, "text", data=np.array([b"\xff\xfe"] * 6, "S2"))


def _loop(file: h5py.File) -> None:
    file["raw/again"] = file["raw"]


def _root_loop(file: h5py.File) -> None:
    file["again"] = file["/"]


def _type_in_place_of_a_group(file: h5py.File) -> None:
    file["again"] = np.dtype("f8")


HOSTILE: dict[str, Callable[[h5py.File], object]] = {
    "other format": lambda file: set_text_attribute(file, "format", "other-format"),
    "format of numbers": lambda file: file.attrs.__setitem__("format", np.arange(3)),
    "no format": lambda file: file.attrs.__delitem__("format"),
    "future version": lambda file: file.attrs.__setitem__("format_version", 3),
    "version in words": lambda file: file.attrs.__setitem__("format_version", "one"),
    "versions": lambda file: file.attrs.__setitem__("format_version", np.arange(3)),
    "no version": lambda file: file.attrs.__delitem__("format_version"),
    "no split": lambda file: file.attrs.__delitem__("split"),
    "unknown split": lambda file: set_text_attribute(file, "split", "../x"),
    "split of any length": lambda file: file.attrs.__setitem__("split", "dev"),
    "no rows hash": lambda file: file.attrs.__delitem__("rows_hash"),
    "rows hash number": lambda file: file.attrs.__setitem__("rows_hash", 7.5),
    "no projection hash": lambda file: file.attrs.__delitem__("projection_hash"),
    "no recipe": lambda file: file.attrs.__delitem__("recipe"),
    "recipe no json": lambda file: set_text_attribute(file, "recipe", "{"),
    "recipe a list": lambda file: set_text_attribute(file, "recipe", "[]"),
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
    "raw a dataset": lambda file: replace_dataset(file, "raw", data=np.zeros(6)),
    "raw integers": lambda file: replace_dataset(file, "raw/text", data=np.zeros((6, 2, 24), "i4")),
    "raw doubles": lambda file: replace_dataset(file, "raw/text", data=np.zeros((6, 2, 24))),
    "raw flat": lambda file: replace_dataset(file, "raw/text", data=np.zeros((6, 24), "f4")),
    "raw scalar": lambda file: replace_dataset(file, "raw/text", data=np.float32(1)),
    "raw short": lambda file: replace_dataset(file, "raw/text", data=np.zeros((5, 2, 24), "f4")),
    "raw empty": lambda file: replace_dataset(file, "raw/text", data=h5py.Empty("f4")),
    "compound": lambda file: replace_dataset(file, "raw/text", data=np.zeros(6, "f4,i8")),
    "references": lambda file: replace_dataset(file, "text", shape=(6,), dtype=h5py.ref_dtype),
    "present numbers": lambda file: replace_dataset(file, "present/text", data=np.ones(6, "i8")),
    "keys in words": lambda file: replace_dataset(
        file, "key/dialogue_id", data=np.array([b"3"] * 6)
    ),
    "text numbers": lambda file: replace_dataset(file, "text", data=np.zeros(6)),
    "text any length": _strings_of_any_length,
    "text not UTF-8": _not_utf8,
    "text a group": lambda file: (file.__delitem__("text"), file.create_group("text")),
    "text missing": lambda file: file.__delitem__("text"),
    "key missing": lambda file: file.__delitem__("key/dialogue_id"),
    "ledger missing": lambda file: file.__delitem__("failures"),
    "ledger ragged": lambda file: replace_dataset(file, "failures/lost", data=np.ones(1, np.bool_)),
    "label unknown": lambda file: replace_dataset(
        file, "label/emotion", data=np.array([b"bored"] * 6)
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_foreign_or_hostile_file_is_refused_in_one_line(path: Path, what: str) -> None:
    write_cache(path, make_cache())
    with h5py.File(path, "r+") as file:
        HOSTILE[what](file)
    refusal(path)
    refusal_of_descriptions(path)


def test_a_newer_version_is_named(path: Path) -> None:
    write_cache(path, make_cache())
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = 3
    assert "format version 3, this program reads 2" in refusal(path)
