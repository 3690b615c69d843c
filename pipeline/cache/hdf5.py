"""HDF5 files that appear whole and are checked when read. All of ours are written and read here.

Files appear whole (`system/files.py`) and are never edited; each names its format.
Datasets have checksums, except `Writer.plain` ones, for which their format keeps its own. Strings
have fixed length: HDF5's variable-length ones lie in a heap without checksums, and a flipped bit
there can hang HDF5. Where a few long ones would make a column much larger than its content, it is
kept end to end instead: `<name>` uint8 [bytes], UTF-8, and `<name>_ends` int64 [rows], the byte
after each string.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import CacheCorrupt, StorageError
from pipeline.system.files import write_whole

# Bytes of a chunk: large enough to read fast, small enough that a flipped bit names its place.
_CHUNK_BYTES = 1 << 18
# A column of strings of fixed length may be larger than its content by this factor, or be as large
# as this.
_MAX_PADDING = 4
_PADDED_BYTES = 1 << 24
_ENDS = "_ends"
# The first HDF5 generation that checksums its own structure too: attributes, names, addresses.
_LIBRARY_VERSION = "v110"
_IMAGE_BLOCK_BYTES = 1 << 22
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# What h5py raises where a file is damaged, or holds something else than is asked for.
_DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError)

Name = TypeVar("Name", bound=str)


# --------------------------------------------------------------------------------- writing


def write_hdf5(path: Path, kind: str, version: int, fill: Callable[["Writer"], None]) -> None:
    """Writes a file of the format `kind` atomically: an earlier file stays until the new one is
    complete.

    Raises:
        StorageError: disk full, no permission; an earlier file of that name is untouched.
    """
    try:
        image = _build_image(kind, version, fill)
    except (OSError, RuntimeError) as error:  # as h5py tells of too little memory
        raise StorageError(f"cannot write {path}: {error}") from error
    write_whole(path, image)


def _build_image(kind: str, version: int, fill: Callable[["Writer"], None]) -> bytes:
    """Builds the file's bytes in memory: on a full disk HDF5 writes zeros without an error or
    crashes the process."""
    with h5py.File(
        "image",
        "w",
        driver="core",
        backing_store=False,
        block_size=_IMAGE_BLOCK_BYTES,
        libver=_LIBRARY_VERSION,
    ) as file:
        writer = Writer(file)
        writer.text("format", kind)
        writer.number("format_version", version)
        fill(writer)
        file.flush()
        return file.id.get_file_image()


class Writer:
    """Puts datasets and attributes into one new file; `at` names the group of an attribute."""

    def __init__(self, file: h5py.File) -> None:
        self._file = file

    def array(self, name: str, values: NDArray[Any]) -> None:
        if values.dtype.kind == "S":
            values = values.astype(h5py.string_dtype("utf-8", values.dtype.itemsize))
        if values.size == 0:  # nothing to checksum, and an empty chunk is not allowed
            self._file.create_dataset(name, data=values)
            return
        row_bytes = max(values.nbytes // len(values), 1)
        rows = max(1, min(len(values), _CHUNK_BYTES // row_bytes))
        chunks = (rows, *values.shape[1:])
        self._file.create_dataset(name, data=values, chunks=chunks, fletcher32=True)

    def plain(self, name: str, values: NDArray[Any]) -> None:
        """In one piece and without a checksum, for what is read by `Reader.offset`."""
        self._file.create_dataset(name, data=values)

    def strings(self, name: str, strings: Sequence[str]) -> None:
        # A message may name a path that is not UTF-8.
        encoded = [string.encode(errors="backslashreplace") for string in strings]
        lengths = [len(string) for string in encoded]
        width = max([1, *lengths])
        if width * len(encoded) <= max(_PADDED_BYTES, _MAX_PADDING * sum(lengths)):
            self.array(name, np.array(encoded, dtype=f"S{width}"))
            return
        self.array(name, np.frombuffer(b"".join(encoded), np.uint8))
        self.array(name + _ENDS, np.cumsum(lengths, dtype=np.int64))

    def text(self, name: str, text: str, *, at: str = "/") -> None:
        encoded = text.encode()
        dtype = h5py.string_dtype("utf-8", max(len(encoded), 1))
        self._file[at].attrs[name] = np.array(encoded, dtype=dtype)

    def number(self, name: str, number: int, *, at: str = "/") -> None:
        self._file[at].attrs[name] = number


# --------------------------------------------------------------------------------- reading


@contextmanager
def open_hdf5(
    path: Path,
    kind: str,
    version: int,
    *,
    repair: str = "extract again",
) -> Iterator["Reader"]:
    """Opens a file and checks that it is of the format `kind` and lies within itself.

    A foreign HDF5 file can read other files of the machine (external links, external storage,
    virtual datasets) and declare terabytes: none of that is ever followed.

    Args:
        repair: what to do about a damaged file, once it is deleted.

    Raises:
        StorageError: not there or not readable.
        CacheCorrupt: no such file, or a damaged one.
    """
    if not path.is_file():
        raise StorageError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    try:
        file = h5py.File(path, "r")
    except PermissionError as error:
        raise StorageError(f"{path}: cannot be read: no permission") from error
    except OSError as error:
        raise CacheCorrupt(f"{path}: not a readable HDF5 file ({error})") from error
    try:
        reader = Reader(path, file, repair)
        reader.check_format(kind, version)
        reader.check_storage()
        yield reader
    except _DAMAGE as error:
        reason = " ".join(str(error).split())
        raise CacheCorrupt(f"{path}: damaged ({reason}); delete it and make it again") from error
    finally:
        file.close()


def is_of_others(path: Path, kind: str) -> bool:
    """Whether a file is anything but one of the format `kind`. A damaged HDF5 file may have been
    one. Raises StorageError."""
    try:
        with path.open("rb") as file:
            begins = file.read(len(_SIGNATURE))
        if begins != _SIGNATURE:
            return bool(begins)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("format") != kind.encode())
    except _DAMAGE:
        return False


class Reader:
    """Reads one open file; any deviation from its format raises CacheCorrupt."""

    def __init__(self, path: Path, file: h5py.File, repair: str) -> None:
        self.path = path
        self._file = file
        self._repair = repair

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def array(self, name: str, dtype: type[np.generic], num_axes: int) -> NDArray[Any]:
        dataset = self._dataset(name, dtype, num_axes)
        try:
            return dataset[()]
        except OSError as error:
            raise CacheCorrupt(
                f"{self.path}: dataset {name} does not match its checksum; "
                f"delete the file and {self._repair}"
            ) from error

    def offset(self, name: str, dtype: type[np.generic], num_axes: int) -> int:
        """Where in the file a `plain` dataset begins, in bytes."""
        offset = self._dataset(name, dtype, num_axes).id.get_offset()
        if offset is None:
            raise CacheCorrupt(f"{self.path}: dataset {name} does not lie in one piece")
        return int(offset)

    def _dataset(self, name: str, dtype: type[np.generic], num_axes: int) -> h5py.Dataset:
        dataset = self._file.get(name)
        if dataset is None:
            raise CacheCorrupt(f"{self.path}: dataset {name} is missing")
        if not isinstance(dataset, h5py.Dataset):
            raise CacheCorrupt(f"{self.path}: {name} is no dataset")
        kind = np.bytes_ if dataset.dtype.kind == "S" else dataset.dtype
        if kind != dtype or dataset.ndim != num_axes:
            raise CacheCorrupt(
                f"{self.path}: dataset {name} is {dataset.dtype} with {dataset.ndim} axes, not "
                f"{dtype.__name__} with {num_axes}"
            )
        return dataset

    def strings(self, name: str) -> list[str]:
        dataset = self._file.get(name)
        if isinstance(dataset, h5py.Dataset) and dataset.dtype == np.uint8:
            return self._strings_end_to_end(name)
        return [value.decode() for value in self.array(name, np.bytes_, 1)]

    def _strings_end_to_end(self, name: str) -> list[str]:
        content = self.array(name, np.uint8, 1).tobytes()
        ends = self.array(name + _ENDS, np.int64, 1)
        firsts = np.concatenate([[0], ends[:-1]])
        # Compared, not subtracted: a difference of 64-bit numbers may overflow.
        if len(ends) == 0 or (ends < firsts).any() or ends[-1] != len(content):
            raise CacheCorrupt(f"{self.path}: dataset {name + _ENDS} does not fit {name}")
        pairs = zip(firsts.tolist(), ends.tolist(), strict=True)
        return [content[first:end].decode() for first, end in pairs]

    def group(
        self, group: str, names: Sequence[Name], dtype: type[np.generic], num_axes: int
    ) -> dict[Name, NDArray[Any]]:
        """Those of `names` that the group has."""
        there = self._file.get(group, {})
        if isinstance(there, h5py.Dataset):
            raise CacheCorrupt(f"{self.path}: {group} is no group")
        return {
            name: self.array(f"{group}/{name}", dtype, num_axes) for name in names if name in there
        }

    def num_rows(self, name: str) -> int:
        return len(self._file[name])

    def text(self, name: str) -> str:
        attributes = self._file.attrs
        if name not in attributes or attributes.get_id(name).dtype.kind != "S":
            raise CacheCorrupt(
                f"{self.path}: attribute {name} is missing or no text of fixed length"
            )
        value = attributes[name]
        if not isinstance(value, bytes):
            raise CacheCorrupt(f"{self.path}: attribute {name} is no single text")
        return value.decode()

    def optional_text(self, name: str) -> str | None:
        """None where the file has no such attribute."""
        return self.text(name) if name in self._file.attrs else None

    def number(self, name: str, *, at: str = "/") -> int:
        attributes = self._file[at].attrs
        if name not in attributes or attributes.get_id(name).dtype != np.int64:
            raise CacheCorrupt(f"{self.path}: attribute {name} is missing or no whole number")
        return int(attributes[name])

    def damaged_datasets(self) -> list[str]:
        """Reads every chunk of every dataset; names those whose checksum does not hold."""
        bad = []
        for name in self._dataset_names():
            try:
                self._file[name][()]
            except OSError:
                bad.append(name)
        return bad

    def check_format(self, kind: str, version: int) -> None:
        if "format" not in self._file.attrs or self.text("format") != kind:
            raise CacheCorrupt(f"{self.path}: an HDF5 file, but not a {kind} file")
        found = self.number("format_version")
        if found != version:
            raise CacheCorrupt(
                f"{self.path}: format version {found}, this program reads {version}; {self._repair}"
            )

    def check_storage(self) -> None:
        """Refuses datasets whose data lie elsewhere."""
        budget = self.path.stat().st_size
        for name in self._dataset_names():
            dataset = self._file[name]
            if not isinstance(dataset, h5py.Dataset):
                raise CacheCorrupt(f"{self.path}: {name} is no dataset")
            external = dataset.id.get_create_plist().get_external_count() > 0
            if external or dataset.is_virtual or dataset.nbytes > budget:
                raise CacheCorrupt(f"{self.path}: dataset {name} claims data outside the file")

    def _dataset_names(self) -> list[str]:
        """Every dataset, two levels deep; links to elsewhere are refused before being followed."""
        names: list[str] = []
        for top in self._file:
            self._refuse_link(top)
            if isinstance(self._file[top], h5py.Dataset):
                names.append(top)
                continue
            for name in self._file[top]:
                self._refuse_link(f"{top}/{name}")
                names.append(f"{top}/{name}")
        return names

    def _refuse_link(self, name: str) -> None:
        if not isinstance(self._file.get(name, getlink=True), h5py.HardLink):
            raise CacheCorrupt(f"{self._file.filename}: {name} is a link to elsewhere")
