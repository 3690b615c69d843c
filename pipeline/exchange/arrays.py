"""NumPy's files, read without trusting them: nothing is unpickled, and no more is allocated than a
file holds.

`np.load` alone allocates what a header claims, before it reads.
"""

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.errors import InputError, StorageError

_NPY = ".npy"
# An archive may unpack to this many times its own size, beyond the first gigabyte.
_MAX_RATIO = 200
_MAX_SMALL_BYTES = 1 << 30
_NPY_DAMAGE = (
    *(ValueError, TypeError, KeyError, EOFError, OverflowError),
    *(SyntaxError, RecursionError, MemoryError, tokenize.TokenError),
)
_ZIP_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError),
    *(NotImplementedError, RuntimeError, KeyError, IndexError, OverflowError),
)


def read_npy(path: Path) -> NDArray[Any]:
    """One array of numbers, truth values or texts. Raises StorageError where the file cannot be
    read, InputError where it is no such array."""
    return parse_npy(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """A regular file. Raises StorageError."""
    try:
        if path.exists() and not path.is_file():  # to open a pipe would wait for ever
            raise StorageError(f"{path}: not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error


def parse_npy(content: bytes, origin: str) -> NDArray[Any]:
    """The array of a `.npy` file's bytes; `origin` names the file in messages."""
    try:
        dtype, claimed, there = _read_claims(content)
        if dtype.hasobject:
            raise InputError(f"{origin}: holds pickled Python objects, which are never loaded")
        if dtype.kind not in "biufSU":
            raise InputError(f"{origin}: holds {dtype}, and not numbers or texts")
        if claimed != there:
            raise InputError(f"{origin}: its header claims {claimed:,} bytes, and {there:,} follow")
        return np.asarray(np.load(io.BytesIO(content), allow_pickle=False))
    except _NPY_DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{origin}: not a readable .npy file ({reason})") from error


def _read_claims(content: bytes) -> tuple[np.dtype[Any], int, int]:
    """The type of the array, its bytes by the header, and the bytes after the header."""
    stream = io.BytesIO(content)
    version = npy.read_magic(stream)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:  # 3.0 is for names of fields in other scripts
        raise ValueError(f"format version {version[0]}.{version[1]}")
    shape, _, dtype = readers[version](stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return dtype, math.prod(shape) * dtype.itemsize, len(content) - stream.tell()


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an archive by name, whole in memory. Raises as `read_npy`."""
    return dict(iterate_npz(path))


def iterate_npz(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """The same, one after another."""
    with _told_as_ours(path), zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
        twice = [name for name, count in Counter(names).items() if count > 1]
        others = [name for name in names if not name.endswith(_NPY)]
        if twice or others:
            wrong = f"{twice[0]} twice" if twice else f"{others[0]}, which is no array"
            raise InputError(f"{path}: holds {wrong}")
        unpacked = sum(entry.file_size for entry in entries)
        size = path.stat().st_size
        if unpacked > max(_MAX_SMALL_BYTES, _MAX_RATIO * size):
            raise InputError(f"{path}: {size:,} bytes that claim to hold {unpacked:,}; not read")
        for entry in entries:
            content = archive.read(entry)
            name = entry.filename.removesuffix(_NPY)
            yield name, parse_npy(content, f"{path}: {name}")


@contextmanager
def _told_as_ours(path: Path) -> Iterator[None]:
    try:
        yield
    except _ZIP_DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable .npz file ({reason})") from error
